"""The Neural Tangent Kernel of finite networks, and the way to neural-tangents on current JAX. Read in this order.

`uses`: where a network uses its parameters, and the activations and cotangents there. `contractions`: the part of one
layer in the kernel, in the cheapest way. `layers`: what brings a layer into the form for that. `blocks`: a kernel in
blocks of examples, spread over devices. `layerwise`: the kernel put together from its layers and blocks. `memory`: the
refusal of what would not fit. `matrix`: a kernel as a matrix. `operator`: products with the kernel without forming it.
`trajectory`: training of the linearized network from these alone. `expected`: the kernel in the mean over random
weights. `initial`: second moments of weights at the usual initializations. `door`: neural-tangents on current JAX.
"""
