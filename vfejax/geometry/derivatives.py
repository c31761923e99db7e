"""Derivatives of fields along the axes of a uniform grid.

Each function has the form ``(moments, grid) -> slopes`` that :mod:`vfejax.agents.pullback` takes:
mean ``[*grid, k]`` and covariance ``[*grid, k, k]`` of a belief, to the derivatives ``[d, *grid,
...]`` of both along the d axes. The first two serve every pair (and tree) of fields.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.geometry.connection import Links, existing_links
from vfejax.geometry.grid import Grid
from vfejax.numerics import identity_like, matmul, matvec, transpose
from vfejax.types import Array, PyTree

__all__ = ["DerivativeFn", "central_differences", "covariant_differences", "spectral_derivatives"]

DerivativeFn = Callable[[Any, Grid], Any]
"""``(fields [*grid, ...], grid) -> derivatives [d, *grid, ...]``, of a tree of fields."""


def _axes(grid: Grid) -> range:
    """The axes of a grid.

    Raises:
        ValueError: for fewer than three points along one of them.
    """
    shape = grid.quadrature.shape
    if any(num < 3 for num in shape):
        raise ValueError(f"derivatives need at least 3 points along each axis, got a grid {shape}")
    return range(len(shape))


def _spacing(grid: Grid, axis: int, dtype: jnp.dtype) -> Array:
    """Distance of neighbours: the period over the number of points, or the length over one less."""
    num, period = grid.quadrature.shape[axis], grid.periods[axis]
    along = jnp.moveaxis(grid.points[..., axis], axis, 0).reshape(num, -1)[:, 0]
    step = jnp.where(jnp.isinf(period), (along[-1] - along[0]) / (num - 1), period / num)
    return step.astype(dtype)


def _select(grid: Grid, axis: int, first: Array, inner: Array, last: Array) -> Array:
    """``inner``, but ``first`` and ``last`` at the two ends of an open axis."""
    num = grid.quadrature.shape[axis]
    along = [1] * inner.ndim
    along[axis] = num
    place = jnp.reshape(jnp.arange(num), along)
    is_open = jnp.isinf(grid.periods[axis])
    at_first, at_last = (
        jnp.broadcast_to(is_open & (place == end), inner.shape) for end in (0, num - 1)
    )
    return jnp.where(at_first, first, jnp.where(at_last, last, inner))


def _difference(grid: Grid, axis: int, shifted: Callable[[int], Array]) -> Array:
    """Second-order difference of a field whose value at ``c + steps``, seen from c, is
    ``shifted(steps)``.
    """
    here, ahead, behind = shifted(0), shifted(1), shifted(-1)
    first = 2.0 * ahead - 0.5 * shifted(2) - 1.5 * here
    last = 1.5 * here - 2.0 * behind + 0.5 * shifted(-2)
    change = _select(grid, axis, first, 0.5 * (ahead - behind), last)
    return change / _spacing(grid, axis, here.dtype)


def central_differences(fields: PyTree, grid: Grid) -> PyTree:
    """Second-order differences: ``(f(c + h) - f(c - h)) / 2h``, and ``(-3 f(c) + 4 f(c + h) - f(c +
    2h)) / 2h`` at the ends of an open axis.

    Exact for polynomials of degree two on open axes. On a ring ``exp(i n x)`` is differentiated by
    ``i sin(n h) / h`` where ``i n`` is exact.

    Args:
        fields: arrays ``[*grid, ...]``.
        grid: the base manifold; at least three points along each axis.

    Returns:
        Arrays ``[d, *grid, ...]``.

    Raises:
        ValueError: for fewer than three points along an axis.

    >>> from vfejax.geometry.grid import line
    >>> central_differences(jnp.array([0.0, 1.0, 4.0]), line(3, length=2.0))[0]
    Array([0., 2., 4.], dtype=float32)
    """

    def along(field: Array, axis: int) -> Array:
        return _difference(grid, axis, lambda steps: jnp.roll(field, -steps, axis))

    axes = _axes(grid)
    return jax.tree.map(lambda field: jnp.stack([along(field, axis) for axis in axes]), fields)


def spectral_derivatives(fields: PyTree, grid: Grid) -> PyTree:
    """Derivatives of the trigonometric interpolation on rings and tori, by the fast Fourier
    transform.

    Exact for trigonometric polynomials of degree below half the number of points. The highest
    frequency of an even number of points has no derivative on the grid and counts as constant.

    Args:
        fields: arrays ``[*grid, ...]``.
        grid: the base manifold, all of whose axes are periodic.

    Returns:
        Arrays ``[d, *grid, ...]``; NaN along an open axis whose period is traced.

    Raises:
        ValueError: for an open axis, or fewer than three points along one.

    >>> from vfejax.geometry.grid import ring
    >>> circle = ring(8)
    >>> slope = spectral_derivatives(jnp.sin(circle.points[:, 0]), circle)[0]
    >>> bool(jnp.allclose(slope, jnp.cos(circle.points[:, 0]), atol=1e-6))
    True
    """
    axes = _axes(grid)
    if not isinstance(grid.periods, jax.core.Tracer) and np.any(np.isinf(grid.periods)):
        raise ValueError(
            "spectral_derivatives need a grid whose axes are all periodic, got periods "
            f"{np.asarray(grid.periods).tolist()}; use central_differences"
        )

    def along(field: Array, axis: int) -> Array:
        num = grid.quadrature.shape[axis]
        orders = np.fft.rfftfreq(num, 1.0 / num)
        orders = np.where(2 * orders == num, 0.0, orders)
        rate = 2 * np.pi * jnp.asarray(orders, field.dtype)
        rate = rate.reshape([-1 if i == axis else 1 for i in range(field.ndim)])
        modes = jnp.fft.rfft(field, axis=axis)
        turned = jax.lax.complex(-rate * modes.imag, rate * modes.real)
        period = grid.periods[axis].astype(field.dtype)
        period = jnp.where(jnp.isinf(period), jnp.nan, period)
        return jnp.fft.irfft(turned, num, axis=axis) / period

    return jax.tree.map(lambda field: jnp.stack([along(field, axis) for axis in axes]), fields)


def _straight(links: Links, axis: int, steps: int) -> Array:
    """Transport from ``c + steps`` to c along an axis, ``[*grid, k, k]``."""
    total = identity_like(links.forward[axis])
    for i in range(abs(steps)):
        link, offset = (links.forward, i) if steps > 0 else (links.backward, -i - 1)
        total = matmul(total, jnp.roll(link[axis], -offset, axis))
    return total


def covariant_differences(links: Links) -> DerivativeFn:
    """Second-order differences with a connection: neighbours are transported along links before
    they are subtracted.

    The mean at ``c + mu`` counts as ``V m`` and the covariance as ``V S V^T``, with ``V =
    V_mu(c)``. For the links of a smooth connection this approaches ``d_mu m + A_mu m`` and ``d_mu S
    + A_mu S + S A_mu^T``. A change of gauge of the links and of the moments turns the result along,
    exactly.

    Args:
        links: ``[d, *grid, k, k]``.

    Returns:
        A function ``((mean [*grid, k], covariance [*grid, k, k]), grid) -> derivatives [d, *grid,
        ...]``, with one-sided differences at the ends of an open axis. It raises ValueError as
        :func:`central_differences` does, and where the links do not stand on the grid.

    >>> from vfejax.geometry import irreps
    >>> from vfejax.geometry.connection import pure_gauge
    >>> from vfejax.geometry.grid import ring
    >>> circle, group = ring(8), irreps.so(2)
    >>> phi = circle.points  # frames that turn once around
    >>> mean = jnp.concatenate([jnp.cos(phi), jnp.sin(phi)], axis=-1)  # as the mean does
    >>> derivative_fn = covariant_differences(pure_gauge(phi, group, circle))
    >>> slope, _ = derivative_fn((mean, jnp.tile(jnp.eye(2), (8, 1, 1))), circle)
    >>> bool(jnp.allclose(slope, 0.0, atol=1e-6))
    True
    """

    def derivatives(moments: tuple[Array, Array], grid: Grid) -> tuple[Array, Array]:
        known = existing_links(links, grid)
        mean, cov = moments

        def along(axis: int) -> tuple[Array, Array]:
            def carried(steps: int) -> Array:
                path = _straight(known, axis, steps)
                vector = matvec(path, jnp.roll(mean, -steps, axis))
                matrix = matmul(matmul(path, jnp.roll(cov, -steps, axis)), transpose(path))
                return jnp.concatenate([vector[..., None], matrix], axis=-1)

            change = _difference(grid, axis, carried)
            return change[..., 0], change[..., 1:]

        slopes = [along(axis) for axis in _axes(grid)]
        return jnp.stack([s[0] for s in slopes]), jnp.stack([s[1] for s in slopes])

    return derivatives
