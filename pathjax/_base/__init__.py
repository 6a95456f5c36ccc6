"""The ground that everything stands on, in the order in which to read it.

`trees`: products, sums and checks of pytrees, with errors that name key paths.
`kernels`: which leaves are kernels, by name and shape.
`leaves`: a choice of parameter leaves by name.
`weights`: what is handed over as `params` and is more than weights, refused with its remedy.
`arguments`: what is handed over in place of a network or a batch of inputs, told in words.
`network`: a mask applied to a network, its inputs and outputs checked.
`content`: what a function computes, as far as Python can tell.
`listeners`: functions that compiled programs call to say where they are.
`programs`: what was traced and compiled for a function, kept as long as the function lives.
"""
