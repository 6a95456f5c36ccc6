"""Linear algebra of operators that are known by their products alone.

`krylov`: Krylov spaces of one start. `lanczos`: the largest eigenpairs by iteration. `relaxation`: exp(−Mt) v,
(I − M)^t v and their sums over time. `estimates`: means over random probes, with standard errors. `lapack`:
decompositions that under vmap never hand LAPACK a batch, which can hang jaxlib 0.10 on CPUs.
"""
