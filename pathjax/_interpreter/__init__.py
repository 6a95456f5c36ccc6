"""The interpreter that lifts any `apply(params, x)` to a sum over paths. Read in this order.

`jaxpr`: trace a network and walk its equations, without any mathematics. `algebra`: the values of a network, and the
operations that every kind of path sum defines. `context`: what a path rule is given and what it returns. `gates`,
`sums`, `loops`: the path rules, by family. `rules`: the table from primitive to path rule, and the walk that reads it.
`refusals`: the words for what has no paths, by layer and by primitive. `probes`: custom derivative rules, tried on
numbers. `examples`: the check that no example reads another; `placements`: where the examples lie in an array;
`example_rules`, `indexed_examples`: the rules of that check per primitive. `kernels`: which parameter leaves multiply
activations and are summed over. `traced`: the traced network, which every public function makes once and hands on.
Four algebras: `lifting`, path sums as numbers with a scale (`scaled`); `listing`, as lists of paths; `reach`, whether
there is a path at all; `mean_field`, second moments over random weights, with gates open as often as they are in the
mean. It is made of `routes`: whether two values are uncorrelated; `moments`: how second moments are stored; `motion`,
`added`, `contracted`, `convolved`, `mixed` and `rectified`: how they move and pass sums, products, convolutions, linear
functions and gates; `gaussian`: rectified Gaussians. `known`: constants that are known while tracing. `windows`: the
entries under each window of a convolution or a pool. `convolutions`: faster forms of convolutions on CPUs.
"""
