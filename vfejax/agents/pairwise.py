"""All-pairs divergences in the common frame, streamed in blocks of receivers.

KL does not change when both arguments are pushed through one invertible map, and ``Omega_ij = U_i
U_j^{-1}`` factorises, so

    KL(q_i || Omega_ij q_j) = KL(U_i^{-1} q_i || U_j^{-1} q_j).

Rotate every belief once into the common frame, ``(m_i, S_i, P_j = S_j^{-1})``. Then

    2 KL_ij = <P_j, S_i + m_i m_i^T> - 2 m_i . P_j m_j + m_j . P_j m_j + log|S_j| - log|S_i| - k

is a matrix product of one feature row per receiver with one per sender, of length k (k + 1) / 2 + k
+ 2. But for ``log|S_i| + k`` it is an inner product of two symmetric matrices of size k + 1, whose
triangles are the features: the second moments of ``(x, -1)`` under agent i, and the Gram matrix of
``L_j^{-1} U_j [1, m_j]`` with ``log|S_j|`` in its corner. Alignment is attention with these logits:
no array of shape n x n, let alone n x n x k x k, is ever formed.

Rounding. The features are centred and scaled by the population's mean variances, which changes
nothing in exact arithmetic. What remains is cancellation between the terms of the product: the
absolute error of KL_ij is about ``eps |P_j| (|S_i| + |m_i|^2 + |m_j|^2)`` in those units, so
relative to agents' distances from their common mean. One agent further than ``n eps^{-1/2}``
standard deviations away costs all others their digits: 10^5 in float32 for 16 agents. A lower
``compute_dtype`` puts its own eps there. A neighbour list (:mod:`vfejax.agents.edges`) does not
cancel.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.agents import _streamed, alignment
from vfejax.agents._features import feature_rows
from vfejax.agents.alignment import AlignmentFn
from vfejax.beliefs.gaussian import Gaussian
from vfejax.geometry.groups import Generators, as_group
from vfejax.geometry.transport import frames
from vfejax.numerics import as_floating, floating_tree, matmul, transpose
from vfejax.types import Array

__all__ = [
    "FrameField",
    "Method",
    "PairFeatures",
    "alignment_energy",
    "attention_sums",
    "attention_weights",
    "frame_field",
    "pair_features",
    "pairwise_kl",
]


class FrameField(NamedTuple):
    """Frames and their inverses ``[..., k, k]`` with ``log_det = log |det U| [...]``; computed
    once, used by every term.
    """

    outward: Array
    inward: Array
    log_det: Array


class PairFeatures(NamedTuple):
    """Rows with ``KL_ij = receiver_i . sender_j`` in nats, both ``[n, k (k + 1) / 2 + k + 2]``."""

    receiver: Array
    sender: Array


def _orthogonal(generators: Array | np.ndarray) -> bool:
    """Whether known generators are antisymmetric, so that every frame is orthogonal."""
    if isinstance(generators, jax.core.Tracer):
        return False
    j = np.asarray(generators)
    return np.array_equal(j, -np.swapaxes(j, -1, -2))


def frame_field(phi: Array, generators: Generators) -> FrameField:
    """Frames ``U = exp(phi . J)``, their inverses ``exp(-phi . J)`` and ``log |det U| = phi . tr
    J``.

    Args:
        phi: frame coordinates ``[..., a]``; integers count as floating numbers of the default
            precision.
        generators: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``, which means
            the general exponential.

    Returns:
        Frames ``[..., k, k]``, their inverses and log determinants ``[...]``.

    >>> from vfejax.geometry import irreps
    >>> field = frame_field(jnp.ones((4, 3)), irreps.so3((0, 1)))
    >>> bool(jnp.allclose(field.outward @ field.inward, jnp.eye(4), atol=1e-6))
    True
    """
    group, phi = as_group(generators), as_floating(phi, "phi")
    traces = jnp.trace(jnp.asarray(group.generators, phi.dtype), axis1=-2, axis2=-1)
    if _orthogonal(group.generators):
        outward = frames(phi, group)
        inward = transpose(outward)
    else:
        outward, inward = frames(jnp.stack([phi, -phi]), group)
    return FrameField(
        outward, inward, jnp.sum(phi * traces.reshape((1,) * (phi.ndim - 1) + (-1,)), axis=-1)
    )


def pair_features(
    gaussian: Gaussian, field: FrameField, present: Array | None = None
) -> PairFeatures:
    """Feature rows of every agent in the centred and scaled common frame.

    Args:
        gaussian: mean ``[n, k]``, chol ``[n, k, k]``.
        field: the agents' frames, ``[n, k, k]``.
        present: supports ``[n]``: agents where it is 0 do not count in the centre and the scale.
            All do by default.

    Returns:
        Rows whose products are the pairwise divergences in nats.

    >>> from vfejax.geometry import irreps
    >>> agents = Gaussian(jnp.eye(3), jnp.tile(jnp.eye(3), (3, 1, 1)))
    >>> rows = pair_features(agents, frame_field(jnp.zeros((3, 3)), irreps.so3((1,))))
    >>> (rows.receiver @ rows.sender.T).round(4)
    Array([[0., 1., 1.],
           [1., 0., 1.],
           [1., 1., 0.]], dtype=float32)
    """
    gaussian = floating_tree(gaussian, "gaussian")
    return PairFeatures(
        *feature_rows(gaussian, field.outward, field.inward, field.log_det, present)
    )


def pairwise_kl(gaussian: Gaussian, phi: Array, generators: Generators) -> Array:
    """All divergences ``KL(q_i || Omega_ij q_j)``, in nats.

    Args:
        gaussian: mean ``[n, k]``, chol ``[n, k, k]``.
        phi: frame coordinates ``[n, a]``.
        generators: as :func:`frame_field` takes them.

    Returns:
        ``[n, n]``, receiver i along rows, sender j along columns. For more agents than fit as a
        matrix, sum over pairs with :func:`alignment_energy` instead.

    >>> from vfejax.geometry import irreps
    >>> agents = Gaussian(jnp.eye(2, 3), jnp.tile(jnp.eye(3), (2, 1, 1)))
    >>> quarter = jnp.array([[0.0, 0.0, jnp.pi / 2], [0.0, 0.0, 0.0]])
    >>> divergence = jax.jit(pairwise_kl)(agents, quarter, irreps.so3((1,)))
    >>> divergence.round(4)  # seen from the common frame
    Array([[0., 2.],
           [2., 0.]], dtype=float32)
    """
    features = pair_features(gaussian, frame_field(phi, generators))
    return matmul(features.receiver, features.sender.T)


def attention_weights(
    gaussian: Gaussian,
    phi: Array,
    generators: Generators,
    temperature: float | Array,
    *,
    log_weight: Array | None = None,
) -> Array:
    """Attention ``beta_ij`` of all agents to all others.

    Args:
        gaussian, phi, generators: as :func:`pairwise_kl` takes them.
        temperature: tau in nats, positive.
        log_weight: log of each sender's weight ``[n]``; ``-inf`` removes it. 0 by default.

    Returns:
        ``[n, n]`` with 0 on the diagonal; rows sum to 1, or to 0 without neighbours.

    >>> from vfejax.geometry import irreps
    >>> agents = Gaussian(jnp.eye(3), jnp.tile(jnp.eye(3), (3, 1, 1)))
    >>> jax.jit(attention_weights)(agents, jnp.zeros((3, 3)), irreps.so3((1,)), 1.0).round(4)
    Array([[0. , 0.5, 0.5],
           [0.5, 0. , 0.5],
           [0.5, 0.5, 0. ]], dtype=float32)
    """
    divergence = pairwise_kl(gaussian, phi, generators)
    divergence = divergence / jnp.asarray(temperature, divergence.dtype)
    index = jnp.arange(divergence.shape[0])
    return alignment.attention(*_streamed.counted(divergence, log_weight, index), alignment.rows())


class Method(Protocol):
    """How the alignment energy of all pairs is computed: :func:`alignment_energy` on one device, or
    what :func:`vfejax.agents.ring.ring` makes for many.

    Args:
        features, temperature, coefficient, log_weight, alignment_fn, block_size, compute_dtype: as
            :func:`alignment_energy` takes them.
    """

    def __call__(
        self,
        features: PairFeatures,
        temperature: float | Array,
        /,
        *,
        coefficient: Array | None = None,
        log_weight: Array | None = None,
        alignment_fn: AlignmentFn = alignment.weighted,
        block_size: int | None = None,
        compute_dtype: jax.typing.DTypeLike | None = None,
    ) -> Array: ...


def alignment_energy(
    features: PairFeatures,
    temperature: float | Array,
    *,
    coefficient: Array | None = None,
    log_weight: Array | None = None,
    alignment_fn: AlignmentFn = alignment.weighted,
    block_size: int | None = None,
    compute_dtype: jax.typing.DTypeLike | None = None,
) -> Array:
    """Alignment energy of all agents to all others, ``sum_i coefficient_i E_i``, in nats.

    Time is three products of ``n x f`` with ``f x n`` features and one exponential per pair for
    value and gradient together; memory is O(n k^2 + block_size n).

    Args:
        features: rows from :func:`pair_features`.
        temperature: tau in nats, positive.
        coefficient: weight of each receiver's energy ``[n]`` (support times quadrature weight), 1
            by default.
        log_weight: log of each sender's weight in the softmax ``[n]``; ``-inf`` removes it. 0 by
            default.
        alignment_fn: :func:`vfejax.agents.alignment.weighted`, ``entropic``, ``saturating`` or your
            own.
        block_size: receivers per block; by default a block of pairs takes 4 MB in float32.
        compute_dtype: dtype of the operands of the pairwise products, such as ``jnp.bfloat16``;
            they accumulate in the dtype of the features, which is also the default.

    Returns:
        A scalar. Differentiable in forward and reverse mode, to every order.

    Raises:
        ValueError: for a ``block_size`` below 1.

    >>> from vfejax.geometry import irreps
    >>> agents = Gaussian(jnp.eye(3), jnp.tile(jnp.eye(3), (3, 1, 1)))
    >>> features = pair_features(agents, frame_field(jnp.zeros((3, 3)), irreps.so3((1,))))
    >>> round(float(alignment_energy(features, 1.0)), 4)
    3.0
    """
    size = _streamed.block_size(features.receiver.shape[0], block_size)
    sweep = _streamed.whole_rows(_streamed.Setting(alignment_fn, size, compute_dtype))
    return _streamed.energy_of(*features, temperature, coefficient, log_weight, sweep)


def attention_sums(
    features: PairFeatures,
    temperature: float | Array,
    values: Array,
    *,
    coefficient: Array | None = None,
    log_weight: Array | None = None,
    block_size: int | None = None,
) -> tuple[Array, Array]:
    """What every agent receives and gives: ``c_i sum_j beta_ij v_j`` and ``sum_i c_i beta_ij``.

    Args:
        features, temperature, log_weight, block_size: as :func:`alignment_energy` takes them.
        values: v ``[n, f]`` of the senders.
        coefficient: c ``[n]`` of each receiver, 1 by default.

    Returns:
        ``[n, f]`` by receiver and ``[n]`` by sender. Time O(n^2 (k^2 + f)), memory O(n (k^2 + f) +
        block_size n), for gradients too: they compute each block once more.

    >>> from vfejax.geometry import irreps
    >>> agents = Gaussian(jnp.eye(3), jnp.tile(jnp.eye(3), (3, 1, 1)))
    >>> features = pair_features(agents, frame_field(jnp.zeros((3, 3)), irreps.so3((1,))))
    >>> received, given = attention_sums(features, 1.0, jnp.array([[0.0], [2.0], [4.0]]))
    >>> received[:, 0].round(4), given.round(4)
    (Array([3., 2., 1.], dtype=float32), Array([1., 1., 1.], dtype=float32))
    """
    num, dtype = features.receiver.shape[0], features.receiver.dtype
    if num == 0:
        return values, jnp.zeros((0,), dtype)
    inputs = _streamed.inputs(*features, jnp.asarray(temperature, dtype), coefficient, log_weight)

    @jax.checkpoint
    def block(given: Array, xs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        index, receiver, weight = xs
        divergence = matmul(receiver, features.sender.T)
        counted = _streamed.counted(divergence, log_weight, index)
        beta = weight[:, None] * alignment.attention(*counted, alignment.rows())
        return given + jnp.sum(beta, axis=0), matmul(beta, values)

    blocks = _streamed.blocks(inputs, _streamed.block_size(num, block_size))
    given, received = jax.lax.scan(block, jnp.zeros((num,), dtype), blocks)
    return received.reshape(-1, values.shape[-1])[:num], given
