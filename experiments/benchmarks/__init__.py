"""Speeds and memory, each measured against its peer in the same run: `python -m experiments.benchmarks.NAME`.

Read `timing` first, which all use, then any other. Of the library: `lifting` (which also defines networks for the
others), `listing`, `spectrum`, `factorize`, `growth` (of cost with size), `kernels`, `relaxation`, `selection` and
`synflow` (against PyTorch). Of the experiments: `shrink`.
"""
