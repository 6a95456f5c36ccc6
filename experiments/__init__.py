"""The experiments of pathjax: prunings compared before and after training.

Read `study` (what a study compares), `models` (its networks), `setting` (what of it decides each trial), `starts` (what
each training starts from), `workbench` (what is measured of one network), `sweep` (the loop that runs a study) and
`__main__` (the commands). `checks` finds mistakes beforehand, `cost_estimate` says how long a study would take,
`widths` compares finite widths with infinite width, and pruned networks with what is expected of them, and `evidence`
has the claims of docs/study. Below them lie the packages `base`, `data`, `networks`, `measure`, `train`, `records`,
`report`.
"""
