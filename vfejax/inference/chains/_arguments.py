"""Checks of the arguments of hidden Markov chains, with errors that name the argument."""

from typing import Any

import numpy as np

from vfejax.numerics import as_floating, common_dtype
from vfejax.types import Array

__all__ = ["check_columns", "checked"]


def checked(model: Any, log_likelihood: Array) -> tuple[Array, Array, Array]:
    """Initial, transition and log likelihoods, floating and of one dtype.

    Args:
        model: a ``HiddenMarkov``.
        log_likelihood: ``[t, k]``.

    Raises:
        ValueError: naming the argument that does not fit.

    >>> from vfejax.inference.chains.hidden_markov import HiddenMarkov
    >>> checked(HiddenMarkov(np.ones(1), np.eye(1)), np.zeros((3, 1), int))[2].dtype.kind
    'f'
    """
    initial, transition = (
        as_floating(x, f"model.{name}")
        for x, name in ((model.initial, "initial"), (model.transition, "transition"))
    )
    found = as_floating(log_likelihood, "log_likelihood")
    if initial.ndim != 1 or not initial.shape[0]:
        raise ValueError(f"model.initial must be [k], got shape {list(initial.shape)}")
    k = initial.shape[0]
    if found.ndim != 2 or found.shape[1] != k or not found.shape[0]:
        raise ValueError(f"log_likelihood must be [t, {k}], t >= 1; got {list(found.shape)}")
    t = found.shape[0]
    if transition.shape not in ((k, k), (t - 1, k, k)):
        raise ValueError(
            f"model.transition must be [{k}, {k}] or [{t - 1}, {k}, {k}] for {t} observations, got "
            f"{list(transition.shape)}"
        )
    dtype = common_dtype(initial, transition, found)
    return initial.astype(dtype), transition.astype(dtype), found.astype(dtype)


def check_columns(name: str, value: Array) -> None:
    """Refuse concrete probabilities that are negative or not finite, or whose columns do not sum to
    1.

    Args:
        name: of the field.
        value: ``[k]``, or ``[..., j, k]`` with columns along the axis before the last.

    Raises:
        ValueError: naming the entry or the column.

    >>> check_columns("transition", np.eye(2))
    """
    array = np.asarray(value)
    bad = np.argwhere(~np.isfinite(array) | (array < 0))
    if len(bad):
        raise ValueError(
            f"{name} must hold probabilities; entry {bad[0].tolist()} is {array[tuple(bad[0])]:.6g}"
        )
    axis = 0 if array.ndim == 1 else -2
    sums = array.astype(np.float64).sum(axis=axis)
    eps = np.finfo(array.dtype if array.dtype.kind == "f" else float).eps
    off = np.argwhere(np.abs(sums - 1) > 100 * array.shape[axis] * eps)
    if len(off):
        place = off[0].tolist()
        where = "" if array.ndim == 1 else f"column {place[-1]} "
        where = where + (f"at time {place[0]} " if array.ndim == 3 else "")
        hint = ""
        if array.ndim == 2 and np.allclose(array.sum(axis=1), 1.0):
            hint = "; its rows sum to 1: transpose it"
        raise ValueError(
            f"{name}: {where}must sum to 1; it sums to {sums[tuple(off[0])]:.6g}{hint}"
        )
