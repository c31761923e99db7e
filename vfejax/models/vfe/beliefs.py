"""Beliefs of agents whose channels are irreps, and their divergences as products of rows.

Agent i holds ``q_i = N(mean, Sigma)`` in its own frame ``A_i = exp(phi_i . J)``. A receiver and a
sender are compared where frames and positions no longer count,

    KL(q_i || Omega_ij q_j) = KL(R_i^-1 V A_i^-1 q_i || R_j^-1 A_j^-1 q_j),

for the transport ``Omega_ij = A_i V^-1 R_i R_j^-1 A_j^-1``. R turns by the position, and V is a
matrix of the head, the identity without a link. With rows a_i and b_j made of the two sides,

    KL_ij = a_i . b_j,    a = [S + m m^T, m, 1, -(log|Sigma| + log|V|^2 + C) / 2],
                          b = [P / 2, -P m, (m . P m + log|S|) / 2, 1],    P = S^-1,

where C is the number of channels and only blocks of one irrep count. Nothing is centred: the rows
of a token depend on no other token. In float32 the error of a divergence is about
``eps |P| (|S| + |m|^2)``.

Arrays of channels are ``[..., heads, K, copies]`` (:mod:`vfejax.models.vfe.irreps`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from vfejax.models.vfe.irreps import Layout, Phases
from vfejax.numerics import expand_leading, log_det_cholesky, matmul_tn, triangularize
from vfejax.types import Array, PyTree

__all__ = [
    "Belief",
    "Family",
    "Transport",
    "content",
    "flat",
    "linked",
    "log_det_link",
    "offset",
    "row",
    "total",
]


class Belief(NamedTuple):
    """Beliefs, or priors, of agents.

    Attributes:
        mean: ``[..., heads, K, copies]``.
        spread: the covariance, as its family keeps it.
        frame: A of each head, orthogonal, ``[..., heads, K, K]``; None for the identity.
    """

    mean: Array
    spread: PyTree
    frame: Array | None = None


class Transport(NamedTuple):
    """What stands between two agents besides their frames.

    Attributes:
        turn: how far the agents' positions turn; None where they do not.
        link: V of each head, ``[heads, C, C]``; None for the identity.
        log_det: ``log|det V|^2`` of each head, ``[heads]``: a constant of all divergences, so no
            attention depends on it. None counts as 0.
    """

    turn: Phases | None = None
    link: Array | None = None
    log_det: Array | None = None


class Family(NamedTuple):
    """A family of covariances as pure functions. A spread is what the family keeps of a covariance.

    Attributes:
        num_raw: ``layout -> numbers`` per head and agent that a covariance is made of.
        spread: ``(raw [..., heads, numbers], layout) -> spread``; the identity at 0.
        raw: ``(log variances [irreps, copies], layout) -> raw [numbers]`` of one head.
        divergence: ``(q, p, layout) -> KL(q || p)`` of each head in nats, ``[..., heads]``.
        receivers: ``(q, transport, layout) -> rows [..., heads, r]``.
        senders: likewise.
        times: ``(spread, x like the mean, layout) -> Sigma x``.
        natural: ``(spread, gradient, layout) -> direction`` of steepest ascent in the Fisher
            metric.
        moved: ``(spread, direction, longest, layout) -> spread`` along a geodesic; the Fisher
            length of the direction is at most ``longest``.
        square: ``(spread, change of the mean, direction of the spread or None, layout) -> squared
            Fisher length``, ``[..., heads]``.
    """

    num_raw: Callable[[Layout], int]
    spread: Callable[[Array, Layout], PyTree]
    raw: Callable[[Array, Layout], Array]
    divergence: Callable[[Belief, Belief, Layout], Array]
    receivers: Callable[[Belief, Transport, Layout], Array]
    senders: Callable[[Belief, Transport, Layout], Array]
    times: Callable[[PyTree, Array, Layout], Array]
    natural: Callable[[PyTree, PyTree, Layout], PyTree]
    moved: Callable[[PyTree, PyTree, float, Layout], PyTree]
    square: Callable[[PyTree, Array, PyTree, Layout], Array]


def flat(x: Array) -> Array:
    """The last two axes as one.

    >>> flat(jnp.ones((5, 2, 3))).shape
    (5, 6)
    """
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def total(x: Array) -> Array:
    """Sum over the last two axes: components and copies.

    >>> total(jnp.ones((5, 2, 3)))[0].item()
    6.0
    """
    return jnp.sum(x, axis=(-2, -1))


def row(*parts: Array) -> Array:
    """Features one after the other.

    Args:
        parts: ``[..., k, l]`` of any k and l; or ``[...]``, one number.

    >>> row(jnp.ones((5, 2, 3)), jnp.ones(5)).shape
    (5, 7)
    """
    rank = max(part.ndim for part in parts)
    pairs = (part if part.ndim == rank else part[..., None, None] for part in parts)
    return jnp.concatenate([flat(part) for part in pairs], axis=-1)


def content(belief: Belief) -> Array:
    """``A^-1 mean``: the mean in the common frame, before positions.

    >>> quarter = jnp.array([[[0.0, -1.0], [1.0, 0.0]]])  # turns x to y
    >>> content(Belief(jnp.array([0.0, 1.0]).reshape(1, 2, 1), None, quarter)).ravel().tolist()
    [1.0, 0.0]
    """
    return belief.mean if belief.frame is None else matmul_tn(belief.frame, belief.mean)


def linked(x: Array, link: Array | None) -> Array:
    """``V x`` of each head.

    Args:
        x: ``[..., heads, k, l]``.
        link: ``[heads, k l, k l]``; None for the identity.

    >>> linked(jnp.ones((1, 2, 1)), 2 * jnp.eye(2)[None]).ravel().tolist()
    [2.0, 2.0]
    """
    if link is None:
        return x
    return jnp.einsum("hrs,...hs->...hr", link, flat(x), precision="highest").reshape(x.shape)


def log_det_link(link: Array) -> Array:
    """``log|det V|^2`` of each head, by an orthogonal reduction.

    >>> round(log_det_link(2 * jnp.eye(3)[None]).item(), 4)  # 6 log 2
    4.1589
    """
    return log_det_cholesky(triangularize(link))


def offset(log_det: Array, transport: Transport, layout: Layout) -> Array:
    """``-(log|Sigma| + log|V|^2 + C) / 2``: what a receiver alone adds to its divergences.

    Args:
        log_det: ``log|Sigma|``, ``[..., heads]``.
        transport: with V.
        layout: with C.

    >>> from vfejax.models.vfe.irreps import so3
    >>> offset(jnp.zeros((2, 1)), Transport(), so3((0, 1), heads=1, copies=3)).tolist()
    [[-6.0], [-6.0]]
    """
    if transport.log_det is not None:
        log_det = log_det + expand_leading(transport.log_det, log_det.ndim)
    return -0.5 * (log_det + layout.channels)
