"""What is measured of a network beside its training.

Read `pruning` (methods, from weights to masks), `quantities` (path norms, Path Kernel and NTK before training),
`curves` (predicted loss curves against real ones), `expected_gates` (what is predicted, with and without data, from the
kernel of expected gates) and `changes` (how far training moves the kernels). `kernel_pictures` has the numbers of the
pictures of kernels, `factorization_check` checks Θ = J Π Jᵀ on listed paths, `widths` compares finite kernels with
infinite-width ones, and `pruned_widths` those under masks of several kinds with the kernels expected of them.
"""
