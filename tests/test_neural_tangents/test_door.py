"""The door to neural-tangents: it opens on current JAX, without TensorFlow, and nobody else notices."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathjax._ntk import door

from ..tolerances import SUMS


def run(program):
    """The output of a program in a Python of its own, where any warning is an error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


NAMES = """
import importlib
MODULES = [importlib.import_module(name) for name in (
    "jax", "jax.numpy", "jax.lax", "jax.core", "jax.interpreters", "jax.interpreters.ad", "jax.extend",
    "jax.extend.core", "jax.extend.linear_util", "jax.example_libraries.stax", "jax.tree_util",
    "jax.flatten_util", "builtins",
)]
def names():
    return [dict(vars(module)) for module in MODULES]
"""


def test_other_code_sees_the_same_jax_before_and_after():
    program = f"""{NAMES}
import sys, builtins
before, finders, imports = names(), list(sys.meta_path), builtins.__import__
others = {{name for name in sys.modules}}
from pathjax._ntk import door
nt = door.load()
assert [sorted(module) for module in names()] == [sorted(module) for module in before]
assert all(a[name] is b[name] for a, b in zip(names(), before) for name in a if not name.startswith("__"))
assert sys.meta_path == finders and builtins.__import__ is imports
new = {{name.partition(".")[0] for name in set(sys.modules) - others}}
assert not new & {{"tensorflow", "tf2jax"}}, new
assert not hasattr(sys.modules["jax.core"], "Jaxpr") and not hasattr(sys.modules["jax.core"], "Primitive")
print("same")
"""
    assert run(program) == ["same"]


def test_importing_the_kernels_does_not_import_neural_tangents():
    program = "import sys, pathjax.ntk, pathjax.dynamics; print('neural_tangents' in sys.modules)"
    assert run(program) == ["False"]


def test_a_plain_import_that_failed_before_does_no_harm():
    program = """
try:
    import neural_tangents
except Exception:
    pass
from pathjax._ntk import door
nt = door.load()
import neural_tangents, neural_tangents.stax
print(neural_tangents is nt, neural_tangents.stax is nt.stax, nt.__version__)
"""
    assert run(program) == ["True", "True", "0.6.5"]


def test_a_package_imported_by_other_means_is_returned_as_it_is():
    program = """
import sys, types
theirs = sys.modules["neural_tangents"] = types.ModuleType("neural_tangents")
from pathjax._ntk import door
print(door.load() is theirs)
"""
    assert run(program) == ["True"]


@pytest.mark.parametrize("missing", ["neural_tangents", "frozendict"])
def test_a_missing_package_is_an_error_that_says_what_to_install(missing):
    program = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
from importlib.machinery import PathFinder
real = PathFinder.find_spec
PathFinder.find_spec = classmethod(
    lambda cls, name, path=None, target=None: None if name == {missing!r} else real(name, path, target))
from pathjax._ntk import door
for attempt in range(2):
    try:
        door.load()
    except ModuleNotFoundError as error:
        message = str(error)
        assert error.name == {missing!r}
        assert "`{missing}` is not installed" in message
        assert "pip install pathjax[infinite]" in message
        assert "--no-deps" in message and "TensorFlow" in message
    assert not [name for name in sys.modules if name.startswith("neural_tangents")]
print("said")
"""
    assert run(program) == ["said"]


def test_loading_twice_gives_one_package():
    assert door.load() is door.load()


def test_the_tensorflow_part_is_empty():
    package = door.load()
    assert [name for name in vars(package.experimental) if not name.startswith("__")] == []
    assert "TensorFlow" in package.experimental.__doc__


@pytest.mark.parametrize("number", [0, 3])
def test_an_implementation_that_cannot_run_is_refused_with_the_remedy(number):
    package = door.load()
    for implementation in (number, package.NtkImplementation(number)):
        with pytest.raises(NotImplementedError, match="implementation 1 .* or 2 .*method='products'"):
            package.empirical_ntk_fn(lambda params, x: params * x, implementation=implementation)


def test_every_part_that_is_served_runs():
    package = door.load()
    stax = package.stax
    init, apply, kernel_fn = stax.serial(stax.Dense(6, 2**0.5, 0.0), stax.Relu(), stax.Dense(2, 2**0.5, 0.0))
    x = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)
    params = init(jax.random.key(0), x.shape)[1]
    kernel = kernel_fn(x, None, get="ntk")
    assert kernel.shape == (3, 3)
    sampled = package.monte_carlo_kernel_fn(init, apply, jax.random.key(0), 1)(x, x[:2], get="ntk")
    assert sampled.shape == (3, 2)
    assert package.linearize(apply, params)(params, x).shape == (3, 2)
    predict = package.predict.gradient_descent_mse(kernel, jnp.ones((3, 2)))
    assert predict(jnp.arange(5.0), jnp.zeros((3, 2))).shape == (5, 3, 2)
    first, second = (jax.jit(package.empirical_ntk_fn(apply, (), (), 0, number))(x, x[:2], params) for number in (1, 2))
    np.testing.assert_allclose(first, second, rtol=SUMS)
