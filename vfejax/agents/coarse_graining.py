"""Coarse graining: the one Gaussian that stands for a group of agents.

A group is replaced by the moment match of its members' beliefs, in a frame of its own. Every member
has a weight, such as its share of the group's :func:`coherence`. The match is the Gaussian that
minimises ``sum_i w_i KL(q_i || Omega_iM q_M)``:

    mean_M = sum_i w_i Omega_Mi mu_i,
    cov_M  = sum_i w_i [Omega_Mi Sigma_i Omega_Mi^T + d_i d_i^T],   d_i = Omega_Mi mu_i - mean_M,

so it is as wide as its members and their disagreement together.
"""

import jax
import jax.numpy as jnp

from vfejax.agents.clusters import Clusters
from vfejax.agents.edges import common_frame
from vfejax.agents.pairwise import FrameField
from vfejax.beliefs.gaussian import Gaussian
from vfejax.numerics import cholesky, matmul, matvec, transpose, triangularize
from vfejax.types import Array

__all__ = ["coherence", "moment_match", "relative_coherence"]


def _disagreement(divergence: Array, clusters: Clusters) -> Array:
    """``mean_j (KL_ij + KL_ji) / 2`` over the other members of the group, in nats; 0 outside any
    group.
    """
    label, joined = clusters
    others = (label[:, None] == label[None, :]) & joined[:, None]
    others = others & ~jnp.eye(label.shape[0], dtype=bool)
    total = jnp.sum(jnp.where(others, divergence + divergence.T, 0.0), axis=1)
    count = jnp.sum(others, axis=1).astype(divergence.dtype)
    return 0.5 * total / jnp.maximum(count, 1.0)


def coherence(divergence: Array, clusters: Clusters) -> Array:
    """How far an agent agrees with the others of its group.

    ``c_i = exp(-mean_j (KL_ij + KL_ji) / 2)`` over the other members j.

    Args:
        divergence: ``KL(q_i || Omega_ij q_j)``, ``[n, n]``, in nats.
        clusters: groups of the n agents.

    Returns:
        ``[n]`` in (0, 1]; 1 for an agent outside any group.

    >>> pair = Clusters(jnp.array([0, 0, 2]), jnp.array([True, True, False]))
    >>> coherence(jnp.array([[0.0, 1.0, 9.0], [3.0, 0.0, 9.0], [9.0, 9.0, 0.0]]), pair).round(4)
    Array([0.1353, 0.1353, 1.    ], dtype=float32)
    """
    return jnp.exp(-_disagreement(divergence, clusters))


def relative_coherence(divergence: Array, clusters: Clusters) -> Array:
    """Coherence of each agent over that of the most coherent member of its group.

    The weights of a moment match are shares, which are the same for both, and so are their
    derivatives: that of the common factor is left out here. But the coherence of all members is 0
    in floating point when they are some hundred nats apart.

    Args:
        divergence: ``KL(q_i || Omega_ij q_j)``, ``[n, n]``, in nats.
        clusters: groups of the n agents.

    Returns:
        ``[n]`` in [0, 1]; 1 for the most coherent of each group, and outside any group.

    >>> pair = Clusters(jnp.array([0, 0, 2]), jnp.array([True, True, False]))
    >>> relative_coherence(jnp.full((3, 3), 1e6), pair)
    Array([1., 1., 1.], dtype=float32)
    """
    apart, label = _disagreement(divergence, clusters), clusters.label
    least = jax.lax.stop_gradient(jax.ops.segment_min(apart, label, label.shape[0])[label])
    alike = least == jnp.inf  # then so are they all, and an infinite number less itself is NaN
    return jnp.exp(jnp.where(alike, 0.0, least) - jnp.where(alike, 0.0, apart))


def moment_match(
    gaussian: Gaussian, field: FrameField, weights: Array, labels: Array, frame: FrameField
) -> Gaussian:
    """The Gaussian closest to each group: it minimises ``sum_i w_i KL(q_i || Omega_iM q_M)``.

    Moments are taken relative to the first member of the group, in its own units. So covariances
    keep their digits however far from the origin and however elongated they are.

    Args:
        gaussian: mean ``[m, k]``, chol ``[m, k, k]``.
        field: their frames ``[m, k, k]``.
        weights: ``[m]``, not negative; those of a group are divided by their sum. A member of
            weight 0 plays no part.
        labels: int ``[m]``, the group of each; outside [0, c) for none.
        frame: frames of the c groups, ``[c, k, k]``, in which the results are given.

    Returns:
        c Gaussians; a unit Gaussian for a group without weight.

    >>> from vfejax.agents.pairwise import frame_field
    >>> from vfejax.geometry import irreps
    >>> group = irreps.so3((1,))
    >>> pair = Gaussian(jnp.array([[1.0, 0, 0], [-1.0, 0, 0]]), jnp.tile(jnp.eye(3), (2, 1, 1)))
    >>> field, frame = (frame_field(jnp.zeros((c, 3)), group) for c in (2, 1))
    >>> matched = moment_match(pair, field, jnp.ones(2), jnp.zeros(2, int), frame)
    >>> matched.chol[0].diagonal().round(4)  # variances 2, 1, 1
    Array([1.4142, 1.    , 1.    ], dtype=float32)
    """
    num, (m, k) = frame.outward.shape[0], gaussian.mean.shape
    rows = common_frame(gaussian, field)
    index = jnp.where((labels < 0) | (labels >= num) | (weights == 0), num, labels)

    def total(x: Array) -> Array:
        return jax.ops.segment_sum(x, index, num + 1)

    empty = total(jnp.ones_like(index))[:num] == 0
    mass = total(weights)
    share = weights / jnp.where(mass == 0, 1.0, mass)[index]
    first = jnp.minimum(jax.ops.segment_min(jnp.arange(m), index, num + 1), m - 1)
    base = jax.tree.map(lambda x: x[first], rows)
    columns = [rows.factor, (rows.mean - base.mean[index])[..., None]]
    units = matmul(base.whitener[index], jnp.concatenate(columns, axis=-1))
    shift = total(share[:, None] * units[..., k])
    units = jnp.concatenate([units[..., :k], (units[..., k] - shift[index])[..., None]], axis=-1)
    cov = total(share[:, None, None] * matmul(units, transpose(units)))[:num]
    eye = jnp.broadcast_to(jnp.eye(k, dtype=cov.dtype), cov.shape)
    factor = matmul(base.factor[:num], cholesky(jnp.where(empty[:, None, None], eye, cov)))
    mean = base.mean[:num] + matvec(base.factor[:num], shift[:num])
    factor = jnp.where(empty[:, None, None], eye, matmul(frame.outward, factor))
    mean = jnp.where(empty[:, None], 0.0, matvec(frame.outward, mean))
    return Gaussian(mean, triangularize(transpose(factor)))
