"""Bayesian principal components: data as a product of loadings and factors, with noise."""

import jax.numpy as jnp

from vfejax.inference.message_passing import couplings, nodes, rows
from vfejax.inference.message_passing.coordinate_ascent import MessagePassing, message_passing
from vfejax.inference.message_passing.graph import graph

__all__ = ["incomplete_principal_components", "principal_components"]


def principal_components(
    num_dims: int, num_points: int, num_factors: int, broad: float = 1e-3
) -> MessagePassing:
    """``y_mn ~ N(w_m . x_n, 1 / noise)`` with factors ``x_n ~ N(0, 1)`` and loadings ``w_m ~ N(0,
    diag(relevance)^{-1})``.

    Nodes ``relevance [k]``, ``loadings [m, k]``, ``noise``, ``factors [n, k]`` and the observed
    ``data [m, n]``. The relevance of a factor that is not needed grows, and its loadings vanish.
    All loadings share one precision, and so do all factors: a sweep needs two factorisations of
    size k.

    Args:
        num_dims: m.
        num_points: n.
        num_factors: the largest number of factors, k.
        broad: shape and rate of the gamma priors.

    Source: Bishop, ICANN (1999), Variational principal components.

    >>> principal_components(20, 2000, 5).schedule
    (('relevance',), ('loadings',), ('noise',), ('factors',))
    """
    model = graph(
        relevance=nodes.gamma(broad, broad, plates=(num_factors,)),
        loadings=rows.relevance_rows("relevance", num_dims),
        noise=nodes.gamma(broad, broad),
        factors=rows.relevance_rows(jnp.ones(num_factors), num_points),
        data=couplings.gain("loadings", "factors", "noise"),
    )
    return message_passing(model, ("data",))


def incomplete_principal_components(
    num_dims: int, num_points: int, num_factors: int, broad: float = 1e-3
) -> MessagePassing:
    """:func:`principal_components` for data with missing entries, named by a weight of 0:
    ``weights={"data": mask [m, n]}``.

    Every row and every point has a precision of its own, since it meets evidence of its own.

    Args:
        num_dims: m.
        num_points: n.
        num_factors: the largest number of factors, k.
        broad: shape and rate of the gamma priors.

    >>> incomplete_principal_components(20, 2000, 5).model.shapes["factors"]
    ((2000, 5), (2000, 5, 5))
    """
    model = graph(
        relevance=nodes.gamma(broad, broad, plates=(num_factors,)),
        loadings=nodes.relevance("relevance", plates=(num_dims,)),
        noise=nodes.gamma(broad, broad),
        factors=nodes.relevance(jnp.ones(num_factors), plates=(num_points,)),
        data=couplings.gain("loadings", "factors", "noise"),
    )
    return message_passing(model, ("data",))
