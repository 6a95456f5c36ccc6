"""What an equation says of its primitive: the same in every version of JAX, and in Python's own integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pathjax import enumeration, ntk, paths
from pathjax._interpreter import jaxpr

from ..tolerances import EXACT

X = jax.random.normal(jax.random.key(0), (5, 6))
PARAMS = {
    "first": jax.random.normal(jax.random.key(1), (1, 2, 3, 4)),
    "kernel": jax.random.normal(jax.random.key(2), (4, 3, 1, 1)),
    "last": jax.random.normal(jax.random.key(3), (3, 2)),
}


def network_with(integer):
    """A network that gives every axis, size and width as an integer of the type `integer`."""
    zero, one, two = (integer(number) for number in range(3))

    def apply(params, x):
        h = jax.nn.relu(lax.broadcast_in_dim(x, (*x.shape, integer(4)), (zero, one)).reshape(-1, 2, 3, 4))
        h = lax.transpose(h * params["first"], (zero, one, two, integer(3)))
        h = lax.pad(h, jnp.zeros((), h.dtype), [(zero, zero, zero), (zero, one, zero), *[(zero, zero, zero)] * 2])
        h = lax.concatenate([h, 2 * lax.rev(h, (one,))], one)
        h = lax.cumsum(lax.slice(h, (zero,) * 4, h.shape, (one, one, one, two)), axis=two)
        h = lax.reduce_window(h, -jnp.inf, lax.max, (one, two, one, one), (one,) * 4, "VALID")
        layout = ("NHCW", "OIHW", "NHCW")
        h = lax.conv_general_dilated(h, params["kernel"], (one, one), [(zero, zero)] * 2, dimension_numbers=layout)
        return lax.reduce_sum(lax.reduce_max(h, (one,)), (two,)) @ jnp.ones((4, 3)) @ params["last"]

    return apply


def equations(apply, *arguments):
    """All equations of a program, those inside calls too."""
    met = []

    def step(equation, inputs):
        met.append(equation)
        return equation.outputs

    jaxpr.walk(jax.make_jaxpr(apply)(*arguments), [None for _ in jax.tree.leaves(arguments)], step=step, constant=id)
    return met


def integers(parameter):
    """The integers in a static parameter, at any depth."""
    if isinstance(parameter, tuple):
        return [number for entry in parameter for number in integers(entry)]
    return [parameter] if isinstance(parameter, (int, np.integer)) else []


def test_integers_of_numpy_are_python_s_in_all_static_parameters():
    met = equations(network_with(np.int64), PARAMS, X)
    given = [(e.name, number) for e in met for value in e.source.params.values() for number in integers(value)]
    read = [(e.name, number) for e in met for value in e.params.values() for number in integers(value)]
    assert {name for name, number in given if isinstance(number, np.integer)} >= {
        "broadcast_in_dim", "pad", "rev", "reduce_window_max", "conv_general_dilated", "reduce_max", "reduce_sum",
    }  # fmt: skip
    assert read == given
    assert [(name, number) for name, number in read if isinstance(number, np.integer)] == []


def test_static_parameters_keep_the_types_of_their_tuples():
    (conv,) = (e for e in equations(network_with(np.int64), PARAMS, X) if e.name == "conv_general_dilated")
    assert conv.params["dimension_numbers"] == conv.source.params["dimension_numbers"]
    assert isinstance(conv.params["dimension_numbers"], lax.ConvDimensionNumbers)
    (plain,) = (e for e in equations(network_with(int), PARAMS, X) if e.name == "conv_general_dilated")
    assert conv.params == plain.params


def quantities(apply):
    listed = enumeration.enumerate_paths(apply, PARAMS, X, limit=5_000)
    return {
        "norm": paths.log_path_norm(apply, PARAMS, X),
        "count": paths.log_path_count(apply, PARAMS, X),
        "data": paths.path_sum(apply, PARAMS, X, gates="data"),
        "values": enumeration.path_values(listed, PARAMS),
        "ntk": ntk.empirical(apply, PARAMS, X),
    }


def test_axes_of_numpy_give_the_numbers_of_python_s():
    expected = quantities(network_with(int))
    for name, value in quantities(network_with(np.int64)).items():
        np.testing.assert_allclose(value, expected[name], rtol=EXACT, err_msg=name)


# The parts of a loop

PARTS = [(0, 1, 1), (2, 1, 0), (1, 2, 3), (3, 0, 1), (0, 2, 0), (2, 3, 1)]


@pytest.mark.parametrize("collected", [0, 2])
@pytest.mark.parametrize("length", [0, 1, 3])
@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_operands_of_a_loop_are_grouped_by_their_part(parts, length, collected):
    constants, carry, stacked = (
        [jnp.full((length,) * (i + 1) if kind == 2 else (length,) * i, float(10 * kind + i)) for i in range(count)]
        for kind, count in enumerate(parts)
    )

    def apply(constants, carry, stacked):
        def body(carry, slices):
            total = sum(jnp.sum(array) for array in [*constants, *carry, *slices])
            return [array + total for array in carry], [total * jnp.ones((length,) * i) for i in range(collected)]

        return lax.scan(body, carry, stacked, length=length)

    program = jax.make_jaxpr(apply)(constants, carry, stacked)
    (scan,) = (jaxpr.Equation(eqn, ()) for eqn in program.eqns if eqn.primitive.name == "scan")
    grouped = scan.loop_operands(scan.inputs)
    parts_found = (grouped.constants, grouped.carry, grouped.stacked)
    for operands, given in zip(parts_found, (constants, carry, stacked), strict=True):
        assert [operand.shape for operand in operands] == [array.shape for array in given]
