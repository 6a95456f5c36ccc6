"""Constant indices are accepted where every example is treated alone and alike, which is tried on numbers here."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax import paths
from pathjax._interpreter.traced import traced

from ..tolerances import EXACT

EXAMPLES, TIMES, UNITS = 3, 3, 2

OF_EXAMPLES: dict[str, Any] = {
    "all": slice(None),
    "in order": np.arange(EXAMPLES),
    "in order, counted from the end": np.arange(EXAMPLES) - EXAMPLES,
    "in order, as a column": np.arange(EXAMPLES)[:, None],
    "backwards": np.arange(EXAMPLES)[::-1],
    "one several times": np.array([0, 1, 1]),
    "some": slice(0, 2),
}
OF_TIMES: dict[str, Any] = {
    "all": slice(None),
    "last": -1,
    "two": np.array([0, 2]),
    "one for each": np.arange(TIMES),
    "one three times": np.array([1, 1, 1]),
    "another for each": np.array([0, 2, 2]),
}
USES: dict[str, Callable[..., Any]] = {
    "read": lambda h, at: h[at],
    "set": lambda h, at: h.at[at].set(0.0),
    "multiplied": lambda h, at: h.at[at].multiply(2.0),
    "read and added": lambda h, at: jnp.zeros_like(h).at[at].add(h[at]),
    "read and set elsewhere": lambda h, at: h.at[(at[0], 0)].set(h[(at[0], 1)]),
}
IN_ORDER = ("all", "in order", "in order, counted from the end", "in order, as a column")


def treats_examples_alone_and_alike(function: Callable[[Any], Any]) -> bool:
    """Whether a permutation of the examples permutes the results, and another first example changes the first alone."""
    x = np.random.default_rng(0).normal(size=(EXAMPLES, TIMES, UNITS))
    results, order = np.asarray(function(jnp.asarray(x))), np.array([1, 2, 0])
    if results.shape[0] != EXAMPLES:
        return False
    permuted = np.asarray(function(jnp.asarray(x[order])))
    changed = np.asarray(function(jnp.asarray(np.concatenate([x[:1] + 1.0, x[1:]]))))
    alike, alone = (np.allclose(a, b, rtol=EXACT) for a, b in ((permuted, results[order]), (changed[1:], results[1:])))
    return alike and alone


def has_paths(function: Callable[[Any], Any]) -> bool:
    x = jax.ShapeDtypeStruct((EXAMPLES, TIMES, UNITS), jnp.float64)
    try:
        traced(lambda scale, x: function(x * scale).reshape(len(x), -1), jnp.ones(())).path_program(x)
    except paths.UnsupportedPrimitive:
        return False
    return True


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("examples", OF_EXAMPLES)
def test_indices_are_accepted_where_each_example_is_treated_alone_and_alike(use: str, examples: str) -> None:
    for times in OF_TIMES:
        at = (OF_EXAMPLES[examples], OF_TIMES[times])
        function = functools.partial(USES[use], at=at)
        try:
            shape = jax.eval_shape(function, jnp.zeros((EXAMPLES, TIMES, UNITS))).shape
        except ValueError:
            continue  # indices that do not broadcast
        if shape[0] != EXAMPLES:
            continue  # not a batch of results: refused for its shape
        is_right = treats_examples_alone_and_alike(function)
        if not is_right or examples in IN_ORDER:
            assert has_paths(function) == is_right, times


def test_the_cases_are_of_both_kinds() -> None:
    rightness = [
        treats_examples_alone_and_alike(functools.partial(use, at=(examples, -1)))
        for use, examples in itertools.product(USES.values(), OF_EXAMPLES.values())
    ]
    assert rightness.count(True) >= 10 and rightness.count(False) >= 10
