"""Alignment over a neighbour list, edge by edge, by exact whitened differences.

In the common frame (:mod:`vfejax.agents.pairwise`) agent i has the factor ``A_i = U_i^{-1} L_i``
and the mean ``m_i``, and agent j whitens by ``V_j = L_j^{-1} U_j``. Along an edge

    2 KL_ij = |V_j A_i|_F^2 + |V_j (m_i - m_j)|^2 - k + log|S_j| - log|S_i|.

The difference of the means is taken before anything is squared, so nothing cancels, and an agent
that is on no edge plays no part. It costs O(e k^3), where the feature rows of all pairs, which
cancel, would take O(e k^2).

A transport need not be a quotient of frames. With an element ``V_e`` of the group on each edge it
is ``Omega_e = U_i V_e U_j^{-1}``. The product around a loop of edges can then differ from the
identity, so the connection has curvature (:mod:`vfejax.agents.links`). In the common frame
``V_e^{-1} A_i`` and ``V_e^{-1} m_i`` take the place of ``A_i`` and ``m_i``.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.agents import alignment
from vfejax.agents.alignment import AlignmentFn
from vfejax.agents.pairwise import FrameField
from vfejax.beliefs.gaussian import Gaussian
from vfejax.numerics import floating_tree, log_det_cholesky, matmul, matvec, triangular_solve
from vfejax.types import Array

__all__ = [
    "CommonFrame",
    "Edges",
    "check_edges",
    "common_frame",
    "divergence_between",
    "edge_alignment_energy",
    "edge_attention_sums",
    "edge_divergences",
    "known_integers",
]


class Edges(NamedTuple):
    """Neighbour list: agent ``receivers[e]`` listens to agent ``senders[e]``, integers ``[e]``.

    An edge from an agent to itself does not count. No edge may be listed twice: its sender would
    count as two neighbours.
    """

    receivers: Array
    senders: Array


class CommonFrame(NamedTuple):
    """Gaussians pushed into the common frame, as the divergence along an edge needs them.

    ``factor`` is ``A = U^{-1} L [..., k, k]`` (not triangular), ``whitener`` its inverse ``V =
    L^{-1} U``, ``mean`` is ``U^{-1} mu [..., k]``, and ``log_det`` is ``log|A A^T| [...]``.
    """

    factor: Array
    whitener: Array
    mean: Array
    log_det: Array


def common_frame(gaussian: Gaussian, field: FrameField) -> CommonFrame:
    """Push Gaussians into the common frame.

    Args:
        gaussian: mean ``[..., k]``, chol ``[..., k, k]``.
        field: their frames, ``[..., k, k]``, from :func:`vfejax.agents.pairwise.frame_field`.

    Returns:
        What :func:`divergence_between` compares.

    >>> from vfejax.agents.pairwise import frame_field
    >>> from vfejax.geometry import irreps
    >>> q = Gaussian(jnp.array([0.0, 1.0, 0.0]), jnp.eye(3))
    >>> quarter = frame_field(jnp.array([0.0, 0.0, jnp.pi / 2]), irreps.so3((1,)))
    >>> common_frame(q, quarter).mean.round(4) + 0.0
    Array([1., 0., 0.], dtype=float32)
    """
    gaussian = floating_tree(gaussian, "gaussian")
    chol = jnp.tril(gaussian.chol)
    return CommonFrame(
        matmul(field.inward, chol),
        triangular_solve(chol, field.outward),
        matvec(field.inward, gaussian.mean),
        log_det_cholesky(chol) - 2.0 * field.log_det,
    )


def divergence_between(receiver: CommonFrame, sender: CommonFrame) -> Array:
    """``KL(q_i || Omega_ij q_j)`` of receivers i and senders j in the common frame, in nats,
    ``[...]``.

    >>> unit = CommonFrame(jnp.eye(2), jnp.eye(2), jnp.zeros(2), jnp.zeros(()))
    >>> float(divergence_between(unit._replace(mean=jnp.ones(2)), unit))
    1.0
    """
    columns = [receiver.factor, (receiver.mean - sender.mean)[..., None]]
    whitened = matmul(sender.whitener, jnp.concatenate(columns, axis=-1))
    squares = jnp.sum(whitened * whitened, axis=(-2, -1))
    return 0.5 * (squares - receiver.mean.shape[-1] + sender.log_det - receiver.log_det)


def _through(links: FrameField, rows: CommonFrame) -> CommonFrame:
    """Gaussians pushed through the inverse of a link, one for each edge."""
    return CommonFrame(
        matmul(links.inward, rows.factor),
        matmul(rows.whitener, links.outward),
        matvec(links.inward, rows.mean),
        rows.log_det - 2.0 * links.log_det,
    )


def check_edges(edges: Edges, num_agents: int) -> None:
    """Refuse a neighbour list that does not fit a population.

    Numbers can be checked only where they are known: for arrays, and for the constants of a
    compiled function. Edges that are traced, as an argument of a compiled function is, are checked
    for shape and dtype; an agent out of range then makes the energy NaN, and an edge that is listed
    twice counts twice.

    Args:
        edges: the neighbour list.
        num_agents: number of agents n.

    Raises:
        ValueError: when receivers and senders are not integers ``[e]``, when one is outside [0, n),
            or when an edge is listed twice.

    >>> check_edges(Edges(jnp.array([0, 1]), jnp.array([1, 2])), num_agents=2)
    Traceback (most recent call last):
        ...
    ValueError: edges.senders must be in [0, 2), got 2 in edge 1
    """
    receivers, senders = jnp.shape(edges.receivers), jnp.shape(edges.senders)
    if len(receivers) != 1 or receivers != senders:
        raise ValueError(
            f"edges must have receivers and senders of one shape [e], got {receivers} and {senders}"
        )
    known = known_integers("edges", edges._asdict())
    if known is None:
        return
    for name, ends in known.items():
        outside = np.flatnonzero((ends < 0) | (ends >= num_agents))
        if outside.size:
            raise ValueError(
                f"edges.{name} must be in [0, {num_agents}), got {ends[outside[0]]} in edge "
                f"{outside[0]}"
            )
    pairs, counts = np.unique(np.stack(list(known.values()), axis=-1), axis=0, return_counts=True)
    if np.any(counts > 1):
        receiver, sender = pairs[np.argmax(counts)]
        raise ValueError(
            f"edges must not be listed twice, got {np.max(counts)} edges from sender {sender} to "
            f"receiver {receiver}; keep one"
        )


def known_integers(name: str, fields: Mapping[str, Array]) -> dict[str, np.ndarray] | None:
    """Lists of numbers, where their values are known; None where one of them is traced.

    Args:
        name: what an error should call what the lists are fields of.
        fields: by name.

    Raises:
        ValueError: unless they are integers.

    >>> known_integers("edges", {"senders": jnp.array([1, 0])})["senders"].tolist()
    [1, 0]
    """
    for field, x in fields.items():
        if not jnp.issubdtype(jnp.result_type(x), jnp.integer):
            raise ValueError(f"{name}.{field} must be integers, got {jnp.result_type(x)}")
    if any(isinstance(x, jax.core.Tracer) for x in fields.values()):
        return None
    return {field: np.asarray(x) for field, x in fields.items()}


def _inside(edges: Edges, num_agents: int) -> Array:
    """Whether both ends of each edge are agents, ``[e]``."""
    least = jnp.minimum(edges.receivers, edges.senders)
    return (least >= 0) & (jnp.maximum(edges.receivers, edges.senders) < num_agents)


def edge_divergences(
    gaussian: Gaussian, field: FrameField, edges: Edges, *, links: FrameField | None = None
) -> Array:
    """Divergences ``KL(q_i || Omega_e q_j)`` along the edges, in nats.

    Args:
        gaussian: mean ``[n, k]``, chol ``[n, k, k]``.
        field: the agents' frames, ``[n, k, k]``, from :func:`vfejax.agents.pairwise.frame_field`.
        edges: the neighbour list.
        links: the group element V_e of each edge ``[e, k, k]``, ``frame_field`` of link
            coordinates. By default the transport is ``U_i U_j^{-1}``.

    Returns:
        ``[e]``; 0 for an edge from an agent to itself, NaN for an agent out of range. Differences
        of means carry the rounding of the means and nothing else.

    Raises:
        ValueError: as :func:`check_edges` does.

    >>> from vfejax.agents.pairwise import frame_field
    >>> from vfejax.geometry import irreps
    >>> agents = Gaussian(1000.0 + jnp.arange(9.0).reshape(3, 3), jnp.tile(jnp.eye(3), (3, 1, 1)))
    >>> field = frame_field(jnp.zeros((3, 3)), irreps.so3((1,)))
    >>> edge_divergences(agents, field, Edges(jnp.array([0, 0]), jnp.array([1, 2])))
    Array([13.5, 54. ], dtype=float32)
    """
    num = gaussian.mean.shape[0]
    check_edges(edges, num)
    receivers, senders = edges
    rows = common_frame(gaussian, field)
    near, far = (jax.tree.map(lambda x, i=i: x[i], rows) for i in edges)
    divergence = divergence_between(near if links is None else _through(links, near), far)
    divergence = jnp.where(receivers == senders, 0.0, divergence)
    return jnp.where(_inside(edges, num), divergence, jnp.nan)


def edge_alignment_energy(
    gaussian: Gaussian,
    field: FrameField,
    edges: Edges,
    temperature: float | Array,
    *,
    coefficient: Array | None = None,
    log_weight: Array | None = None,
    alignment_fn: AlignmentFn = alignment.weighted,
    links: FrameField | None = None,
) -> Array:
    """Alignment energy over a neighbour list, ``sum_i coefficient_i E_i``, in nats.

    Args:
        gaussian: mean ``[n, k]``, chol ``[n, k, k]``.
        field: the agents' frames, ``[n, k, k]``, from :func:`vfejax.agents.pairwise.frame_field`.
        edges: the neighbour list; an edge from an agent to itself is ignored.
        temperature: tau in nats, positive.
        coefficient: weight of each receiver's energy ``[n]`` (support times quadrature weight), 1
            by default.
        log_weight: log of each sender's weight in the softmax ``[n]``; ``-inf`` removes it. 0 by
            default.
        alignment_fn: :func:`vfejax.agents.alignment.weighted`, ``entropic``, ``saturating`` or your
            own.
        links: the group element V_e of each edge ``[e, k, k]``; none by default.

    Returns:
        A scalar. Time O(e k^3), memory O((e + n) k^2).

    Raises:
        ValueError: as :func:`check_edges` does.

    >>> from vfejax.agents.pairwise import frame_field
    >>> from vfejax.geometry import irreps
    >>> agents = Gaussian(jnp.eye(3), jnp.tile(jnp.eye(3), (3, 1, 1)))
    >>> field = frame_field(jnp.zeros((3, 3)), irreps.so3((1,)))
    >>> edge_alignment_energy(agents, field, Edges(jnp.array([0]), jnp.array([1])), 1.0)
    Array(1., dtype=float32)
    """
    receivers, _ = edges
    num, dtype = gaussian.mean.shape[0], gaussian.mean.dtype
    temperature = jnp.asarray(temperature, dtype)
    divergence, bias = _counted(gaussian, field, edges, temperature, log_weight, links)
    energies = alignment_fn(divergence, bias, alignment.segments(receivers, num))
    total = temperature * jnp.sum(energies if coefficient is None else coefficient * energies)
    # A receiver out of range has no energy of its own that could be NaN.
    return jnp.where(jnp.all(_inside(edges, num)), total, jnp.nan)


def _counted(
    gaussian: Gaussian,
    field: FrameField,
    edges: Edges,
    temperature: Array,
    log_weight: Array | None,
    links: FrameField | None = None,
) -> tuple[Array, Array]:
    """Divergences in units of the temperature and log weights, as
    :class:`vfejax.agents.alignment.AlignmentFn` wants them: 0 and ``-inf`` for edges that do not
    count.
    """
    receivers, senders = edges
    divergence = edge_divergences(gaussian, field, edges, links=links)
    bias = jnp.zeros_like(divergence) if log_weight is None else log_weight[senders]
    bias = jnp.where(receivers == senders, -jnp.inf, bias)
    # A pair that does not count has divergence 0, whatever it would be.
    return jnp.where(bias == -jnp.inf, 0.0, divergence) / temperature, bias


def edge_attention_sums(
    gaussian: Gaussian,
    field: FrameField,
    edges: Edges,
    temperature: float | Array,
    values: Array,
    *,
    coefficient: Array | None = None,
    log_weight: Array | None = None,
) -> tuple[Array, Array]:
    """What every agent receives and gives along the edges: ``c_i sum_j beta_ij v_j`` and ``sum_i
    c_i beta_ij``.

    Args:
        gaussian: mean ``[n, k]``, chol ``[n, k, k]``.
        field: the agents' frames, ``[n, k, k]``, from :func:`vfejax.agents.pairwise.frame_field`.
        edges: the neighbour list; an edge from an agent to itself is ignored.
        temperature: tau in nats, positive.
        values: v ``[n, f]`` of the senders.
        coefficient: c ``[n]`` of each receiver, 1 by default.
        log_weight: log of each sender's weight in the softmax ``[n]``; ``-inf`` removes it. 0 by
            default.

    Returns:
        ``[n, f]`` by receiver and ``[n]`` by sender.

    Raises:
        ValueError: as :func:`check_edges` does.

    >>> from vfejax.agents.pairwise import frame_field
    >>> from vfejax.geometry import irreps
    >>> agents = Gaussian(jnp.eye(3), jnp.tile(jnp.eye(3), (3, 1, 1)))
    >>> field, chain = frame_field(jnp.zeros((3, 3)), irreps.so3((1,))), Edges(
    ...     jnp.array([0, 1, 1, 2]), jnp.array([1, 0, 2, 1]))
    >>> received, given = edge_attention_sums(agents, field, chain, 1.0, jnp.ones((3, 1)))
    >>> received[:, 0].tolist(), given.tolist()
    ([1.0, 1.0, 1.0], [0.5, 2.0, 0.5])
    """
    receivers, senders = edges
    num, dtype = gaussian.mean.shape[0], gaussian.mean.dtype
    counted = _counted(gaussian, field, edges, jnp.asarray(temperature, dtype), log_weight)
    beta = alignment.attention(*counted, alignment.segments(receivers, num))
    beta = beta if coefficient is None else coefficient[receivers] * beta
    received = jax.ops.segment_sum(beta[:, None] * values[senders], receivers, num)
    return received, jax.ops.segment_sum(beta, senders, num)
