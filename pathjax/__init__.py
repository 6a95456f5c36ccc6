"""Path sums, Path Kernels and pruning at initialization for piecewise-linear networks in JAX."""
