"""Nodes that are not conjugate to a Gaussian parent: the expected log normaliser is exact where it
has a closed form, else Gauss-Hermite quadrature.

Their log density is not linear in the expected statistics of the parent. Its gradient is still the
message of a natural-gradient step, and :mod:`vfejax.inference.message_passing.coordinate_ascent`
takes the longest step that does not lower the ELBO.

Source: Khan and Lin, AISTATS (2017).
"""

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.beliefs.exponential_families import Natural, Statistics
from vfejax.beliefs.families import BERNOULLI, GAUSSIAN, MULTIVARIATE_GAUSSIAN, POISSON
from vfejax.inference.message_passing.graph import Node, Parent
from vfejax.numerics import as_floating, cast_like, matmul, matvec
from vfejax.types import Array

__all__ = ["bernoulli_logit", "linear_predictor", "poisson_log_rate"]

Message = tuple[Natural, Array]


def bernoulli_logit(logit: Parent, plates: tuple[int, ...] | None = None, order: int = 20) -> Node:
    """0 or 1 with log odds ``logit``: ``p(1) = 1 / (1 + exp(-logit))``.

    ``E log (1 + exp u)`` of a Gaussian u is a Gauss-Hermite sum of ``order`` terms. With 20 its
    error is below 3e-11 for a standard deviation of 1, 2e-6 for 2 and 3e-3 for 5.

    Args:
        logit: a Gaussian node or numbers.
        plates: leading shape.
        order: number of quadrature points.

    >>> bernoulli_logit("u").conjugate
    False
    """
    points, masses = np.polynomial.hermite_e.hermegauss(order)
    masses = masses / masses.sum()

    def natural(logit: Statistics) -> Message:
        mean, second = logit
        scale = jnp.sqrt(second - mean**2)
        at = mean[..., None] + scale[..., None] * _row(points, mean)
        return (mean,), jnp.sum(jax.nn.softplus(at) * _row(masses, mean), axis=-1)

    slots = (("logit", (GAUSSIAN,)),)
    return Node(BERNOULLI, (logit,), slots, natural, plates, conjugate=False)


def _row(numbers: np.ndarray, like: Array) -> Array:
    return jnp.reshape(jnp.asarray(numbers, like.dtype), (1,) * like.ndim + numbers.shape)


def poisson_log_rate(log_rate: Parent, plates: tuple[int, ...] | None = None) -> Node:
    """Counts with expectation ``exp(log_rate)``: ``E exp u = exp(mean + variance / 2)``, exact.

    Args:
        log_rate: a Gaussian node or numbers.
        plates: leading shape.

    >>> poisson_log_rate("u").conjugate
    False
    """

    def natural(log_rate: Statistics) -> Message:
        mean, second = log_rate
        return (mean,), jnp.exp(mean + 0.5 * (second - mean**2))

    slots = (("log_rate", (GAUSSIAN,)),)
    return Node(POISSON, (log_rate,), slots, natural, plates, conjugate=False)


def linear_predictor(child: Node, weights: Parent, design: Array) -> Node:
    """A child of one Gaussian number, given ``u_n = design_n . weights`` instead: logistic or
    Poisson regression.

    Args:
        child: :func:`bernoulli_logit`, :func:`poisson_log_rate`; its own parent is replaced.
        weights: a multivariate Gaussian node without plates.
        design: ``[n, k]``.

    Raises:
        ValueError: when ``design`` is not a matrix.

    >>> linear_predictor(bernoulli_logit("u"), "weights", jnp.ones((10, 3))).parents
    ('weights',)
    """
    design = as_floating(design, "design")
    if design.ndim != 2:
        raise ValueError(f"design must be [n, k], got shape {design.shape}")

    def natural(weights: Statistics) -> Message:
        rows = cast_like(design, weights[0])
        second = jnp.sum(matmul(rows, weights[1]) * rows, axis=-1)
        return child.natural((matvec(rows, weights[0]), second))

    slots = (("weights", (MULTIVARIATE_GAUSSIAN,)),)
    return child._replace(parents=(weights,), slots=slots, natural=natural)
