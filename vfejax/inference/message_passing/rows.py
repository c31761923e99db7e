"""Matrices whose rows share one precision: a family and its node.

One factorisation serves all rows, where separate Gaussians would need one each.
"""

import jax.numpy as jnp

from vfejax.beliefs.exponential_families import Family, Natural, Statistics, moments
from vfejax.beliefs.families import GAMMA, MULTIVARIATE_GAUSSIAN
from vfejax.inference.message_passing.graph import Node, Parent
from vfejax.inference.message_passing.nodes import LOG_2_PI, Message
from vfejax.numerics import matmul, matmul_tn
from vfejax.types import Array

__all__ = ["GAUSSIAN_ROWS", "relevance_rows"]


def _rows_moments(natural: Natural) -> tuple[Statistics, Array]:
    zero = jnp.zeros_like(natural[0][..., 0, :])
    (_, cov), shared = moments(MULTIVARIATE_GAUSSIAN, (zero, natural[1]))
    mean = matmul(natural[0], cov)
    rows = mean.shape[-2]
    log_partition = rows * shared + 0.5 * jnp.sum(natural[0] * mean, axis=(-2, -1))
    return (mean, rows * cov + matmul_tn(mean, mean)), log_partition


GAUSSIAN_ROWS = Family(
    "gaussian rows",
    (2, 2),
    lambda x: (x, matmul_tn(x, x)),
    lambda natural: _rows_moments(natural)[1],
    lambda natural: _rows_moments(natural)[0],
    lambda mean, precision: (matmul(mean, precision), -0.5 * precision),
    lambda natural: (_rows_moments(natural)[0][0], -2.0 * natural[1]),
    both=_rows_moments,
)
"""Matrices ``[..., n, k]`` whose rows are independent Gaussians with one precision: standard
``(mean [..., n, k], precision [..., k, k])``, statistics ``(X, X^T X)``. One factorisation serves
all rows.
"""


def relevance_rows(precisions: Parent, num_rows: int) -> Node:
    """A matrix ``[num_rows, k]`` of rows ``N(0, diag(precisions)^{-1})`` whose beliefs share one
    precision.

    Where every row meets the same evidence about its precision, as in a gain with complete data and
    one noise precision, the posterior of
    :func:`vfejax.inference.message_passing.nodes.relevance` has the same precision in every plate,
    and this node holds it once: the same belief at the cost of one factorisation.

    Args:
        precisions: a gamma node with plates ``[k]``, or k positive numbers.
        num_rows: n.

    >>> relevance_rows(jnp.ones(3), 100).family.name
    'gaussian rows'
    """

    def natural(precisions: Statistics) -> Message:
        log, value = precisions
        num = value.shape[-1]
        zero, eye = jnp.zeros((num_rows, num), value.dtype), jnp.eye(num, dtype=value.dtype)
        normaliser = 0.5 * num_rows * jnp.sum(LOG_2_PI - log, axis=-1)
        return (
            zero,
            -0.5 * value[..., None] * eye,
        ), normaliser

    return Node(GAUSSIAN_ROWS, (precisions,), (("precisions", (GAMMA,)),), natural, ())
