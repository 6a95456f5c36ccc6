import jax
import jax.numpy as jnp
import numpy as np

from experiments import listed, models
from pathjax import ntk

SHAPE = (4, 4, 1)


def model_of(width):
    return models.MODELS["fc"](SHAPE, 3, width=width)


def test_kernels_are_kaiming_normal_and_biases_start_at_zero():
    params = model_of(300).init(jax.random.key(0))["params"]
    assert {name: layer["kernel"].shape for name, layer in params.items()} == {
        "Dense_0": (16, 300),
        "Dense_1": (300, 300),
        "Dense_2": (300, 300),
        "Dense_3": (300, 3),
    }
    for layer in params.values():
        assert not layer["bias"].any()
    kernel = np.asarray(params["Dense_1"]["kernel"])
    np.testing.assert_allclose(kernel.var(), 2 / 300, rtol=0.02)
    # a normal and no truncated one: 4.6% beyond two standard deviations
    np.testing.assert_allclose(np.mean(np.abs(kernel) > 2 * kernel.std()), 0.0455, rtol=0.05)


def test_outputs_are_one_row_per_image():
    model = model_of(5)
    assert model.apply(model.init(jax.random.key(0)), jnp.ones((7, *SHAPE))).shape == (7, 3)


def test_the_mean_ntk_over_seeds_is_near_that_of_the_infinite_twin():
    model = model_of(100)
    x = jax.random.normal(jax.random.key(1), (4, *SHAPE), jnp.float32)
    kernel_of = jax.jit(lambda key: ntk.empirical(model.apply, model.init(key), x))
    mean = sum(kernel_of(key) for key in jax.random.split(jax.random.key(0), 60)) / 60
    # one network is about a half off at this width, the mean of sixty within the noise of its own
    assert ntk.relative_distance(mean, ntk.infinite(model.kernel_fn, x)) < 0.15


def test_the_factorization_holds_on_listed_paths():
    assert listed.factorization_error() < 1e-10
