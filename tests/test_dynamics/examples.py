"""Kernels of linear networks, with points that were not trained on."""

import jax.numpy as jnp
import numpy as np

RATE = 0.05


def problem(n=4, o=3, p=20, m=2, seed=0):
    """Jacobians of p weights at n training and m test points, with outputs and targets: a dictionary of arrays.

    The Jacobians are those of f(x) = f_0(x) + J(x) θ, so Θ is singular where p < n·o.
    """
    rng = np.random.default_rng(seed)
    train, test = rng.normal(size=(n, o, p)), rng.normal(size=(m, o, p))
    found = {
        "ntk": np.einsum("iap,jbp->ijab", train, train),
        "outputs": rng.normal(size=(n, o)),
        "targets": rng.normal(size=(n, o)),
        "test_ntk": np.einsum("iap,jbp->ijab", test, train),
        "test_outputs": rng.normal(size=(m, o)),
        "train_jacobian": train,
        "test_jacobian": test,
    }
    return {name: jnp.asarray(array) for name, array in found.items()}


def prediction(function, case, targets, times, *, test=True, rate=RATE, **options):
    """The function on a case, on its test points or on its training points."""
    if test:
        options |= {"test_ntk": case["test_ntk"], "test_outputs": case["test_outputs"]}
    return function(case["ntk"], case["outputs"], targets, times, learning_rate=rate, **options)


def trained(case, slope, times, rate=RATE):
    """Outputs (t, n, o) and (t, m, o) of the linear network itself, whose weights descend step by step.

    `slope(outputs)` is the derivative of the loss by the training outputs.
    """
    train, test = np.asarray(case["train_jacobian"]), np.asarray(case["test_jacobian"])
    weights = np.zeros(train.shape[2])
    found = {}
    for step in range(max(times) + 1):
        outputs = np.asarray(case["outputs"]) + train @ weights
        if step in times:
            found[step] = outputs, np.asarray(case["test_outputs"]) + test @ weights
        weights = weights - rate * np.einsum("iap,ia->p", train, slope(outputs))
    return tuple(np.stack(each) for each in zip(*(found[time] for time in times), strict=True))
