"""Linear and logistic regression with automatic relevance determination of the inputs."""

import jax.numpy as jnp

from vfejax.inference.message_passing import couplings, nodes, non_conjugate
from vfejax.inference.message_passing.coordinate_ascent import MessagePassing, message_passing
from vfejax.inference.message_passing.graph import graph
from vfejax.numerics import as_floating
from vfejax.types import Array

__all__ = ["linear_regression", "logistic_regression"]


def linear_regression(design: Array, broad: float = 1e-6) -> MessagePassing:
    """``y_n ~ N(design_n . weights, 1 / noise)`` with ``weights ~ N(0, diag(relevance)^{-1})``.

    Nodes ``relevance [k]``, ``weights [1, k]``, ``noise`` and the observed ``response [n, 1]``. The
    relevance of an input that does not help grows without bound, and its weight vanishes.

    Args:
        design: inputs ``[n, k]``; a column of ones is the intercept.
        broad: shape and rate of the gamma priors.

    Raises:
        ValueError: when ``design`` is not a matrix.

    Source: MacKay, ASHRAE Transactions 100 (1994) 1053; Tipping, JMLR 1 (2001) 211.

    >>> linear_regression(jnp.ones((50, 4))).model.plates["response"]
    (50, 1)
    """
    design = as_floating(design, "design")
    if design.ndim != 2:
        raise ValueError(f"design must be [n, k], got shape {design.shape}")
    model = graph(
        relevance=nodes.gamma(broad, broad, plates=(design.shape[1],)),
        weights=nodes.relevance("relevance", plates=(1,)),
        noise=nodes.gamma(broad, broad),
        response=couplings.gain(design, "weights", "noise"),
    )
    return message_passing(model, ("response",))


def logistic_regression(design: Array, precision: float = 1.0) -> MessagePassing:
    """``y_n ~ Bernoulli(1 / (1 + exp(-design_n . weights)))`` with ``weights ~ N(0, 1 /
    precision)``.

    Nodes ``weights [k]`` and the observed ``response [n]``, 0 or 1. The belief is Gaussian; the
    expected log likelihood is a Gauss-Hermite sum.

    Args:
        design: inputs ``[n, k]``.
        precision: of the prior of every weight.

    Raises:
        ValueError: when ``design`` is not a matrix.

    >>> logistic_regression(jnp.ones((50, 4))).model.plates["response"]
    (50,)
    """
    design = as_floating(design, "design")
    child = non_conjugate.bernoulli_logit("weights")
    model = graph(
        weights=nodes.relevance(jnp.full(design.shape[-1], precision)),
        response=non_conjugate.linear_predictor(child, "weights", design),
    )
    return message_passing(model, ("response",))
