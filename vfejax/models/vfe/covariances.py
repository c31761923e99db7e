"""Families of covariances that are full blocks of irreps where beliefs are compared.

- *full*: a symmetric positive definite block for each copy of each irrep. Rotations keep the
  family. A spread is the Cholesky factors, for each irrep ``[..., heads, copies, d, d]``.
- *diagonal*: log variances ``[..., heads, K, copies]`` in the agent's own frame. A frame or a
  position turns them into full blocks, so rotations do not keep this family. It is there to show
  what that costs.

``COVARIANCES`` is the table of all families.
"""

import jax.numpy as jnp
import numpy as np

from vfejax.agents.packing import pack
from vfejax.geometry.groups import matrix_exponential
from vfejax.models.vfe.beliefs import (
    Belief,
    Family,
    Transport,
    content,
    linked,
    offset,
    row,
    total,
)
from vfejax.models.vfe.irreps import Layout, Phases, blocks, turn_back, widen
from vfejax.models.vfe.variances import CONSTANT, added
from vfejax.numerics import (
    cholesky,
    expand_leading,
    identity_like,
    log_det_cholesky,
    matmul,
    matmul_nt,
    matmul_tn,
    transpose,
    triangular_inverse,
)
from vfejax.types import Array, PyTree

__all__ = ["COVARIANCES"]

_Blocks = tuple[Array, ...]  # one array for each irrep


def _triangle(size: int) -> int:
    return size * (size + 1) // 2


def _full_spread(raw: Array, layout: Layout) -> _Blocks:
    """Factors with an exponential of half the number on the diagonal, and the number below it."""
    factors, start = [], 0
    for size in layout.sizes:
        stop = start + layout.copies * _triangle(size)
        part = raw[..., start:stop].reshape(*raw.shape[:-1], layout.copies, _triangle(size))
        place = np.zeros((size, size), np.int64)
        place[np.tril_indices(size)] = np.arange(_triangle(size))
        entries = part[..., place]
        factors.append(identity_like(entries) * jnp.exp(0.5 * entries) + jnp.tril(entries, -1))
        start = stop
    return tuple(factors)


def _full_raw(log_variances: Array, layout: Layout) -> Array:
    parts = []
    for own, size in zip(log_variances, layout.sizes, strict=True):
        rows, columns = np.tril_indices(size)
        diagonal = jnp.asarray(rows == columns, own.dtype)
        parts.append((own[:, None] * diagonal[None]).ravel())
    return jnp.concatenate(parts)


def _by_block(x: Array, layout: Layout) -> list[Array]:
    """``[..., K, copies]`` as one array ``[..., copies, d]`` for each irrep."""
    return [jnp.swapaxes(x[..., block, :], -1, -2) for block in blocks(layout.sizes)]


def _joined(parts: list[Array]) -> Array:
    """The inverse of :func:`_by_block`."""
    return jnp.concatenate([jnp.swapaxes(part, -1, -2) for part in parts], axis=-2)


def _apply(matrix: Array, vector: Array) -> Array:
    return matmul(matrix, vector[..., None])[..., 0]


def _squares(x: Array) -> Array:
    """Sum of squares over copies and both axes of a matrix."""
    return jnp.sum(x * x, axis=(-3, -2, -1))


def _log_det(factors: _Blocks) -> Array:
    logs = [jnp.sum(log_det_cholesky(factor), axis=-1) for factor in factors]
    return jnp.sum(jnp.stack(logs), axis=0)


def _full_divergence(q: Belief, p: Belief, layout: Layout) -> Array:
    parts = []
    for own, other, change in zip(
        q.spread, p.spread, _by_block(q.mean - p.mean, layout), strict=True
    ):
        inverse = triangular_inverse(other)
        whitened = matmul(inverse, jnp.tril(own))
        parts.append(_squares(whitened) + _squares(matmul(inverse, change[..., None])))
    logs = _log_det(p.spread) - _log_det(q.spread) - layout.channels
    return 0.5 * (jnp.sum(jnp.stack(parts), axis=0) + logs)


def _in_frame(factors: list[Array], belief: Belief, layout: Layout) -> list[Array]:
    """``A^-1`` times one factor for each irrep, ``[..., copies, d, d]``."""
    own = belief.frame
    if own is None:
        return factors
    turned = []
    for factor, block in zip(factors, blocks(layout.sizes), strict=True):
        turn = jnp.broadcast_to(own[..., None, block, block], factor.shape)
        turned.append(matmul_tn(turn, factor))
    return turned


