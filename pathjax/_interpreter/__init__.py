"""The interpreter that lifts any `apply(params, x)` to a sum over paths. Read in this order.

`jaxpr`: trace a network and walk its equations, without any mathematics. `algebra`: the values of a network, and what a
sum over paths has to be able to do. `context`: what a rule works with. `gates`, `sums`, `loops`: the path rules, by
family. `rules`: the table from primitive to rule, and the walk that reads it. `probes`: what is learned of a custom
derivative rule by trying it. `examples`: the check that no example reads another. `traced`: the traced network, which
every public function makes once and hands on. Three algebras: `lifting`, of numbers with their scale; `listing`, of
lists of paths; `reach`, of whether there is a path. `windows`: the entries under each window of a
convolution or a pool. `convolutions`: faster forms of convolutions on CPUs.
"""
