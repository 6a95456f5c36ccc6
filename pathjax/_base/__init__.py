"""What all other packages build on.

`trees`: products, sums and checks of pytrees, with errors that name key paths.
`network`: a network as a function of weights and inputs, its state and mask applied, its inputs and outputs checked.
`weights`: what is handed over as `params` and is more than weights, refused with its remedy.
`programs`: compiled programs that are kept as long as the user's function that they call.
"""