def _turn_matrix(turn: Phases, block: slice, like: Array) -> Array:
    """R of one irrep, ``[..., heads, copies, d, d]``."""
    size = block.stop - block.start
    quarter, first = np.zeros((size, size)), np.arange(0, size - 1, 2)
    quarter[first, first + 1], quarter[first + 1, first] = -1.0, 1.0
    cosine, sine = (jnp.swapaxes(x[..., block, :], -1, -2)[..., None] for x in turn)
    eye, swap = (
        expand_leading(jnp.asarray(x, like.dtype), cosine.ndim - 2, core=2)
        for x in (np.eye(size), quarter)
    )
    return jnp.broadcast_to(cosine * eye + sine * swap, like.shape)


def _turned_back(factors: list[Array], turn: Phases | None, layout: Layout) -> list[Array]:
    """``R^-1`` times one factor for each irrep."""
    if turn is None:
        return factors
    return [
        matmul_tn(_turn_matrix(turn, block, factor), factor)
        for factor, block in zip(factors, blocks(layout.sizes), strict=True)
    ]


def _linked_blocks(parts: list[Array], link: Array | None, layout: Layout) -> list[Array]:
    """The blocks of ``V S V^T`` that belong to one irrep, from the blocks of S."""
    if link is None:
        return parts
    heads, components, copies = layout.rates.shape
    v = link.reshape(heads, components, copies, components, copies)
    linked = []
    for to in blocks(layout.sizes):
        terms = []
        for part, of in zip(parts, blocks(layout.sizes), strict=True):
            piece = v[:, to, :, of]
            lift = jnp.einsum("hacie,hbcje->hcabeij", piece, piece, precision="highest")
            terms.append(jnp.einsum("hcabeij,...heij->...hcab", lift, part, precision="highest"))
        linked.append(jnp.sum(jnp.stack(terms), axis=0))
    return linked


def _receivers(
    factors: list[Array], log_det: Array, q: Belief, transport: Transport, layout: Layout
) -> Array:
    """Rows of receivers, from one factor of the covariance for each irrep."""
    mean = turn_back(linked(content(q), transport.link), layout, transport.turn)
    inner = [matmul_nt(x, x) for x in _in_frame(factors, q, layout)]
    inner = _linked_blocks(inner, transport.link, layout)
    for _ in range(2):  # from the left, and as the transpose from the right
        inner = [transpose(x) for x in _turned_back(inner, transport.turn, layout)]
    moments = [
        pack(s + m[..., :, None] * m[..., None, :])
        for s, m in zip(inner, _by_block(mean, layout), strict=True)
    ]
    own = offset(log_det, transport, layout)
    return row(*moments, mean, jnp.ones_like(own), own)


def _senders(
    inverses: list[Array], log_det: Array, q: Belief, transport: Transport, layout: Layout
) -> Array:
    """Rows of senders, from ``L^-1`` of each irrep."""
    outward = _in_frame([transpose(x) for x in inverses], q, layout)
    outward = _turned_back(outward, transport.turn, layout)
    mean = turn_back(content(q), layout, transport.turn)
    packed, pulled, squares = [], [], []
    for w, m in zip(outward, _by_block(mean, layout), strict=True):
        precision, white = matmul_nt(w, w), matmul_tn(w, m[..., None])
        # The triangle stands for both halves: entries off the diagonal count twice.
        packed.append(pack(precision - 0.5 * identity_like(precision) * precision))
        pulled.append(-matmul(w, white)[..., 0])
        squares.append(_squares(white))
    constant = 0.5 * (jnp.sum(jnp.stack(squares), axis=0) + log_det)
    return row(*packed, _joined(pulled), constant, jnp.ones_like(constant))


def _full_receivers(q: Belief, transport: Transport, layout: Layout) -> Array:
    factors = [jnp.tril(factor) for factor in q.spread]
    return _receivers(factors, _log_det(q.spread), q, transport, layout)


def _full_senders(q: Belief, transport: Transport, layout: Layout) -> Array:
    inverses = [triangular_inverse(factor) for factor in q.spread]
    return _senders(inverses, _log_det(q.spread), q, transport, layout)


