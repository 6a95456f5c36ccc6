"""The ground that everything stands on.

`trees`: products, sums and checks of pytrees, with errors that name key paths.
`network`: a network as a function of weights and inputs, its mask and state applied, its inputs and outputs checked.
`programs`: compiled programs that live as long as the function they were made for.
"""
