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

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax import lanes
from vfejax.agents import alignment
from vfejax.agents.alignment import AlignmentFn
from vfejax.agents.packing import packed_gram
from vfejax.beliefs.gaussian import Gaussian
from vfejax.geometry.groups import Generators, as_group
from vfejax.geometry.transport import frames
from vfejax.numerics import matmul, transpose
from vfejax.types import Array, PyTree

__all__ = [
    "FrameField",
    "PairFeatures",
    "alignment_energy",
    "attention_sums",
    "attention_weights",
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
        phi: frame coordinates ``[..., a]``.
        generators: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``, which means
            the general exponential.

    Returns:
        Frames ``[..., k, k]``, their inverses and log determinants ``[...]``.

    >>> from vfejax.geometry import irreps
    >>> field = frame_field(jnp.ones((4, 3)), irreps.so3((0, 1)))
    >>> bool(jnp.allclose(field.outward @ field.inward, jnp.eye(4), atol=1e-6))
    True
    """
    group = as_group(generators)
    traces = jnp.trace(jnp.asarray(group.generators, phi.dtype), axis1=-2, axis2=-1)
    if _orthogonal(group.generators):
        outward = frames(phi, group)
        inward = transpose(outward)
    else:
        outward, inward = frames(jnp.stack([phi, -phi]), group)
    return FrameField(
        outward, inward, jnp.sum(phi * traces.reshape((1,) * (phi.ndim - 1) + (-1,)), axis=-1)
    )


def _centre_and_scale(mean: Array, factor: Array, present: Array | None) -> tuple[Array, Array]:
    """Common mean ``[k, 1]`` and root of the mean variances ``[k, 1]`` of the agents present, with
    means ``[k, n]`` and covariances ``factor^T factor``.

    Any centre and any scale give the same divergences, so no gradient flows through the choice.
    """
    variance = jnp.sum(factor * factor, axis=0)
    # A broken agent, or one that is nowhere and may be anywhere, is left out, not multiplied by 0:
    # the divergences of the others stay theirs.
    here = jnp.all(jnp.isfinite(mean) & jnp.isfinite(variance), axis=0, keepdims=True)
    if present is not None:
        here = here & (present > 0)[None]
    share = here.astype(mean.dtype)
    share = share / jnp.maximum(jnp.sum(share), 1.0)
    mean, variance = (jnp.where(here, x, 0.0) for x in (mean, variance))
    centre = jnp.sum(share * mean, axis=-1, keepdims=True)
    spread = jnp.sum(share * variance, axis=-1, keepdims=True)
    centre, spread = jax.lax.stop_gradient((centre, spread))
    return centre, jnp.sqrt(jnp.where(spread == 0, 1.0, spread))


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
    k = gaussian.mean.shape[-1]
    # From here on agents are the last axis (see vfejax.lanes), up to the rows that are returned.
    mean = lanes.stack_last(gaussian.mean, core=1)
    chol = lanes.tril(lanes.stack_last(gaussian.chol, core=2))
    outward, inward = (lanes.stack_last(x, core=2) for x in (field.outward, field.inward))
    pivots = jnp.stack([chol[i, i] for i in range(k)])
    log_det = 2.0 * (jnp.sum(jnp.log(pivots), axis=0) - field.log_det)[None]
    columns = jnp.concatenate([chol, mean[:, None]], axis=1)
    moments = lanes.matmul_tn(columns, jnp.swapaxes(inward, 0, 1))
    factor, mean = moments[:k], moments[k]
    whitener = lanes.triangular_solve(chol, outward)

    centre, scale = _centre_and_scale(mean, factor, present)
    mean, scale = (mean - centre) / scale, scale[None]
    whitener = whitener * scale
    one = jnp.ones_like(mean[:1])
    affine = jnp.concatenate([mean, -one])[None]
    spread = jnp.concatenate([factor / scale, jnp.zeros_like(mean)[:, None]], axis=1)
    second_moment = packed_gram(jnp.concatenate([spread, affine]), 2.0)
    whitened = jnp.concatenate([whitener, lanes.matmul(whitener, mean[:, None])], axis=1)
    precision = packed_gram(whitened, 1.0)

    receiver = [second_moment, -log_det - k]
    sender = [precision[:-1], precision[-1:] + log_det, one]
    return PairFeatures(0.5 * jnp.concatenate(receiver).T, jnp.concatenate(sender).T)


def pairwise_kl(gaussian: Gaussian, phi: Array, generators: Generators) -> Array:
    """All divergences ``KL(q_i || Omega_ij q_j)``, in nats.

    Args:
        gaussian: mean ``[n, k]``, chol ``[n, k, k]``.
        phi: frame coordinates ``[n, a]``.
        generators: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``, which means
            the general exponential.

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
        gaussian: mean ``[n, k]``, chol ``[n, k, k]``.
        phi: frame coordinates ``[n, a]``.
        generators: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``, which means
            the general exponential.
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
    return alignment.attention(*_counted(divergence, log_weight, index), alignment.rows())


def _counted(divergence: Array, log_weight: Array | None, index: Array) -> tuple[Array, Array]:
    """Divergences and log weights of receivers ``index`` against all senders, as
    :class:`vfejax.agents.alignment.AlignmentFn` wants them: ``-inf`` and 0 for pairs that do not
    count.
    """
    bias = jnp.zeros((1, 1), divergence.dtype) if log_weight is None else log_weight[None, :]
    itself = index[:, None] == jnp.arange(divergence.shape[-1])[None, :]
    apart = itself if log_weight is None else itself | (bias == -jnp.inf)
    bias = jnp.broadcast_to(bias, divergence.shape)
    return jnp.where(apart, 0.0, divergence), jnp.where(itself, -jnp.inf, bias)


def _block_size(num_agents: int, requested: int | None) -> int:
    """Receivers per block, evened out so that the last block is nearly full."""
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
    compute_dtype: jax.typing.DTypeLike | None


def _product(left: Array, right: Array, setting: _Setting) -> Array:
    """Matrix product in the compute dtype, accumulated and returned in the dtype of the
    features.
    """
    dtype = right.dtype
    if setting.compute_dtype is None:
        return matmul(left, right)
    info = jnp.finfo(setting.compute_dtype)

    def rounded(left: Array, right: Array) -> Array:
        # A product of two bfloat16 arrays is one of float32 on a CPU, which XLA forgets to make of
        # some of them and then refuses to run.
        left, right = (jax.lax.reduce_precision(x, info.nexp, info.nmant) for x in (left, right))
        return matmul(left, right)

    def mixed(left: Array, right: Array) -> Array:
        left, right = left.astype(setting.compute_dtype), right.astype(setting.compute_dtype)
        return jnp.matmul(left, right, preferred_element_type=dtype)

    return jax.lax.platform_dependent(left, right, cpu=rounded, default=mixed)


def _blocks(inputs: _Streamed, block_size: int) -> tuple[Array, Array, Array]:
    """Receivers in blocks: indices ``[blocks, b]``, features ``[blocks, b, f]``, coefficients.

    The last block is filled up with copies of the last agent whose coefficient is 0. A copy is a
    receiver like any other, so the slope of its energy is as finite as theirs.
    """
    num = inputs.receiver.shape[0]
    num_blocks = -(-num // block_size)
    padding = num_blocks * block_size - num
    receiver = jnp.pad(inputs.receiver, ((0, padding), (0, 0)), mode="edge")
    coefficient = jnp.pad(inputs.coefficient, (0, padding))
    index = jnp.minimum(jnp.arange(num_blocks * block_size), num - 1)
    return (
        index.reshape(num_blocks, block_size),
        receiver.reshape(num_blocks, block_size, -1),
        coefficient.reshape(num_blocks, block_size),
    )


def _block_energies(
    divergence: Array, log_weight: Array | None, index: Array, setting: _Setting
) -> Array:
    """Energies of one block of receivers against all senders, itself excluded."""
    return setting.alignment_fn(*_counted(divergence, log_weight, index), alignment.rows())


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

    def block(carry: PyTree, xs: tuple[Array, Array, Array]) -> tuple[PyTree, PyTree]:
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
def _streamed_energy_jvp(
    setting: _Setting, primals: tuple[_Streamed], tangents: tuple[_Streamed]
) -> tuple[Array, Array]:
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
    num, dtype = features.receiver.shape[0], features.receiver.dtype
    if num == 0:
        return jnp.zeros((), dtype)
    temperature = jnp.asarray(temperature, dtype)
    ones = jnp.ones((num,), dtype)
    inputs = _Streamed(
        features.receiver / temperature,
        features.sender,
        ones if coefficient is None else coefficient,
        log_weight,
    )
    setting = _Setting(alignment_fn, _block_size(num, block_size), compute_dtype)
    return temperature * _streamed_energy(inputs, setting)


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
        features: rows from :func:`pair_features`.
        temperature: tau in nats, positive.
        values: v ``[n, f]`` of the senders.
        coefficient: c ``[n]`` of each receiver, 1 by default.
        log_weight: log of each sender's weight in the softmax ``[n]``; ``-inf`` removes it. 0 by
            default.
        block_size: receivers per block, as in :func:`alignment_energy`.

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
    scaled = features.receiver / jnp.asarray(temperature, dtype)
    weight = jnp.ones((num,), dtype) if coefficient is None else coefficient

    @jax.checkpoint
    def block(given: Array, xs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        index, receiver, weight = xs
        divergence = matmul(receiver, features.sender.T)
        counted = _counted(divergence, log_weight, index)
        beta = weight[:, None] * alignment.attention(*counted, alignment.rows())
        return given + jnp.sum(beta, axis=0), matmul(beta, values)

    inputs = _Streamed(scaled, features.sender, weight, log_weight)
    blocks = _blocks(inputs, _block_size(num, block_size))
    given, received = jax.lax.scan(block, jnp.zeros((num,), dtype), blocks)
    return received.reshape(-1, values.shape[-1])[:num], given
