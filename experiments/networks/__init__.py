"""The networks that the study prunes and trains, as pure functions of parameters and running statistics.

Read `layers` first: a network is a list of layers over a table of widths. `architectures` has the networks of the
pruning literature, `twins` those whose infinite-width limit is known, `by_name` all of them by the names of a config.
`shrink` makes a smaller network of a mask. `modules` takes plain Flax modules; `nnx_example` is one to copy.
"""
