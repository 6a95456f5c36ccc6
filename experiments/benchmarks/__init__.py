"""Speeds and memory, each measured beside its peer: `python -m experiments.benchmarks`, or one of them by its name.

Read `rows` (what a benchmark gives), `processes` and `timing` (how it is measured), then any benchmark. Of the library:
`synflow` (against PyTorch), `selection`, `spectrum`, `lifting` (which also defines networks for the others), `kernels`
and `mean_field` (against neural-tangents), `relaxation` (training without the kernel), `listing`, `factorize`, `growth`
(of cost with size). Of the experiments and tests: `sweeping`, `workers`, `shrink`, `fuzzing`. `__main__` and `command`
run them, on what `machines` says; `results` keeps what they gave; `page` and `growth_figure` show it.
"""
