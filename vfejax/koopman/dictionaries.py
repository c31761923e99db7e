"""Dictionaries: pure functions that lift states ``x [..., n]`` to observables ``[..., d]``.

    lift = concatenate(polynomials(2, 3), radial(centres, 0.5))

Functions compose as usual: ``lambda x: lift(scale * x)``. What a dictionary learns from data, such
as centres, is an argument.
"""

from collections.abc import Callable
from itertools import combinations_with_replacement

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vfejax.numerics import as_floating, expand_leading, matmul_nt
from vfejax.types import Array

__all__ = [
    "FeatureFn",
    "concatenate",
    "delays",
    "harmonics",
    "polynomials",
    "radial",
    "random_fourier",
]

FeatureFn = Callable[[Array], Array]


def _states(x: Array, dim: int | None = None) -> Array:
    x = as_floating(x, "x")
    if x.ndim < 1 or (dim is not None and x.shape[-1] != dim):
        raise ValueError(f"x must be states [..., {'n' if dim is None else dim}], got {x.shape}")
    return x


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def polynomials(dim: int, degree: int, *, constant: bool = True) -> FeatureFn:
    """All monomials up to a degree, by degree and then in the order of the variables.

    Args:
        dim: numbers in a state, n >= 1.
        degree: largest total degree, at least 1.
        constant: whether the first is 1; it has the eigenvalue 1 whatever the data are.

    Returns:
        ``x [..., n] -> [..., binomial(n + degree, n)]``, one less without the constant.

    Raises:
        ValueError: for a dimension or a degree below 1, and, when called, for other states.

    >>> polynomials(2, 2)(jnp.array([2.0, 3.0])).tolist()
    [1.0, 2.0, 3.0, 4.0, 6.0, 9.0]
    """
    _at_least("dim", dim, 1)
    _at_least("degree", degree, 1)
    terms = [
        np.bincount(np.asarray(term, int), minlength=dim)
        for total in range(0 if constant else 1, degree + 1)
        for term in combinations_with_replacement(range(dim), total)
    ]
    exponents = np.array(terms)

    def lift(x: Array) -> Array:
        x = _states(x, dim)
        powers = [jnp.ones_like(x)]
        for _ in range(degree):
            powers.append(powers[-1] * x)
        table = jnp.stack(powers, axis=-1)
        return jnp.prod(table[..., np.arange(dim)[None, :], exponents], axis=-1)

    return lift


def radial(centres: Array, width: float) -> FeatureFn:
    """Gaussians ``exp(-|x - c|^2 / (2 width^2))`` around centres ``[d, n]``.

    Raises:
        ValueError: for centres of another shape or a width that is not above 0, and, when called,
            for other states.

    >>> z = radial(jnp.array([[0.0], [2.0]]), 1.0)(jnp.array([0.0]))
    >>> [f"{x:.4f}" for x in z]
    ['1.0000', '0.1353']
    """
    centres = as_floating(centres, "centres")
    if centres.ndim != 2:
        raise ValueError(f"centres must be [d, n], got shape {centres.shape}")
    if not width > 0:
        raise ValueError(f"width must be above 0, got {width}")
    width = float(width)  # NumPy's own numbers would widen the states

    def lift(x: Array) -> Array:
        x = _states(x, centres.shape[1])
        apart = x[..., None, :] - expand_leading(centres.astype(x.dtype), x.ndim - 1, core=2)
        return jnp.exp(-0.5 * jnp.sum((apart / width) ** 2, axis=-1))

    return lift


