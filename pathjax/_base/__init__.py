"""The ground that everything stands on, in the order in which to read it.

`trees`: products and checks of pytrees. `leaves`: a choice of parameter leaves. `network`: a mask applied to a network,
its arguments checked. `content`: what a function computes, as far as Python can tell. `programs`: what was compiled for
a function, kept as long as it lives.
"""
