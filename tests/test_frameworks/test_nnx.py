"""A user's script with Flax NNX: prune at initialization, train with batch norm and dropout, evaluate, save, load."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from pathjax import masks, path_kernel, pruning, scores

from .another_process import read_in_another_process


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.output = nnx.Linear(72, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        x = nnx.avg_pool(x, (2, 2), strides=(2, 2))
        return self.output(self.dropout(x.reshape(len(x), -1)))


def images(key):
    """60 images of three classes: a class is the third of the image that is brighter."""
    labels = jnp.arange(60) % 3
    stripes = jnp.repeat(jnp.eye(3)[labels], 2, axis=1)[:, :, None, None]
    return jnp.asarray(stripes + 0.3 * jax.random.normal(key, (60, 6, 6, 1)), jnp.float32), labels


@pytest.mark.parametrize("method", ("synflow", "snip"))
def test_a_network_is_pruned_trained_saved_and_loaded(method, tmp_path):
    x, y = images(jax.random.key(0))

    # init
    model = Net(nnx.Rngs(params=1, dropout=2))

    # prune, with batch norm and dropout in evaluation mode
    model.eval()
    graphdef, params, state = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]

    def apply(params, state, x):
        return nnx.merge(graphdef, params, state)(x)

    def score(params, key):
        if method == "synflow":
            return scores.synflow(apply, params, x, state=state)
        return scores.snip(apply, params, [(x, y)], state=state)

    rounds = 20 if method == "synflow" else 1
    mask = pruning.prune(score, params, density=0.2, rounds=rounds)
    kernels = 3 * 3 * 8 + 3 * 3 * 8 * 3
    assert int(masks.count(mask)) == round(0.2 * kernels)

    # train, with batch norm and dropout in training mode
    nnx.update(model, masks.apply_mask(mask, params))
    optimizer = nnx.Optimizer(model, masks.freeze(optax.adamw(0.02), mask), wrt=nnx.Param)
    model.train()

    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(loss)(model))

    for _ in range(40):
        step(model, optimizer)
        weights = nnx.state(model, nnx.Param)
        jax.tree.map(lambda leaf, kept: np.testing.assert_array_equal(leaf[~kept], 0.0), weights, mask)

    # evaluate
    model.eval()
    assert jnp.mean(model(x).argmax(axis=1) == y) > 0.9

    # save, and load in another process
    masks.save(tmp_path / "mask.npz", mask)
    read = read_in_another_process(tmp_path, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    assert read == {"kept": round(0.2 * kernels), "pruned are 0": True}


def test_a_kernel_stays_as_it_was_made_when_the_model_is_trained():
    """The state that `nnx.split` gives holds the model's own variables."""
    x, _ = images(jax.random.key(0))
    model = Net(nnx.Rngs(params=1, dropout=2))
    model.eval()
    graphdef, params, state = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]

    def apply(params, state, x):
        return nnx.merge(graphdef, params, state)(x)

    kernel = path_kernel.path_kernel(apply, params, x, state=state)
    before = kernel.trace()
    model.train()
    model(10 * x + 3)
    assert jnp.any(state["norm"]["mean"][...] != 0)
    np.testing.assert_array_equal(kernel.trace(), before)
    after = path_kernel.path_kernel(apply, params, x, state=state)
    with pytest.raises(ValueError, match="The two kernels are of different states"):
        path_kernel.cosine(kernel, after, key=jax.random.key(0))


@pytest.mark.parametrize("rewind", [0, 1])
@pytest.mark.parametrize("how", ["update", "merge"])
def test_every_level_of_a_lottery_ticket_starts_from_what_was_rewound(how, rewind):
    """`nnx.split` gives the model's own variables, and `nnx.merge` makes a model of these: training changes them."""
    x, y = images(jax.random.key(0))
    own = Net(nnx.Rngs(params=1, dropout=2))
    own.train()
    graphdef, params, state = nnx.split(own, nnx.Param, ...)  # type: ignore[misc]
    starts = []

    def train(params, state, mask, start, stop, key):
        if how == "merge":
            model = nnx.merge(graphdef, params, state)
        else:
            model = own
            nnx.update(model, params, state)
        starts.append((float(model.norm.mean[...].sum()), float(model.norm.bias[...].sum())))
        model(x)
        model.norm.bias[...] = model.norm.bias[...] + 1.0
        _, params, state = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
        return params, state

    ticket = pruning.lottery_ticket(train, params, steps=2, density=0.5, pruned=0.3, rewind=rewind, state=state)
    assert starts[0] == (0.0, 0.0)
    levels = starts[rewind:]
    assert len(levels) == 2 and levels[0] == levels[1] and levels[0][1] == 8.0 * rewind
    assert (float(ticket.state["norm"]["mean"].sum()), float(ticket.params["norm"]["bias"].sum())) == levels[0]
