"""What a newcomer hands over by mistake to pruning is refused with what to write instead."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from flax import nnx

from pathjax import masks, pruning, scores

X, Y = jax.random.normal(jax.random.key(0), (4, 3)), jnp.arange(4) % 2
PARAMS = {"first": jax.random.normal(jax.random.key(1), (3, 5)), "second": jnp.ones((5, 2))}
ADAM = optax.adam(1e-3)


def apply(params: Any, x: Any) -> Any:
    return jax.nn.relu(x @ params["first"]) @ params["second"]


@pytest.fixture(autouse=True)
def unchecked_types() -> Iterator[None]:
    """As a user meets it, without the run-time type checker that tests install, whose words would come first."""
    was_disabled = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", was_disabled)


def sparsify(score: Any, data: Any, optimizer: Any = ADAM, **options: Any) -> pruning.Sparse:
    return pruning.sparsify(score, apply, PARAMS, data, optimizer, **{"density": 0.5, "rounds": 1} | options)


def batches() -> Iterator[tuple[Any, Any]]:
    yield X, Y


MISTAKES: dict[str, tuple[type[Exception], Any, tuple[str, ...]]] = {
    "weights to freeze": (
        TypeError,
        lambda: masks.freeze(ADAM, PARAMS),
        ("must have boolean leaves; at ['first'] it has float", "You passed weights or scores", "pruning.sparsify"),
    ),
    "weights to density": (TypeError, lambda: masks.density(PARAMS), ("You passed weights or scores",)),
    "weights to save": (TypeError, lambda: masks.save("mask.npz", PARAMS), ("masks.from_scores returned",)),
    "ones and zeros": (
        TypeError,
        lambda: masks.density({"kernel": jnp.ones((2, 3), int)}),
        ("must have boolean leaves; at ['kernel'] it has int", "leaf.astype(bool)"),
    ),
    "arguments of save": (TypeError, lambda: masks.save({"w": jnp.ones(2, bool)}, "mask"), ("masks.save(path, mask)",)),  # type: ignore[arg-type]
    "arguments of load": (TypeError, lambda: masks.load(PARAMS, "mask"), ("masks.load(path, params)",)),  # type: ignore[arg-type]
    "a score of a network": (
        TypeError,
        lambda: pruning.prune(scores.synflow, PARAMS, density=0.5, rounds=2),  # type: ignore[arg-type]
        ("(apply, params, x_like", "Wrap it, for example: lambda masked, key: scores.synflow(apply, masked, x)."),
    ),
    "a score of weights": (
        TypeError,
        lambda: pruning.prune(scores.magnitude, PARAMS, density=0.5, rounds=2),  # type: ignore[arg-type]
        ("lambda masked, key: score(masked)",),
    ),
    "all variables": (
        ValueError,
        lambda: scores.magnitude({"params": PARAMS, "batch_stats": {}}),
        ("params=variables['params']",),
    ),
    "all variables, at random": (
        ValueError,
        lambda: scores.random({"params": PARAMS, "batch_stats": {}}, key=jax.random.key(0)),
        ("params=variables['params']",),
    ),
    "density in words": (TypeError, lambda: sparsify(scores.synflow, X, density="0.1"), ("must be a number", "str")),
    "density in percent": (ValueError, lambda: sparsify(scores.synflow, X, density=5), ("To keep 5 % write 0.05.",)),
    "batches to synflow": (
        ValueError,
        lambda: sparsify(scores.synflow, [(X, Y)]),
        ("reads inputs alone, so pass x, not batches [(x, y)]",),
    ),
    "batches to synflow_data": (
        ValueError,
        lambda: scores.synflow_data(apply, PARAMS, [(X, Y)]),
        ("reads inputs alone, so pass x, not batches [(x, y)]",),
    ),
    "a shape to sparsify": (
        TypeError,
        lambda: sparsify(scores.synflow, (20, 3)),
        ("is a tuple of 2 integers, a shape: pass jnp.zeros(shape) or jax.ShapeDtypeStruct(shape, jnp.float32)",),
    ),
    "a shape to synflow": (TypeError, lambda: scores.synflow(apply, PARAMS, (20, 8, 8, 1)), ("4 integers, a shape",)),  # type: ignore[arg-type]
    "a shape to synflow_data": (
        TypeError,
        lambda: scores.synflow_data(apply, PARAMS, (20, 3)),
        ("2 integers, a shape",),
    ),
    "numbers to synflow": (
        ValueError,
        lambda: scores.synflow(apply, PARAMS, [[1.0, 2.0, 3.0]]),  # type: ignore[arg-type]
        ("is a list of numbers", "jnp.asarray(x)"),
    ),
    "data and optimizer swapped": (
        TypeError,
        lambda: sparsify(scores.synflow, ADAM, X),
        ("are swapped: write sparsify(score, apply, params, data, optimizer, ...)",),
    ),
    "no optimizer": (TypeError, lambda: sparsify(scores.synflow, X, 1e-3), ("is a float", "`init` and `update`")),
    "a score of weights to sparsify": (
        TypeError,
        lambda: sparsify(scores.magnitude, X),
        ("score(apply, params, data, state=, prunable=)", "takes (params)", "by `masks.from_scores`"),
    ),
    "a score of the mask to sparsify": (
        TypeError,
        lambda: sparsify(scores.force, [(X, Y)]),
        ("missing a required argument: 'mask'", "use `prune` with `revive=True`"),
    ),
    "an option that the score lacks": (
        TypeError,
        lambda: sparsify(scores.synflow, X, loss=scores.cross_entropy),
        ("state=, prunable=, loss=", "got an unexpected keyword argument 'loss'"),
    ),
    "a generator that was not called": (TypeError, lambda: sparsify(scores.snip, batches), ("call it: batches()",)),
    "a generator of inputs": (
        TypeError,
        lambda: scores.synflow_data(apply, PARAMS, batches),  # type: ignore[arg-type]
        ("call it: batches()",),
    ),
    "training without the state": (
        TypeError,
        lambda: pruning.lottery_ticket(lambda p, s, mask, start, stop, key: (p, s), PARAMS, steps=2, density=0.5),
        ("takes the arguments (p, s, mask, start, stop, key), but no `state=` was given", "as `state=`"),
    ),
    "training with a state": (
        TypeError,
        lambda: pruning.lottery_ticket(
            lambda p, mask, start, stop, key: p, PARAMS, steps=2, density=0.5, state={"mean": jnp.ones(2)}
        ),
        ("a `state=` was given", "train(params, state, mask, start, stop, key)"),
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_with_what_to_write_instead(name: str) -> None:
    kind, mistake, phrases = MISTAKES[name]
    with pytest.raises(kind, match=re.escape(phrases[0])) as caught:
        mistake()
    for phrase in phrases:
        assert phrase in str(caught.value)
    assert "leaf != 0" not in str(caught.value)  # for weights it would prune biases that start at 0


def test_options_are_handed_on_to_the_score() -> None:
    def squared_error(outputs: Any, targets: Any) -> Any:
        return jnp.mean((outputs[:, 0] - targets) ** 2)

    calls = []

    def counted(params: Any, x: Any) -> Any:
        calls.append(x.shape)
        return apply(params, x)

    data = [(X, Y.astype(float))]
    for _ in range(2):  # the second call traces nothing, though its options are in a new dictionary
        sparse = pruning.sparsify(scores.snip, counted, PARAMS, data, ADAM, density=0.5, rounds=1, loss=squared_error)
        traces = len(calls)
    expected = masks.from_scores(scores.snip(apply, PARAMS, data, loss=squared_error), density=0.5)
    jax.tree.map(np.testing.assert_array_equal, sparse.mask, expected)
    assert len(calls) == traces == len(set(calls))
    with pytest.raises(TypeError, match="rouds"):
        sparsify(scores.synflow, X, rouds=3)


def test_the_mask_of_a_whole_nnx_model_is_refused_with_the_remedy(tmp_path: Path) -> None:
    class Model(nnx.Module):
        def __init__(self) -> None:
            self.dropout, self.linear = nnx.Dropout(0.5, rngs=nnx.Rngs(0)), nnx.Linear(3, 2, rngs=nnx.Rngs(0))

    params = nnx.state(Model(), nnx.Param)
    masks.save(tmp_path / "mask.npz", jax.tree.map(lambda leaf: leaf != 0, params))
    with pytest.raises(ValueError, match=r"of a Flax NNX model these are nnx\.state\(model, nnx\.Param\)"):
        masks.load(tmp_path / "mask.npz", Model())
    masks.load(tmp_path / "mask.npz", params)