def _full_times(spread: _Blocks, x: Array, layout: Layout) -> Array:
    return _joined(
        [
            _apply(jnp.tril(factor), _apply(transpose(jnp.tril(factor)), part))
            for factor, part in zip(spread, _by_block(x, layout), strict=True)
        ]
    )


def _full_natural(spread: _Blocks, gradient: _Blocks, layout: Layout) -> _Blocks:
    """``L^-1 D L^-T`` of the direction ``D = 2 Sigma sym(G) Sigma``, G the slope in Sigma: the
    lower triangle of ``L^T dF/dL``, mirrored.
    """
    lower = [
        jnp.tril(matmul_tn(jnp.tril(factor), jnp.tril(slope)))
        for factor, slope in zip(spread, gradient, strict=True)
    ]
    return tuple(x + transpose(jnp.tril(x, -1)) for x in lower)


def _full_moved(spread: _Blocks, direction: _Blocks, longest: float, layout: Layout) -> _Blocks:
    """``Sigma -> L exp(X) L^T``: the affine-invariant geodesic, on factors."""
    moved = []
    for factor, x in zip(spread, direction, strict=True):
        max_norm = 1.1 * longest * (2 * x.shape[-1]) ** 0.5  # room for rounding
        moved.append(matmul(jnp.tril(factor), cholesky(matrix_exponential(x, max_norm=max_norm))))
    return tuple(moved)


def _full_square(spread: _Blocks, change: Array, direction: PyTree, layout: Layout) -> Array:
    parts = [
        _squares(matmul(triangular_inverse(factor), move[..., None]))
        for factor, move in zip(spread, _by_block(change, layout), strict=True)
    ]
    parts += [0.5 * _squares(x) for x in (() if direction is None else direction)]
    return jnp.sum(jnp.stack(parts), axis=0)


def _diagonal_divergence(q: Belief, p: Belief, layout: Layout) -> Array:
    change = q.spread - p.spread
    square = (q.mean - p.mean) ** 2 * jnp.exp(-p.spread)
    return 0.5 * total(jnp.expm1(change) - change + square)


def _diagonal_factors(spread: Array, layout: Layout) -> list[Array]:
    """``diag(exp(spread / 2))`` for each irrep, ``[..., copies, d, d]``."""
    factors = []
    for part in _by_block(spread, layout):
        roots = jnp.broadcast_to(jnp.exp(0.5 * part)[..., None], (*part.shape, part.shape[-1]))
        factors.append(identity_like(roots) * roots)
    return factors


def _diagonal_receivers(q: Belief, transport: Transport, layout: Layout) -> Array:
    factors = _diagonal_factors(q.spread, layout)
    return _receivers(factors, total(q.spread), q, transport, layout)


def _diagonal_senders(q: Belief, transport: Transport, layout: Layout) -> Array:
    inverses = _diagonal_factors(-q.spread, layout)
    return _senders(inverses, total(q.spread), q, transport, layout)


def _diagonal_square(spread: Array, change: Array, direction: PyTree, layout: Layout) -> Array:
    square = total(change * change * jnp.exp(-spread))
    return square if direction is None else square + 0.5 * total(direction**2)


COVARIANCES: dict[str, Family] = {
    "irrep": CONSTANT,
    "full": Family(
        num_raw=lambda layout: layout.copies * sum(_triangle(size) for size in layout.sizes),
        spread=_full_spread,
        raw=_full_raw,
        divergence=_full_divergence,
        receivers=_full_receivers,
        senders=_full_senders,
        times=_full_times,
        natural=_full_natural,
        moved=_full_moved,
        square=_full_square,
    ),
    "diagonal": Family(
        num_raw=lambda layout: layout.channels,
        spread=lambda raw, layout: raw.reshape(*raw.shape[:-1], *layout.rates.shape[1:]),
        raw=lambda log_variances, layout: widen(log_variances, layout.sizes).ravel(),
        divergence=_diagonal_divergence,
        receivers=_diagonal_receivers,
        senders=_diagonal_senders,
        times=lambda spread, x, layout: jnp.exp(spread) * x,
        natural=lambda spread, gradient, layout: 2.0 * gradient,
        moved=added,
        square=_diagonal_square,
    ),
}
"""Every family of covariances by name."""
