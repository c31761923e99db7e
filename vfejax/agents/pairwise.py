"""All-pairs divergences in the common frame, streamed in blocks of receivers.

KL does not change when both arguments are pushed through one invertible map, and ``Omega_ij = U_i
U_j^{-1}`` factorises, so

    KL(q_i || Omega_ij q_j) = KL(U_i^{-1} q_i || U_j^{-1} q_j).

Rotate every belief once into the common frame, ``(m_i, S_i, P_j = S_j^{-1})``. Then

    2 KL_ij = <P_j, S_i + m_i m_i^T> - 2 m_i . P_j m_j + m_j . P_j m_j + log|S_j| - log|S_i| - k

is a matrix product of one feature row per receiver with one per sender, of length k (k + 1) / 2 + k
+ 2. Alignment is attention with these logits: no array of shape n x n, let alone n x n x k x k, is
ever formed.

Rounding. The features are centred and scaled by the population's mean variances, which changes
nothing in exact arithmetic. What remains is cancellation between the terms of the product: the
absolute error of KL_ij is about ``eps |P_j| (|S_i| + |m_i|^2 + |m_j|^2)`` in those units, so
relative to agents' distances from their common mean. A lower ``compute_dtype`` puts its own eps
there.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.agents import alignment
from vfejax.agents.alignment import AlignmentFn
from vfejax.beliefs.gaussian import Gaussian
from vfejax.geometry import groups
from vfejax.geometry.groups import Generators
from vfejax.geometry.transport import frames
from vfejax.numerics import log_det_cholesky, matvec, transpose, triangular_inverse
from vfejax.types import Array

__all__ = [
    "FrameField",
    "PairFeatures",
    "alignment_energy",
    "attention_weights",
    "edge_alignment_energy",
    "frame_field",
    "pair_features",
    "pairwise_kl",
]

# Entries of one block of pairs: 4 MB in float32, so a block stays in a core's cache on CPU.
BLOCK_ENTRIES = 2**20


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


def _matmul(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision="highest")


def _gram(factor: Array) -> Array:
    return _matmul(factor, transpose(factor))


def _pack(matrix: Array) -> Array:
    """Lower triangle of a symmetric matrix, row by row: ``[..., k, k] -> [..., k (k + 1) / 2]``.

    By a constant 0-1 matrix: its transpose, which the gradient needs, is a product too, not a
    scatter.
    """
    k = matrix.shape[-1]
    rows, columns = np.tril_indices(k)
    selection = np.zeros((k * k, rows.size))
    selection[rows * k + columns, np.arange(rows.size)] = 1.0
    return _matmul(matrix.reshape(*matrix.shape[:-2], k * k), jnp.asarray(selection, matrix.dtype))


def frame_field(phi: Array, generators: Generators) -> FrameField:
    """Frames ``U = exp(phi . J)``, their inverses ``exp(-phi . J)`` and ``log |det U| = phi . tr
    J``.
    """
    group = groups.as_group(generators)
    traces = jnp.trace(jnp.asarray(group.generators, phi.dtype), axis1=-2, axis2=-1)
    outward, inward = frames(jnp.stack([phi, -phi]), group)
    return FrameField(outward, inward, matvec(traces[None], phi)[..., 0])


def pair_features(gaussian: Gaussian, field: FrameField) -> PairFeatures:
    """Feature rows of every agent in the centred and scaled common frame.

    Args:
        gaussian: mean ``[n, k]``, chol ``[n, k, k]``.
        field: the agents' frames, ``[n, k, k]``.

    Returns:
        Rows whose products are the pairwise divergences in nats.
    """
    chol = jnp.tril(gaussian.chol)
    k = chol.shape[-1]
    log_det = log_det_cholesky(chol) - 2.0 * field.log_det
    moments = _matmul(field.inward, jnp.concatenate([chol, gaussian.mean[..., None]], axis=-1))
    factor, mean = moments[..., :k], moments[..., k]
    inverse = _matmul(triangular_inverse(chol), field.outward)

    # Any centre and any scale give the same divergences, so no gradient flows through the choice.
    centre = jax.lax.stop_gradient(jnp.mean(mean, axis=0, keepdims=True))
    variance = jax.lax.stop_gradient(jnp.mean(jnp.sum(factor * factor, axis=-1), axis=0))
    scale = jnp.sqrt(variance)[None]
    mean = (mean - centre) / scale
    second_moment = _gram(jnp.concatenate([factor / scale[..., None], mean[..., None]], axis=-1))
    precision = _gram(transpose(inverse * scale[:, None, :]))
    information = matvec(precision, mean)

    off_diagonal = 2.0 - jnp.eye(k, dtype=chol.dtype)[None]
    one = jnp.ones_like(log_det)[:, None]
    receiver = [_pack(second_moment * off_diagonal), -2.0 * mean, one, (-log_det - k)[:, None]]
    quadratic = jnp.sum(mean * information, axis=-1) + log_det
    sender = [_pack(precision), information, quadratic[:, None], one]
    return PairFeatures(0.5 * jnp.concatenate(receiver, axis=-1), jnp.concatenate(sender, axis=-1))


def pairwise_kl(gaussian: Gaussian, phi: Array, generators: Generators) -> Array:
    """All divergences ``KL(q_i || Omega_ij q_j)``, in nats.

    Args:
        gaussian: mean ``[n, k]``, chol ``[n, k, k]``.
        phi: frame coordinates ``[n, a]``.
        generators: Lie-algebra basis ``[a, k, k]``, or a group.

    Returns:
        ``[n, n]``, receiver i along rows, sender j along columns. For more agents than fit as a
        matrix, sum over pairs with :func:`alignment_energy` instead.
    """
    features = pair_features(gaussian, frame_field(phi, generators))
    return _matmul(features.receiver, features.sender.T)


def attention_weights(
    gaussian: Gaussian,
    phi: Array,
    generators: Generators,
    temperature: float | Array,
    *,
    log_weight: Array | None = None,
) -> Array:
    """Attention ``beta_ij`` over j != i at temperature tau (nats), ``[n, n]``; rows sum to 1, or to
    0 without neighbours.
    """
    divergence = pairwise_kl(gaussian, phi, generators) / temperature
    num = divergence.shape[0]
    bias = (
        jnp.zeros_like(divergence)
        if log_weight is None
        else jnp.broadcast_to(log_weight[None], divergence.shape)
    )
    masked = jnp.where(jnp.eye(num, dtype=bool), -jnp.inf, bias)
    return alignment.attention(divergence, masked, alignment.rows())


def _block_size(num_agents: int, requested: int | None) -> int:
    largest = max(1, BLOCK_ENTRIES // num_agents) if requested is None else requested
    if largest < 1:
        raise ValueError(f"block_size must be at least 1, got {requested}")
    num_blocks = -(-num_agents // largest)
    return -(-num_agents // num_blocks)


class _Streamed(NamedTuple):
    """What the streamed energy depends on; a NamedTuple so that tangents and gradients share its
    structure.
    """

    receiver: Array
    sender: Array
    coefficient: Array
    log_weight: Array | None


class _Setting(NamedTuple):
    """Static choices of the stream."""

    alignment_fn: AlignmentFn
    block_size: int
    compute_dtype: Any


def _product(left: Array, right: Array, setting: _Setting) -> Array:
    """Matrix product in the compute dtype, accumulated and returned in the dtype of the
    features.
    """
    dtype = right.dtype
    if setting.compute_dtype is None:
        return jnp.matmul(left, right, precision="highest")
    left, right = left.astype(setting.compute_dtype), right.astype(setting.compute_dtype)
    return jnp.matmul(left, right, preferred_element_type=dtype)


def _blocks(inputs: _Streamed, block_size: int) -> tuple[Array, Array, Array]:
    """Receivers in blocks: indices ``[blocks, b]``, features ``[blocks, b, f]``, coefficients;
    padding has coefficient 0.
    """
    num = inputs.receiver.shape[0]
    num_blocks = -(-num // block_size)
    padding = num_blocks * block_size - num
    receiver = jnp.pad(inputs.receiver, ((0, padding), (0, 0))).reshape(num_blocks, block_size, -1)
    coefficient = jnp.pad(inputs.coefficient, (0, padding)).reshape(num_blocks, block_size)
    return (
        jnp.arange(num_blocks * block_size).reshape(num_blocks, block_size),
        receiver,
        coefficient,
    )


def _block_energies(
    divergence: Array, log_weight: Array | None, index: Array, setting: _Setting
) -> Array:
    """Energies of one block of receivers against all senders, itself excluded."""
    num = divergence.shape[-1]
    bias = jnp.zeros((1, 1), divergence.dtype) if log_weight is None else log_weight[None, :]
    self_pair = index[:, None] == jnp.arange(num)[None, :]
    masked = jnp.where(self_pair, -jnp.inf, jnp.broadcast_to(bias, divergence.shape))
    return setting.alignment_fn(divergence, masked, alignment.rows())


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _streamed_energy(inputs: _Streamed, setting: _Setting) -> Array:
    """``sum_i coefficient_i E_i`` with one block of pairs alive at a time."""

    def block(total: Array, xs: tuple[Array, Array, Array]) -> tuple[Array, None]:
        index, receiver, coefficient = xs
        divergence = _product(receiver, inputs.sender.T, setting)
        energies = _block_energies(divergence, inputs.log_weight, index, setting)
        return total + jnp.sum(coefficient * energies), None

    zero = jnp.zeros((), inputs.receiver.dtype)
    return jax.lax.scan(block, zero, _blocks(inputs, setting.block_size))[0]


def _streamed_value_and_grad(inputs: _Streamed, setting: _Setting) -> tuple[Array, _Streamed]:
    """Energy and its gradient in one sweep: a block holds whole rows, so its softmax and slope need
    no second pass.
    """

    def block(carry, xs):
        total, sender_grad, weight_grad = carry
        index, receiver, coefficient = xs
        divergence = _product(receiver, inputs.sender.T, setting)
        energies, pull_back = jax.vjp(
            lambda d, w: _block_energies(d, w, index, setting), divergence, inputs.log_weight
        )
        slope, weight_slope = pull_back(coefficient)
        sender_grad = sender_grad + _product(slope.T, receiver, setting)
        weight_grad = jax.tree.map(jnp.add, weight_grad, weight_slope)
        total = total + jnp.sum(coefficient * energies)
        return (total, sender_grad, weight_grad), (
            _product(slope, inputs.sender, setting),
            energies,
        )

    start = (
        jnp.zeros((), inputs.receiver.dtype),
        jnp.zeros_like(inputs.sender),
        jax.tree.map(jnp.zeros_like, inputs.log_weight),
    )
    (total, sender_grad, weight_grad), (receiver_grad, energies) = jax.lax.scan(
        block, start, _blocks(inputs, setting.block_size)
    )
    num, width = inputs.receiver.shape
    receiver_grad = receiver_grad.reshape(-1, width)[:num]
    return total, _Streamed(receiver_grad, sender_grad, energies.reshape(-1)[:num], weight_grad)


@_streamed_energy.defjvp
def _streamed_energy_jvp(setting, primals, tangents):
    # A jvp rule that is linear in the tangents serves forward mode, reverse mode (by transposition,
    # which only scales the stored O(n k^2) gradient) and their compositions; a vjp rule would serve
    # reverse mode alone.
    (inputs,), (tangent,) = primals, tangents
    value, gradient = _streamed_value_and_grad(inputs, setting)
    products = jax.tree.map(lambda g, t: jnp.sum(g * t), gradient, tangent)
    return value, jax.tree.reduce(jnp.add, products)


def alignment_energy(
    features: PairFeatures,
    temperature: float | Array,
    *,
    coefficient: Array | None = None,
    log_weight: Array | None = None,
    alignment_fn: AlignmentFn = alignment.weighted,
    block_size: int | None = None,
    compute_dtype: Any = None,
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
        alignment_fn: :func:`vfejax.agents.alignment.weighted`, ``entropic``, or your own.
        block_size: receivers per block; by default a block of pairs takes 4 MB in float32.
        compute_dtype: dtype of the operands of the pairwise products, such as ``jnp.bfloat16``;
            they accumulate in the dtype of the
            features, which is also the default.

    Returns:
        A scalar. Differentiable in forward and reverse mode, to every order.
    """
    num = features.receiver.shape[0]
    ones = jnp.ones((num,), features.receiver.dtype)
    inputs = _Streamed(
        features.receiver / temperature,
        features.sender,
        ones if coefficient is None else coefficient,
        log_weight,
    )
    setting = _Setting(alignment_fn, _block_size(num, block_size), compute_dtype)
    return temperature * _streamed_energy(inputs, setting)


