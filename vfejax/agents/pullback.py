"""The Fisher metric that a field of beliefs induces on its base manifold.

A belief field is a map from the base manifold into Gaussians. The pullback of the Fisher metric
measures how distinguishable the beliefs at neighbouring points are: walking ``dx`` changes the
belief by ``dx^T g dx / 2`` nats of KL,

    g_{mu nu} = D_mu m^T S^{-1} D_nu m + tr(S^{-1} D_mu S  S^{-1} D_nu S) / 2.

Beliefs at two points stand in two frames, so the derivative is that of the belief in the common
frame, ``m = U^{-1} mu`` and ``S = U^{-1} Sigma U^{-T}``. This is the covariant derivative ``U
d(U^{-1} mu)`` of the pure gauge that the frames define. A local change of gauge of the field,
``(q, U) -> (G q, G U)``, alters nothing. With links of their own, pass
:func:`vfejax.geometry.derivatives.covariant_differences`: then ``U -> U H^{-1}`` with
``V_mu(c) -> H(c) V_mu(c) H(c + mu)^{-1}`` alters nothing either.

The metric is kept as its root. A derivative becomes a whitened tangent ``(A^{-1} dm, A^{-1} dS
A^{-T} / sqrt 2)`` with ``A = U^{-1} L``, whose Euclidean products are those of the Fisher metric:
what is positive semi-definite stays so, and no volume loses half of its digits.

Source: Amari, Information Geometry (2016), section 1.6, for the metric of Gaussians.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.agents.population import check_array
from vfejax.beliefs.gaussian import Gaussian
from vfejax.geometry.derivatives import DerivativeFn, central_differences
from vfejax.geometry.grid import Grid
from vfejax.geometry.groups import Generators, as_group
from vfejax.geometry.transport import frames
from vfejax.numerics import (
    diagonal,
    matmul,
    matvec,
    safe_norm,
    transpose,
    triangular_inverse,
    triangularize,
)
from vfejax.types import Array

__all__ = ["BaseMetric", "belief_tangents", "consensus_metric", "induced_metric"]


class BaseMetric(NamedTuple):
    """A metric on the base manifold with d axes, in nats per squared unit of its coordinates.

    Attributes:
        metric: ``g [..., d, d]``.
        length: ``sqrt(g_mumu) [..., d]``, the length element along each axis.
        volume: ``sqrt(det g) [...]``, the volume element.
    """

    metric: Array
    length: Array
    volume: Array


def belief_tangents(
    belief: Gaussian,
    phi: Array,
    generators: Generators,
    grid: Grid,
    *,
    derivative_fn: DerivativeFn = central_differences,
) -> Array:
    """How the beliefs change along the axes of the base manifold, as whitened tangents.

    Args:
        belief: fields of n agents, mean ``[n, *grid, k]``, chol ``[n, *grid, k, k]``.
        phi: frame coordinates ``[n, *grid, a]``.
        generators: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``, which means
            the general exponential.
        grid: the base manifold.
        derivative_fn: derivative of the moments in the common frame,
            :func:`vfejax.geometry.derivatives.central_differences` (default),
            ``spectral_derivatives``, or ``covariant_differences(links)``.

    Returns:
        ``[n, *grid, d, k + k^2]``, in root nats per unit of the coordinates; NaN where a belief at
        the point or at a neighbour is.

    Raises:
        ValueError: when belief, frames and grid do not fit, or the derivative does not fit the
            grid.

    >>> from vfejax.geometry import irreps
    >>> from vfejax.geometry.grid import line
    >>> mean = jnp.array([0.0, 3.0, 6.0]).reshape(1, 3, 1)  # standard deviation 2
    >>> belief = Gaussian(mean, jnp.full((1, 3, 1, 1), 2.0))
    >>> phi = jnp.zeros((1, 3, 3))
    >>> belief_tangents(belief, phi, irreps.so3((0,)), line(3, length=2.0))[0, 1]
    Array([[1.5, 0. ]], dtype=float32)
    """
    _check_field(belief, phi, generators, grid)
    chol = jnp.tril(belief.chol)
    outward, inward = frames(jnp.stack([phi, -phi]), generators)
    factor, mean = matmul(inward, chol), matvec(inward, belief.mean)
    moments = (mean, matmul(factor, transpose(factor)))
    shift, change = jax.vmap(lambda m: derivative_fn(m, grid), out_axes=1)(moments)
    # The inverse of the factor in the common frame: no inverse of a matrix that is not triangular.
    whitener = matmul(triangular_inverse(chol), outward)
    shift = matvec(whitener[None], shift)
    change = matmul(matmul(whitener[None], change), transpose(whitener)[None])
    flat = change.reshape(*shift.shape[:-1], -1) / jnp.sqrt(jnp.asarray(2.0, mean.dtype))
    return jnp.moveaxis(jnp.concatenate([shift, flat], axis=-1), 0, -2)


def _check_field(belief: Gaussian, phi: Array, generators: Generators, grid: Grid) -> None:
    num_generators, k, _ = as_group(generators).generators.shape
    shape, base = jnp.shape(belief.mean), jnp.shape(grid.quadrature)
    dtype = jnp.result_type(belief.mean)
    if len(shape) != len(base) + 2 or shape[1:] != (*base, k):
        wanted = ", ".join(map(str, ("n", *base, k)))
        raise ValueError(f"belief.mean must be [{wanted}] on this grid, got shape {shape}")
    check_array("belief.chol", belief.chol, (*shape, k), dtype)
    check_array("phi", phi, (*shape[:-1], num_generators), dtype)


def induced_metric(tangents: Array) -> BaseMetric:
    """Metric on the base manifold of the tangents ``[..., d, m]``: their Gram matrix.

    Args:
        tangents: whitened, from :func:`belief_tangents`, or a sector of them
            (:mod:`vfejax.agents.sectors`).

    Returns:
        Metric ``[..., d, d]`` with its length and volume elements. The gradient of the volume is
        not finite where the metric is singular.

    >>> induced_metric(jnp.array([[3.0, 0.0, 4.0], [0.0, 2.0, 0.0]])).length
    Array([5., 2.], dtype=float32)
    """
    factor = triangularize(transpose(tangents))
    volume = jnp.prod(diagonal(factor), axis=-1)
    return BaseMetric(matmul(tangents, transpose(tangents)), safe_norm(tangents), volume)


def consensus_metric(tangents: Array, supports: Array | None = None) -> BaseMetric:
    """Average over the agents of the metrics that their beliefs induce, ``sum_i chi_i g_i / sum_i
    chi_i``.

    Args:
        tangents: of n agents, ``[n, *grid, d, m]``.
        supports: chi ``[n, *grid]``; 1 by default. What an agent has where its support is 0 does
            not count, whatever it is.

    Returns:
        Metric ``[*grid, d, d]`` with the length and volume elements of the average (not the average
        of the volumes); 0 where no agent is.

    Raises:
        ValueError: when supports and tangents do not fit.

    >>> two_agents = jnp.array([[[[2.0]]], [[[4.0]]]])  # n = 2, one point, d = m = 1
    >>> consensus_metric(two_agents, jnp.array([[1.0], [3.0]])).metric  # (1 * 4 + 3 * 16) / 4
    Array([[[13.]]], dtype=float32)
    """
    shape = tangents.shape[:-2]
    chi = jnp.ones(shape, tangents.dtype) if supports is None else supports
    check_array("supports", chi, shape, tangents.dtype)
    total = jnp.sum(chi, axis=0, keepdims=True)
    share = chi / jnp.where(total == 0, 1.0, total)
    absent = share == 0
    root = jnp.where(absent, 0.0, jnp.sqrt(jnp.where(absent, 1.0, share)))[..., None, None]
    rows = jnp.where(absent[..., None, None], 0.0, root * tangents)
    # All agents' rows side by side: their Gram matrix is the sum.
    rows = jnp.moveaxis(rows, 0, -2)
    return induced_metric(rows.reshape(*rows.shape[:-2], -1))
