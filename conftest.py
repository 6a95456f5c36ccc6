"""How tests and doctests run: float64, no silent broadcasting of ranks, shapes checked on every call."""

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

# before any test module imports pathjax, so that every annotation of it is checked
install_import_hook("pathjax", "beartype.beartype")
