"""The exponential families that beliefs take: of numbers, vectors, matrices, counts and states.

Standard parameters are those of the textbooks, in the order given at each family.
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln

from vfejax.beliefs import supports
from vfejax.beliefs.exponential_families import Family, Natural, Statistics
from vfejax.numerics import (
    as_floating,
    cholesky,
    expand_leading,
    log_det_cholesky,
    matmul_tn,
    matvec,
    symmetrize,
    triangular_inverse,
)
from vfejax.types import Array

__all__ = [
    "BERNOULLI",
    "BETA",
    "CATEGORICAL",
    "DIRICHLET",
    "FAMILIES",
    "GAMMA",
    "GAUSSIAN",
    "MULTIVARIATE_GAUSSIAN",
    "POISSON",
    "WISHART",
    "multinomial",
    "one_hot",
]


def one_hot(labels: Array, num_states: int, dtype: jax.typing.DTypeLike) -> Array:
    """Statistics of observed states: 1 at the label, ``[..., num_states]``.

    Args:
        labels: integers ``[...]`` from 0; a row of zeros outside.
        num_states: k.
        dtype: of the result.

    >>> one_hot(jnp.array([1]), 3, jnp.float32).tolist()
    [[0.0, 1.0, 0.0]]
    """
    return jax.nn.one_hot(labels, num_states, dtype=dtype)


def _gaussian_standard(natural: Natural) -> tuple[Array, Array]:
    precision = -2.0 * natural[1]
    return natural[0] / precision, precision


def _gaussian_log_partition(natural: Natural) -> Array:
    mean, precision = _gaussian_standard(natural)
    return 0.5 * (natural[0] * mean - jnp.log(precision) + math.log(2 * math.pi))


def _gaussian_mean(natural: Natural) -> Statistics:
    mean, precision = _gaussian_standard(natural)
    return mean, mean**2 + 1.0 / precision


GAUSSIAN = Family(
    "gaussian",
    (0, 0),
    lambda x: (x, x**2),
    _gaussian_log_partition,
    _gaussian_mean,
    lambda mean, precision: (mean * precision, -0.5 * precision),
    _gaussian_standard,
)
"""Real numbers; standard ``(mean, precision)``, statistics ``(x, x^2)``."""


def _outer(x: Array) -> Array:
    return x[..., :, None] * x[..., None, :]


def _factor(natural: Natural) -> tuple[Array, Array, Array]:
    """Mean, inverse factor ``L^{-1}`` and log determinant of the precision ``L L^T = -2 eta_2``."""
    chol = cholesky(symmetrize(-2.0 * natural[1]))
    inverse = triangular_inverse(chol)
    mean = matvec(jnp.swapaxes(inverse, -1, -2), matvec(inverse, natural[0]))
    return mean, inverse, log_det_cholesky(chol)


def _multivariate_moments(natural: Natural) -> tuple[Statistics, Array]:
    mean, inverse, log_det = _factor(natural)
    square = jnp.sum(natural[0] * mean, axis=-1)
    log_partition = 0.5 * (square - log_det + mean.shape[-1] * math.log(2 * math.pi))
    return (mean, matmul_tn(inverse, inverse) + _outer(mean)), log_partition


MULTIVARIATE_GAUSSIAN = Family(
    "multivariate gaussian",
    (1, 2),
    lambda x: (x, _outer(x)),
    lambda natural: _multivariate_moments(natural)[1],
    lambda natural: _multivariate_moments(natural)[0],
    lambda mean, precision: (matvec(precision, mean), -0.5 * precision),
    lambda natural: (_factor(natural)[0], -2.0 * natural[1]),
    both=_multivariate_moments,
)
"""Vectors ``[..., k]``; standard ``(mean, precision [..., k, k])``, statistics ``(x, x x^T)``."""


def _gamma_standard(natural: Natural) -> tuple[Array, Array]:
    return natural[0] + 1.0, -natural[1]


def _gamma_log_partition(natural: Natural) -> Array:
    shape, rate = _gamma_standard(natural)
    return gammaln(shape) - shape * jnp.log(rate)


def _gamma_mean(natural: Natural) -> Statistics:
    shape, rate = _gamma_standard(natural)
    return digamma(shape) - jnp.log(rate), shape / rate


GAMMA = Family(
    "gamma",
    (0, 0),
    lambda x: (jnp.log(x), x),
    _gamma_log_partition,
    _gamma_mean,
    lambda shape, rate: (shape - 1.0, -rate),
    _gamma_standard,
    support=supports.POSITIVE,
)
"""Positive numbers; standard ``(shape, rate)``, statistics ``(log x, x)``."""


def _wishart_standard(natural: Natural) -> tuple[Array, Array]:
    size = natural[1].shape[-1]
    return 2.0 * natural[0] + size + 1.0, -2.0 * natural[1]


def _halves(dof: Array, size: int) -> Array:
    """``(dof - i) / 2`` for i below ``size``, ``[..., size]``."""
    return 0.5 * (dof[..., None] - expand_leading(jnp.arange(size, dtype=dof.dtype), dof.ndim, 1))


def _wishart_moments(natural: Natural) -> tuple[Statistics, Array]:
    dof, rate = _wishart_standard(natural)
    size = rate.shape[-1]
    chol = cholesky(symmetrize(rate))
    inverse, log_det = triangular_inverse(chol), log_det_cholesky(chol)
    half = _halves(dof, size)
    log_gamma = jnp.sum(gammaln(half), axis=-1) + 0.25 * size * (size - 1) * math.log(math.pi)
    log_partition = 0.5 * dof * (size * math.log(2.0) - log_det) + log_gamma
    log = jnp.sum(digamma(half), axis=-1) + size * math.log(2.0) - log_det
    return (log, dof[..., None, None] * matmul_tn(inverse, inverse)), log_partition


def _wishart_statistics(x: Array) -> Statistics:
    return log_det_cholesky(cholesky(x)), x


def _wishart_natural(dof: Array, rate: Array) -> Natural:
    return 0.5 * (dof - rate.shape[-1] - 1.0), -0.5 * rate


WISHART = Family(
    "wishart",
    (0, 2),
    _wishart_statistics,
    lambda natural: _wishart_moments(natural)[1],
    lambda natural: _wishart_moments(natural)[0],
    _wishart_natural,
    _wishart_standard,
    both=_wishart_moments,
    support=supports.POSITIVE_DEFINITE,
)
"""Positive definite matrices ``[..., k, k]``; standard ``(dof, rate [..., k, k])`` with mean ``dof
rate^{-1}``, statistics ``(log |x|, x)``.
"""


def _dirichlet_log_partition(natural: Natural) -> Array:
    alpha = natural[0] + 1.0
    return jnp.sum(gammaln(alpha), axis=-1) - gammaln(jnp.sum(alpha, axis=-1))


def _dirichlet_mean(natural: Natural) -> Statistics:
    alpha = natural[0] + 1.0
    return (digamma(alpha) - digamma(jnp.sum(alpha, axis=-1, keepdims=True)),)


DIRICHLET = Family(
    "dirichlet",
    (1,),
    lambda x: (jnp.log(x),),
    _dirichlet_log_partition,
    _dirichlet_mean,
    lambda alpha: (alpha - 1.0,),
    lambda natural: (natural[0] + 1.0,),
    support=supports.PROBABILITIES,
)
"""Probabilities ``[..., k]``; standard ``(concentration [..., k],)``, statistics ``(log x,)``."""


def _pair(natural: Natural) -> Natural:
    return (jnp.stack(natural, axis=-1),)


def _beta_mean(natural: Natural) -> Statistics:
    (logs,) = _dirichlet_mean(_pair(natural))
    return logs[..., 0], logs[..., 1]


BETA = Family(
    "beta",
    (0, 0),
    lambda x: (jnp.log(x), jnp.log1p(-x)),
    lambda natural: _dirichlet_log_partition(_pair(natural)),
    _beta_mean,
    lambda a, b: (a - 1.0, b - 1.0),
    lambda natural: (natural[0] + 1.0, natural[1] + 1.0),
    support=supports.PROBABILITY,
)
"""Probabilities of success; standard ``(a, b)``, statistics ``(log x, log (1 - x))``."""


CATEGORICAL = Family(
    "categorical",
    (1,),
    lambda x: (x,),
    lambda natural: jax.nn.logsumexp(natural[0], axis=-1),
    lambda natural: (jax.nn.softmax(natural[0], axis=-1),),
    lambda probabilities: (jnp.log(probabilities),),
    lambda natural: (jax.nn.softmax(natural[0], axis=-1),),
    support=supports.ONE_HOT,
)
"""States as one-hot rows ``[..., k]`` (see :func:`one_hot`); standard ``(probabilities [...,
k],)``, statistics ``(x,)``.
"""

BERNOULLI = Family(
    "bernoulli",
    (0,),
    lambda x: (x,),
    lambda natural: jax.nn.softplus(natural[0]),
    lambda natural: (jax.nn.sigmoid(natural[0]),),
    lambda probability: (jnp.log(probability) - jnp.log1p(-probability),),
    lambda natural: (jax.nn.sigmoid(natural[0]),),
    support=supports.BINARY,
)
"""0 or 1; standard ``(probability of 1,)``, statistics ``(x,)``."""

POISSON = Family(
    "poisson",
    (0,),
    lambda x: (x,),
    lambda natural: jnp.exp(natural[0]),
    lambda natural: (jnp.exp(natural[0]),),
    lambda rate: (jnp.log(rate),),
    lambda natural: (jnp.exp(natural[0]),),
    lambda x: -gammaln(x + 1.0),
    support=supports.COUNTS,
)
"""Counts; standard ``(rate,)``, statistics ``(x,)``, base measure ``1 / x!``."""


def multinomial(num_trials: float) -> Family:
    """Counts ``[..., k]`` of ``num_trials`` draws; standard ``(probabilities [..., k],)``,
    statistics ``(x,)``, base measure ``n! / prod_k x_k!``.

    >>> family = multinomial(4.0)
    >>> family.mean(family.natural(jnp.array([0.5, 0.5])))[0].tolist()
    [2.0, 2.0]
    """

    def log_base(x: Array) -> Array:
        return gammaln(jnp.sum(x, axis=-1) + 1.0) - jnp.sum(gammaln(x + 1.0), axis=-1)

    return Family(
        "multinomial",
        (1,),
        lambda x: (as_floating(x, "x"),),
        lambda natural: num_trials * CATEGORICAL.log_partition(natural),
        lambda natural: (num_trials * CATEGORICAL.mean(natural)[0],),
        CATEGORICAL.natural,
        CATEGORICAL.standard,
        log_base,
        support=supports.counts_of(num_trials),
    )


FAMILIES = (
    GAUSSIAN,
    MULTIVARIATE_GAUSSIAN,
    GAMMA,
    WISHART,
    DIRICHLET,
    BETA,
    CATEGORICAL,
    BERNOULLI,
    POISSON,
)
"""Every family without a parameter of its own: the table that the tests read."""
