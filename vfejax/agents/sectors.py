"""The internal, observable and dark parts of the variation of a belief field over its base
manifold.

At a point a belief can change in ``k + k (k + 1) / 2`` directions. The Fisher metric says which are
orthogonal, so a tangent of the field (:mod:`vfejax.agents.pullback`) splits without remainder into

- *internal*: its projection onto the gauge directions ``(J_a m, J_a S + S J_a^T)``, the orbit of
  the belief under changes of its frame. A turn of the frame could undo it;
- *observable*: what is left of it, projected onto the directions that the observation ``o = C x +
  noise`` sees, less their gauge part;
- *dark*: the rest. It is neither a turn of the frame nor seen.

The instrument does not see a change with ``C dmu = 0`` and ``C dSigma C^T = 0``: the belief about
``C x`` stays the same. Orthogonal to all of those are ``(Q v, Q X Q)`` in whitened coordinates,
with the orthogonal projector Q onto the row space of ``C L``. Before its gauge part is taken away,
the observable metric is therefore exactly the Fisher metric of the marginal ``N(C mu, C Sigma
C^T)``. The noise decides how well a direction is seen, not which directions are: any invertible
factor before C, such as the inverse root of the noise covariance, leaves the row space as it is.

The three parts are mutually orthogonal, so their metrics add up to the whole, ``g = g_internal +
g_observable + g_dark``. With overlapping gauge and observable directions the order matters, and
:func:`split` takes them in any order: what comes first is complete.

A local change of gauge ``(q, U, C) -> (G q, G U, C G^{-1})``, which turns the instrument with the
agent, alters no part. Internal and the sum of the other two do not depend on C.

Source: worked out here; projections of a Fisher metric onto an orbit and its complement as in
principal bundles with an invariant metric.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.agents.metric import gauge_directions
from vfejax.beliefs.gaussian import Gaussian
from vfejax.geometry.groups import Generators
from vfejax.numerics import expand_leading, matmul, safe_norm
from vfejax.types import Array

__all__ = ["Sectors", "observable_directions", "sectors", "split"]


class Sectors(NamedTuple):
    """Whitened tangents ``[n, *grid, d, k + k^2]`` of each sector; their sum is the whole, and the
    metrics they induce add up to that of the whole.
    """

    observable: Array
    dark: Array
    internal: Array


def _orthonormal(directions: Array, tolerance: float) -> Array:
    """Rows of ``directions [..., r, m]`` made orthonormal one after another; 0 for a row of which
    no more than ``tolerance`` of the longest row is new.
    """
    shortest = tolerance * jnp.max(safe_norm(directions), axis=-1, keepdims=True, initial=0.0)
    rows = directions.shape[-2]

    def add(basis: Array, row: tuple[Array, Array]) -> tuple[Array, None]:
        index, direction = row
        # Twice is enough: one sweep leaves rounding over the length of what is new.
        for _ in range(2):
            overlap = matmul(basis, direction[..., None])
            direction = direction - jnp.sum(basis * overlap, axis=-2)
        length = safe_norm(direction, keepdims=True)
        dependent = length <= shortest
        unit = jnp.where(dependent, 0.0, direction / jnp.where(dependent, 1.0, length))
        return jax.lax.dynamic_update_index_in_dim(basis, unit, index, basis.ndim - 2), None

    each = jnp.moveaxis(directions, -2, 0)
    return jax.lax.scan(add, jnp.zeros_like(directions), (jnp.arange(rows), each))[0]


def split(tangents: Array, *directions: Array, tolerance: float | None = None) -> tuple[Array, ...]:
    """Successive orthogonal projections of tangents, and what remains.

    The first part is the projection onto the first directions. Each further part is that of the
    remainder onto what its directions have beyond all directions before them.

    Args:
        tangents: whitened, ``[..., d, m]``, from :func:`vfejax.agents.pullback.belief_tangents`.
        *directions: whitened ``[..., r, m]`` each, not necessarily independent.
        tolerance: directions of which no more than this fraction of the longest one is new count as
            dependent; the root of the machine epsilon by default.

    Returns:
        One more array ``[..., d, m]`` than there are directions. They sum to ``tangents`` and are
        mutually orthogonal.

    >>> tangents = jnp.array([[1.0, 2.0, 3.0]])
    >>> first, second, rest = split(tangents, jnp.array([[1.0, 0, 0]]), jnp.array([[1.0, 1.0, 0]]))
    >>> first.tolist(), second.tolist(), rest.tolist()
    ([[1.0, 0.0, 0.0]], [[0.0, 2.0, 0.0]], [[0.0, 0.0, 3.0]])
    """
    if not directions:
        return (tangents,)
    if tolerance is None:
        tolerance = math.sqrt(jnp.finfo(tangents.dtype).eps)
    # Each kind at its own scale: a weakly seen direction does not drown beside a strong gauge.
    scaled = [x / _longest(x) for x in directions]
    basis = _orthonormal(jnp.concatenate(scaled, axis=-2), tolerance)
    ends = np.cumsum([x.shape[-2] for x in directions])
    parts, rest = [], tangents
    for span in jnp.split(basis, ends[:-1].tolist(), axis=-2):
        coefficients = matmul(rest, jnp.swapaxes(span, -1, -2))
        parts.append(matmul(coefficients, span))
        rest = rest - parts[-1]
    return (*parts, rest)


def _longest(directions: Array) -> Array:
    """Length of the longest row, or 1 where all are 0, ``[..., 1, 1]``."""
    longest = jnp.max(safe_norm(directions), axis=-1, initial=0.0)[..., None, None]
    return jnp.where(longest == 0, 1.0, longest)


def observable_directions(
    belief: Gaussian, matrix: Array, *, tolerance: float | None = None
) -> Array:
    """Directions of belief space that an observation matrix sees, whitened.

    With an orthonormal basis ``b_r`` of the row space of ``C L``: ``(b_r, 0)`` for the mean and
    ``(0, b_r b_s^T + b_s b_r^T)`` for the covariance.

    Args:
        belief: mean ``[..., k]``, chol ``[..., k, k]``, in the agents' own frames.
        matrix: C ``[o, k]``, or one of each belief ``[..., o, k]``; rows may be dependent.
        tolerance: rows of ``C L`` of which no more than this fraction of the longest one is new
            count as dependent; the root of the machine epsilon by default.

    Returns:
        ``[..., o + o (o + 1) / 2, k + k^2]``, orthogonal; 0 for what is dependent.

    Raises:
        ValueError: when the matrix does not fit the beliefs.

    >>> belief = Gaussian(jnp.zeros(2), jnp.array([[2.0, 0.0], [0.0, 1.0]]))
    >>> observable_directions(belief, jnp.array([[1.0, 0.0]]))  # the mean of x_1, its variance
    Array([[1., 0., 0., 0., 0., 0.],
           [0., 0., 1., 0., 0., 0.]], dtype=float32)
    """
    chol = jnp.tril(belief.chol)
    k = chol.shape[-1]
    if matrix.ndim < 2 or matrix.shape[-1] != k or matrix.dtype != chol.dtype:
        raise ValueError(
            f"matrix must be [o, {k}] of {chol.dtype} to fit the beliefs, got {matrix.dtype} "
            f"{matrix.shape}"
        )
    if tolerance is None:
        tolerance = math.sqrt(jnp.finfo(chol.dtype).eps)
    seen = matmul(expand_leading(matrix, chol.ndim - 2, core=2), chol)
    basis = _orthonormal(seen, tolerance)
    first, second = np.tril_indices(basis.shape[-2])
    outer = basis[..., first, :, None] * basis[..., second, None, :]
    outer = outer + jnp.swapaxes(outer, -1, -2)
    scale = np.where(first == second, 0.5, np.sqrt(0.5))[:, None, None]
    outer = outer * jnp.asarray(scale, chol.dtype).reshape((1,) * (outer.ndim - 3) + scale.shape)
    of_mean = jnp.pad(basis, [(0, 0)] * (basis.ndim - 1) + [(0, k * k)])
    flat = outer.reshape(*outer.shape[:-2], k * k)
    of_cov = jnp.pad(flat, [(0, 0)] * (flat.ndim - 1) + [(k, 0)])
    return jnp.concatenate([of_mean, of_cov], axis=-2)


def sectors(
    tangents: Array,
    belief: Gaussian,
    phi: Array,
    generators: Generators,
    matrix: Array,
    *,
    tolerance: float | None = None,
) -> Sectors:
    """Observable, dark and internal part of a belief field's variation over the base manifold.

    Args:
        tangents: of the field, ``[n, *grid, d, k + k^2]``, from
            :func:`vfejax.agents.pullback.belief_tangents`.
        belief: the same field, mean ``[n, *grid, k]``, chol ``[n, *grid, k, k]``.
        phi: frame coordinates ``[n, *grid, a]``.
        generators: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``.
        matrix: observation matrix C ``[o, k]``, or one of each agent and point ``[n, *grid, o,
            k]``.
        tolerance: as in :func:`split`. A frame coordinate about which the belief says less than
            this fraction of what it says about the best known one counts as a symmetry.

    Returns:
        Tangents of the three sectors; :func:`vfejax.agents.pullback.induced_metric` makes a metric
        of each.

    Raises:
        ValueError: when the matrix does not fit the beliefs.

    >>> from vfejax.agents.pullback import belief_tangents, induced_metric
    >>> from vfejax.geometry import irreps
    >>> from vfejax.geometry.grid import line
    >>> x = jnp.linspace(0.0, 1.0, 5)[None, :, None] * jnp.array([3.0, 4.0, 12.0]) + 0.0
    >>> belief = Gaussian(x, jnp.tile(jnp.eye(3), (1, 5, 1, 1)))
    >>> phi, group, sight = jnp.zeros((1, 5, 1)), irreps.so_generators(2), jnp.eye(1, 3)
    >>> group = jnp.pad(group, ((0, 0), (0, 1), (0, 1)))  # rotations of the first two components
    >>> tangents = belief_tangents(belief, phi, group, line(5))
    >>> parts = sectors(tangents, belief, phi, group, sight)
    >>> [round(float(induced_metric(part).metric[0, 2, 0, 0])) for part in parts]  # 13^2 = 169
    [25, 144, 0]
    """
    internal, observable, dark = split(
        tangents,
        gauge_directions(belief, phi, generators),
        observable_directions(belief, matrix, tolerance=tolerance),
        tolerance=tolerance,
    )
    return Sectors(observable, dark, internal)
