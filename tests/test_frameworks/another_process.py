"""Read a mask and weights from files in a process that has JAX, NumPy and pathjax, and no other framework."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

SCRIPT = """
import json, pickle, sys
import jax, numpy as np
from pathjax import masks

with open(sys.argv[1] + "/weights.pickle", "rb") as file:
    weights = pickle.load(file)
mask = masks.load(sys.argv[1] + "/mask.npz", weights)
pruned = jax.tree.map(lambda leaf, kept: leaf[~np.asarray(kept)], weights, mask)
zero = not any(leaf.any() for leaf in jax.tree.leaves(pruned))
assert not {"flax", "equinox", "optax"} & set(sys.modules)
print(json.dumps({"kept": int(masks.count(mask)), "pruned are 0": zero}))
"""


def read_in_another_process(folder: Path, weights: Any) -> dict[str, Any]:
    """What another process finds in the file `mask.npz` of the folder, given the weights as nested dicts and lists."""
    (folder / "weights.pickle").write_bytes(pickle.dumps(jax.tree.map(np.asarray, weights)))
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    return json.loads(subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout)
