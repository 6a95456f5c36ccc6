"""How tests and doctests run: float64, no silent broadcasting of ranks, shapes checked on every call."""

import gc
import importlib.metadata
import os

# Tests compile thousands of tiny programs and run each once: compile them plainly, in a third of the time. XLA ends the
# process at a flag that it does not know, so only where these are known.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    plain = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{plain} {os.environ.get('XLA_FLAGS', '')}"

# and keep traces and programs by the million, which Python would otherwise look through again and again
gc.set_threshold(50_000, 20, 20)

import jax  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

# before any test module imports pathjax, so that every annotation of it is checked
install_import_hook("pathjax", "beartype.beartype")
