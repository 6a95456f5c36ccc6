"""The Path Kernel through its twin G = (J_θ v)ᵀ(J_θ v), p × p with the same nonzero eigenvalues. Read in this order.

`twin`: G as an operator: products, diagonal, rows. `spectrum`: its eigenpairs and what follows from its eigenvalues.
`density`: its spectral density, and that as a curve. `comparison`: norms of G, and of two kernels against one another.
"""
