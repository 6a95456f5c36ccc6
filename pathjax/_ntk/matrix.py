"""A kernel as the matrix that it is, its eigenvalues, and the checks of its shape."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pathjax._base.trees import wide
from pathjax._linalg.lapack import eigvalsh

__all__ = ["as_matrix", "check_square", "eigenvalues", "square_matrix"]


def as_matrix(kernel: Any) -> Any:
    """A kernel (n, m, o, o) as a matrix (n·o, m·o), rows and columns ordered by example, then by output."""
    _check_array(kernel)
    if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3]:
        raise ValueError(
            f"A finite kernel has shape (n, m, o, o), but {kernel.shape} came. An infinite-width kernel Θ (n, m) has "
            f"the eigenvalues of Θ[:, :, None, None], each o times.{_of_each_output(kernel)}"
        )
    n, m, o, _ = kernel.shape
    return jnp.swapaxes(kernel, 1, 2).reshape(n * o, m * o)


def square_matrix(kernel: Any) -> Any:
    """The kernel (n, n, o, o) of one batch with itself as a matrix (n·o, n·o)."""
    check_square(kernel)
    return as_matrix(kernel)


def check_square(kernel: Any) -> None:
    """Raise ValueError unless this is the kernel (n, n, o, o) of one batch with itself, and TypeError for no array."""
    _check_array(kernel)
    if kernel.ndim != 4 or kernel.shape[0] != kernel.shape[1] or kernel.shape[2] != kernel.shape[3]:
        raise ValueError(
            f"The kernel of one batch with itself, (n, n, o, o), was expected, but {kernel.shape} came. Leave out "
            "`x2` when computing it by `ntk.empirical`; of an infinite-width kernel Θ (n, n), pass "
            f"`jnp.einsum('ij,ab->ijab', Θ, jnp.eye(o))`.{_of_each_output(kernel)}"
        )


def _check_array(kernel: Any) -> None:
    if not hasattr(kernel, "ndim"):
        raise TypeError(
            f"A kernel was expected as an array, but `{type(kernel).__name__}` came. `ntk.empirical` gives Θ as an "
            "array; what `ntk.mean_field` gives has one as its field `ntk`. Of an `ntk.operator` or a Path Kernel, "
            "`top_eigenpairs` of its module gives the largest eigenvalues, and the critical learning rate is "
            "2 / top_eigenpairs(kernel, 1, key=key).eigenvalues[0]."
        )


def _of_each_output(kernel: Any) -> str:
    """What to pass in place of kernels for each output."""
    if kernel.ndim != 3:
        return ""
    remedy = "jnp.einsum('ija,ab->ijab', Θ, jnp.eye(o))"
    return f" Of kernels Θ (n, n, o) for each output, as of `ntk.mean_field`, pass `{remedy}`."


def eigenvalues(kernel: Any) -> Any:
    """The eigenvalues in ascending order, of a kernel (n, n, o, o) or of one for each output, (n, n, o)."""
    _check_array(kernel)
    if kernel.ndim != 3 or kernel.shape[0] != kernel.shape[1]:
        return eigvalsh(wide(square_matrix(kernel)))
    # 0 between different outputs: one matrix for each
    return jnp.sort(jax.vmap(eigvalsh)(jnp.moveaxis(wide(kernel), 2, 0)), axis=None)
