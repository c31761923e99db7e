"""Generalised coordinates of motion: a path as its value and its derivatives at one time.

A path ``x~ = (x, x', x'', ...)`` is an array ``[order, n]``: row i is the i-th derivative, in units
of x per time^i. *Order* counts the rows, the value included.

Functions of a path. The generalised motion ``f~`` of ``f(x, v)`` is the list of time derivatives of
``f(x(t), v(t))``. Three functions compute it, and a model takes one of them:

- :func:`locally_linear`: ``f, J x', J x'', ...``, exact for linear f. What Friston et al. (2008)
  use, and the default.
- :func:`by_taylor`: exact, by ``jax.experimental.jet``, in O(order^2) operations for each one of f.
  At order 6 it compiled three to six times faster than the next. Functions with a primitive that
  has no Taylor rule (those of :mod:`vfejax.numerics` among them) raise KeyError or
  NotImplementedError.
- :func:`by_jvp`: exact, by nested ``jax.jvp``, for every function. The program doubles with each
  order.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.jet import jet
from jax.typing import ArrayLike

from vfejax.types import Array

__all__ = [
    "DerivativesFn",
    "advance",
    "along_flow",
    "by_jvp",
    "by_taylor",
    "locally_linear",
    "resize",
    "shift",
    "shift_matrix",
]


class DerivativesFn(Protocol):
    """Time derivatives of ``function`` along paths: ``(function, *paths [order, n]) -> [order,
    o]``."""

    def __call__(self, function: Callable[..., Array], /, *paths: Array) -> Array: ...


def shift(path: Array) -> Array:
    """``D x~ = (x', x'', ..., 0)``: the motion of a path, whose last derivative has none.

    Args:
        path: ``[order, n]``.

    Returns:
        ``[order, n]``.

    >>> shift(jnp.array([[1.0], [2.0], [3.0]]))[:, 0].tolist()
    [2.0, 3.0, 0.0]
    """
    return jnp.concatenate([path[1:], jnp.zeros_like(path[:1])])


def shift_matrix(paths: Sequence[Array]) -> Array:
    """D as a matrix on several paths, each flattened and one after the other.

    Args:
        paths: ``[order_i, n_i]`` each.

    Returns:
        ``[size, size]`` with ``size = sum_i order_i n_i``.

    >>> shift_matrix([jnp.zeros((2, 1))]).tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    """
    size = sum(path.size for path in paths)
    matrix, start = np.zeros((size, size)), 0
    for rows, columns in (path.shape for path in paths):
        here = np.arange(start, start + (rows - 1) * columns)
        matrix[here, here + columns] = 1.0
        start += rows * columns
    return jnp.asarray(matrix, paths[0].dtype)


def advance(path: Array, time: ArrayLike) -> Array:
    """``exp(D time) x~``: the Taylor series of a path at another time.

    Args:
        path: ``[order, n]``.
        time: how much later; negative for earlier.

    Returns:
        ``[order, n]``.

    >>> advance(jnp.array([[1.0], [2.0], [4.0]]), 0.5)[:, 0].tolist()
    [2.5, 4.0, 4.0]
    """
    total, term = path, path
    for k in range(1, path.shape[0]):
        term = shift(term) * (jnp.asarray(time, path.dtype) / k)
        total = total + term
    return total


def resize(path: Array, order: int) -> Array:
    """A path with ``order`` rows: cut off, or continued by derivatives that are 0.

    Args:
        path: ``[any, n]``.
        order: number of rows wanted.

    Returns:
        ``[order, n]``.

    >>> resize(jnp.ones((1, 2)), 2).tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """
    path = path[:order]
    missing = jnp.zeros((order - path.shape[0], *path.shape[1:]), path.dtype)
    return jnp.concatenate([path, missing])


def by_taylor(function: Callable[..., Array], /, *paths: Array) -> Array:
    """Derivatives of ``function`` along paths, by Taylor-mode differentiation.

    Args:
        function: ``(*points [n_i]) -> [o]``.
        *paths: ``[order, n_i]`` each.

    Returns:
        ``[order, o]``.

    Raises:
        KeyError, NotImplementedError: when the function uses a primitive without Taylor rule.

    Source: Griewank and Walther, Evaluating Derivatives (2008), chapter 13.

    >>> by_taylor(lambda x: x * x, jnp.array([[1.0], [1.0], [0.0]]))[:, 0].round(3).tolist()
    [1.0, 2.0, 2.0]
    """
    points = tuple(path[0] for path in paths)
    if paths[0].shape[0] == 1:
        return function(*points)[None]
    value, derivatives = jet(function, points, tuple(list(path[1:]) for path in paths))
    return jnp.stack([value, *derivatives])


def by_jvp(function: Callable[..., Array], /, *paths: Array) -> Array:
    """Derivatives of ``function`` along paths, by nested forward differentiation in time.

    Args:
        function: ``(*points [n_i]) -> [o]``.
        *paths: ``[order, n_i]`` each.

    Returns:
        ``[order, o]``.

    >>> by_jvp(lambda x: x**2, jnp.array([[1.0], [1.0], [0.0]]))[:, 0].tolist()
    [1.0, 2.0, 2.0]
    """

    def point(path: Array, time: Array) -> Array:
        total = jnp.zeros_like(path[0])
        for k in reversed(range(path.shape[0])):
            total = path[k] + total * time / (k + 1)
        return total

    def slope(of: Callable[[Array], Array], time: Array) -> Array:
        return jax.jvp(of, (time,), (jnp.ones_like(time),))[1]

    def value(time: Array) -> Array:
        return function(*(point(p, time) for p in paths))

    along: Callable[[Array], Array] = value
    now, derivatives = jnp.zeros((), paths[0].dtype), []
    for _ in range(paths[0].shape[0]):
        derivatives.append(along(now))
        along = partial(slope, along)
    return jnp.stack(derivatives)


def locally_linear(function: Callable[..., Array], /, *paths: Array) -> Array:
    """``f, J x', J x'', ...`` with the Jacobian J at the value: exact for linear functions.

    Args:
        function: ``(*points [n_i]) -> [o]``.
        *paths: ``[order, n_i]`` each.

    Returns:
        ``[order, o]``.

    Source: Friston et al., NeuroImage 41 (2008) 849, equation (3).

    >>> locally_linear(lambda x: x**2, jnp.array([[1.0], [1.0], [0.0]]))[:, 0].tolist()
    [1.0, 2.0, 0.0]
    """
    value, push = jax.linearize(function, *(path[0] for path in paths))
    return jnp.concatenate([value[None], jax.vmap(push)(*(path[1:] for path in paths))])


def along_flow(
    function: Callable[[Array], Array],
    flow_fn: Callable[[Array], Array],
    state: Array,
    order: int,
) -> Array:
    """Derivatives in time of ``function(x(t))`` where ``dx/dt = flow_fn(x)``: exact, by nested
    forward differentiation. The program doubles with each order.

    Args:
        function: ``(state [n]) -> [o]``.
        flow_fn: ``(state [n]) -> [n]``.
        state: where they are taken, ``[n]``.
        order: number of derivatives, the value included.

    Returns:
        ``[order, o]``.

    >>> along_flow(lambda x: x**2, lambda x: -x, jnp.array([1.0]), 3)[:, 0].tolist()
    [1.0, -2.0, 4.0]
    """

    def slope(of: Callable[[Array], Array], x: Array) -> Array:
        return jax.jvp(of, (x,), (flow_fn(x),))[1]

    derivatives = []
    for _ in range(order):
        derivatives.append(function(state))
        function = partial(slope, function)
    return jnp.stack(derivatives)
