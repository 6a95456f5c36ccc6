"""How networks are trained. Imports nothing heavy."""

from __future__ import annotations

import dataclasses

__all__ = ["PRECISIONS", "SCHEDULES", "Recipe"]

SCHEDULES = ("constant", "cosine", "step")
PRECISIONS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How networks are trained, by SGD with momentum on cross-entropy."""

    epochs: int = 30
    """Passes over the train set."""
    batch_size: int = 64
    """Images in a minibatch."""
    learning_rate: float = 0.05
    """Largest step size."""
    schedule: str = "constant"
    """The step size over time: constant; cosine, down to 0; or step, divided by 10 after 1/2 and again after 3/4."""
    momentum: float = 0.9
    """Share of the last update that is added to the next; 0 is plain SGD."""
    warmup: float = 0.0
    """Epochs in which the step size rises to its largest value."""
    weight_decay: float = 0.0
    """This number times the weight is added to the gradient, for kernels only."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes."""
    augment: bool = False
    """Whether padded images are cropped at random, and mirrored where a mirror image shows the same."""
    precision: str = "float32"
    """Precision of the networks' computation, float32 or bfloat16. Weights are float32 in both."""
    checkpoint_every: int = 10
    """Epochs between checkpoints, where checkpoints are kept."""
