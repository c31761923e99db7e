"""Expectations under a Gaussian belief as functions: quadrature and reparameterised samples.

``expect(f)`` is ``E_q f(x)`` for a function f of one vector. What needs an expectation takes such a
function as an argument, so a closed form can stand in its place.
"""

import itertools
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.beliefs import gaussian
from vfejax.beliefs.gaussian import Gaussian
from vfejax.numerics import expand_leading, matvec
from vfejax.types import Array

__all__ = ["Expectation", "gauss_hermite", "sampled"]


class Expectation(Protocol):
    """``expect(f) -> E_q f(x)``, for f from one event to an array."""

    def __call__(self, function: Callable[[Array], Array], /) -> Array: ...


def gauss_hermite(q: Gaussian, order: int) -> Expectation:
    """Expectation under one Gaussian by a grid of ``order^k`` points, exact for polynomials of
    degree ``2 order - 1`` in every direction of the factor's columns.

    Args:
        q: mean ``[k]``, chol ``[k, k]``, with k small.
        order: points per dimension.

    Raises:
        ValueError: when q is not a single Gaussian.

    >>> expect = gauss_hermite(Gaussian(jnp.ones(1), jnp.eye(1)), order=3)
    >>> round(float(expect(lambda x: x[0] ** 4)), 4)  # 1 + 6 + 3
    10.0
    """
    if q.mean.ndim != 1:
        raise ValueError(f"q must be one Gaussian with mean [k], got mean {q.mean.shape}")
    size = q.mean.shape[-1]
    points, masses = np.polynomial.hermite_e.hermegauss(order)
    grid = np.array(list(itertools.product(points, repeat=size))).reshape(-1, size)
    mass = np.array(list(itertools.product(masses / masses.sum(), repeat=size))).prod(axis=-1)
    at = _at(q, jnp.asarray(grid, q.mean.dtype))
    return lambda function: jnp.tensordot(
        jnp.asarray(mass, q.mean.dtype), jax.vmap(function)(at), axes=1, precision="highest"
    )


def sampled(q: Gaussian, key: Array, num_samples: int) -> Expectation:
    """Average over reparameterised samples ``mu + L eps``: an unbiased estimate, differentiable in
    the mean and the factor of q.

    Every expectation of the returned function uses the same samples.

    Args:
        q: mean ``[k]``, chol ``[k, k]``.
        key: of ``jax.random``.
        num_samples: how many.

    Source: Kingma and Welling, ICLR (2014).

    >>> expect = sampled(Gaussian(jnp.ones(1), jnp.eye(1)), jax.random.key(0), 1000)
    >>> expect(lambda x: x).shape
    (1,)
    """
    at = gaussian.sample(key, q, (num_samples,))
    return lambda function: jnp.mean(jax.vmap(function)(at), axis=0)


def _at(q: Gaussian, noise: Array) -> Array:
    chol = expand_leading(jnp.tril(q.chol), 1, 2)
    return expand_leading(q.mean, 1, 1) + matvec(
        jnp.broadcast_to(chol, (*noise.shape, noise.shape[-1])), noise
    )
