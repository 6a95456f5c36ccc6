"""The Neural Tangent Kernel of finite networks, and the door to neural-tangents. Read in this order.

`uses`: where a network uses its parameters, and the activations and cotangents that meet there. `layerwise`: what each
layer adds to the kernel. `blocks`: a kernel in blocks of examples. `devices`: its rows spread over devices. `memory`:
the refusal of what would not fit. `operator`: products with the kernel without forming it. `door`: neural-tangents on
current JAX.
"""
