"""Linear algebra of operators that are known by their products alone. Read in this order.

`eigenpairs`: the one search for the largest eigenpairs of a kernel. `lanczos`: the iteration that it runs. `krylov`:
the Krylov space of one start. `relaxation`: exp(−Mt) v, (I − M)^t v and their sums over time, from eigenvectors of M.
`propagation`: the same from products with M alone, with bounds of the errors. `estimates`: means over random probes,
with standard errors. `lapack`: decompositions that loop under vmap, because batched LAPACK can hang jaxlib 0.10 on
CPUs, and the threshold below which their results count as zero.
"""