def random_fourier(
    key: Array, dim: int, num: int, length: float, *, dtype: DTypeLike = jnp.float32
) -> FeatureFn:
    """Random features whose products are on average a Gaussian kernel, ``exp(-|x - y|^2 / (2
    length^2))``.

        phi_j(x) = sqrt(2 / d) cos(omega_j . x + b_j),    omega ~ N(0, 1 / length^2)

    Args:
        key: of ``jax.random``.
        dim: numbers in a state, n >= 1.
        num: features, d >= 1.
        length: of the kernel, above 0, in units of x.
        dtype: of the frequencies; states must have it.

    Returns:
        ``x [..., n] -> [..., d]``.

    Raises:
        ValueError: for arguments out of range, and, when called, for other states.

    Source: Rahimi and Recht, Random features for large-scale kernel machines (2007).

    >>> lift = random_fourier(jax.random.key(0), 2, 500, 1.0)
    >>> z = lift(jnp.array([[0.0, 0.0], [1.0, 0.0]]))
    >>> bool(abs(z[0] @ z[1] - jnp.exp(-0.5)) < 0.1)
    True
    """
    _at_least("dim", dim, 1)
    _at_least("num", num, 1)
    if not length > 0:
        raise ValueError(f"length must be above 0, got {length}")
    num, length = int(num), float(length)  # NumPy's own numbers would widen the states
    direction_key, phase_key = jax.random.split(key)
    omega = jax.random.normal(direction_key, (num, dim), dtype) / length
    phase = jax.random.uniform(phase_key, (num,), dtype, maxval=2.0 * np.pi)

    def lift(x: Array) -> Array:
        angle = matmul_nt(_states(x, dim)[..., None, :], omega)[..., 0, :]
        return (2.0 / num) ** 0.5 * jnp.cos(angle + jnp.broadcast_to(phase, angle.shape))

    return lift


def harmonics(degree: int, period: float = 1.0) -> FeatureFn:
    """``1, cos(2 pi k x / period), sin(2 pi k x / period)`` for k = 1 .. degree, of states of one
    number.

    Raises:
        ValueError: for a degree below 1 or a period that is not above 0, and, when called, for
            states of more numbers.

    >>> harmonics(1)(jnp.array([0.25])).round(4).tolist()
    [1.0, -0.0, 1.0]
    """
    _at_least("degree", degree, 1)
    if not period > 0:
        raise ValueError(f"period must be above 0, got {period}")
    period = float(period)  # NumPy's own numbers would widen the states

    def lift(x: Array) -> Array:
        x = _states(x, 1)
        rates = jnp.arange(1, degree + 1).astype(x.dtype) * (2.0 * np.pi / period)
        angle = x * expand_leading(rates, x.ndim - 1, core=1)
        return jnp.concatenate([jnp.ones_like(x), jnp.cos(angle), jnp.sin(angle)], axis=-1)

    return lift


def delays(series: Array, num: int) -> Array:
    """Delay coordinates: each state with the ``num - 1`` before it, the newest first.

    Args:
        series: ``[t, n]``, in the order of time.
        num: states in a row, at least 1 and at most t.

    Returns:
        ``[t - num + 1, num n]``.

    Raises:
        ValueError: for a series that is shorter, or of another shape.

    >>> delays(jnp.array([[1.0], [2.0], [3.0]]), 2).tolist()
    [[2.0, 1.0], [3.0, 2.0]]
    """
    series = as_floating(series, "series")
    if series.ndim != 2:
        raise ValueError(f"series must be [t, n], got shape {series.shape}")
    if not 1 <= num <= len(series):
        raise ValueError(f"num must be in 1 .. {len(series)}, the length of series, got {num}")
    rows = len(series) - num + 1
    return jnp.concatenate([series[num - 1 - i : num - 1 - i + rows] for i in range(num)], axis=1)


def concatenate(*lifts: FeatureFn) -> FeatureFn:
    """The observables of several dictionaries, one after the other.

    Raises:
        ValueError: for no dictionary.

    >>> both = concatenate(lambda x: x, polynomials(1, 2))
    >>> both(jnp.array([3.0])).tolist()
    [3.0, 1.0, 3.0, 9.0]
    """
    if not lifts:
        raise ValueError("lifts must be at least one dictionary, got none")
    return lambda x: jnp.concatenate([lift(x) for lift in lifts], axis=-1)