def edge_alignment_energy(
    features: PairFeatures,
    receivers: Array,
    senders: Array,
    temperature: float | Array,
    *,
    coefficient: Array | None = None,
    log_weight: Array | None = None,
    alignment_fn: AlignmentFn = alignment.weighted,
) -> Array:
    """Alignment energy over a neighbour list: agent ``receivers[e]`` listens to agent
    ``senders[e]``.

    Args:
        features: rows from :func:`pair_features`.
        receivers: integers ``[e]`` in [0, n).
        senders: integers ``[e]`` in [0, n); an edge from an agent to itself is ignored.
        temperature: tau in nats, positive.
        coefficient: as in :func:`alignment_energy`.
        log_weight: as in :func:`alignment_energy`.
        alignment_fn: as in :func:`alignment_energy`.

    Returns:
        A scalar. Time and memory O(e k^2).
    """
    num = features.receiver.shape[0]
    divergence = jnp.sum(
        features.receiver[receivers] / temperature * features.sender[senders], axis=-1
    )
    bias = jnp.zeros_like(divergence) if log_weight is None else log_weight[senders]
    masked = jnp.where(receivers == senders, -jnp.inf, bias)
    energies = alignment_fn(divergence, masked, alignment.segments(receivers, num))
    return temperature * jnp.sum(energies if coefficient is None else coefficient * energies)
