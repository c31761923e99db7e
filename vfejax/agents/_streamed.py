"""Sums over all pairs of agents with one block of pairs alive at a time."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.agents import alignment
from vfejax.agents.alignment import AlignmentFn
from vfejax.numerics import matmul
from vfejax.types import Array, PyTree

__all__ = [
    "BLOCK_ENTRIES",
    "Setting",
    "Streamed",
    "Sweep",
    "block_size",
    "blocks",
    "counted",
    "cut",
    "energy",
    "inputs",
    "product",
    "whole_rows",
]

# Entries of one block of pairs: 4 MB in float32, so a block stays in a core's cache on CPU.
BLOCK_ENTRIES = 2**20


class Streamed(NamedTuple):
    """What the streamed energy depends on; a NamedTuple so that tangents and gradients share its
    structure.

    Attributes:
        receiver: feature rows over the temperature ``[n, f]``.
        sender: feature rows ``[n, f]``.
        coefficient: weight of each receiver's energy ``[n]``.
        log_weight: log of each sender's weight ``[n]``, or None for 0.
    """

    receiver: Array
    sender: Array
    coefficient: Array
    log_weight: Array | None


class Setting(NamedTuple):
    """Static choices of the stream."""

    alignment_fn: AlignmentFn
    block_size: int
    compute_dtype: jax.typing.DTypeLike | None


class Sweep(NamedTuple):
    """How the pairs are gone through: ``energy(inputs) -> sum_i coefficient_i E_i``, and that with
    its gradient, ``value_and_grad(inputs) -> (energy, Streamed)``.
    """

    energy: Callable[[Streamed], Array]
    value_and_grad: Callable[[Streamed], tuple[Array, Streamed]]


def inputs(
    receiver: Array,
    sender: Array,
    temperature: Array,
    coefficient: Array | None,
    log_weight: Array | None,
) -> Streamed:
    """Inputs in units of the temperature.

    Args:
        receiver: feature rows ``[n, f]``.
        sender: feature rows ``[n, f]``.
        temperature: tau in nats.
        coefficient: weight of each receiver's energy ``[n]``, 1 by default.
        log_weight: log of each sender's weight ``[n]``, 0 by default.

    >>> inputs(jnp.ones((2, 1)), jnp.ones((2, 1)), jnp.float32(4.0), None, None).receiver.tolist()
    [[0.25], [0.25]]
    """
    ones = jnp.ones(receiver.shape[:1], receiver.dtype)
    weight = ones if coefficient is None else coefficient
    return Streamed(receiver / temperature, sender, weight, log_weight)


def energy_of(
    receiver: Array,
    sender: Array,
    temperature: float | Array,
    coefficient: Array | None,
    log_weight: Array | None,
    sweep: Sweep,
) -> Array:
    """``sum_i coefficient_i E_i`` in nats, 0 without agents.

    Args:
        receiver, sender, temperature, coefficient, log_weight: as :func:`inputs` takes them.
        sweep: how the pairs are gone through.

    >>> sweep = whole_rows(Setting(alignment.weighted, 2, None))
    >>> energy_of(jnp.ones((2, 1)), jnp.ones((2, 1)), 4.0, None, None, sweep).item()
    2.0
    """
    if receiver.shape[0] == 0:
        return jnp.zeros((), receiver.dtype)
    temperature = jnp.asarray(temperature, receiver.dtype)
    return temperature * energy(
        inputs(receiver, sender, temperature, coefficient, log_weight), sweep
    )


def counted(
    divergence: Array, log_weight: Array | None, index: Array, first: Array | int = 0
) -> tuple[Array, Array]:
    """Divergences and log weights of receivers ``index`` against the senders from ``first`` on, as
    :class:`vfejax.agents.alignment.AlignmentFn` wants them: ``-inf`` and 0 for pairs that do not
    count.

    Args:
        divergence: ``[receivers, senders]``.
        log_weight: of the senders ``[senders]``, 0 by default.
        index: numbers of the receivers.
        first: number of the first sender.

    >>> counted(jnp.ones((1, 3)), None, jnp.array([4]), first=3)[1].tolist()
    [[0.0, -inf, 0.0]]
    """
    bias = jnp.zeros((1, 1), divergence.dtype) if log_weight is None else log_weight[None, :]
    itself = (index - first)[:, None] == jnp.arange(divergence.shape[-1])[None, :]
    apart = itself if log_weight is None else itself | (bias == -jnp.inf)
    bias = jnp.broadcast_to(bias, divergence.shape)
    return jnp.where(apart, 0.0, divergence), jnp.where(itself, -jnp.inf, bias)


def block_size(num_agents: int, requested: int | None) -> int:
    """Receivers per block, evened out so that the last block is nearly full.

    >>> block_size(9, 8)
    5
    """
    if requested is not None and requested < 1:
        raise ValueError(f"block_size must be at least 1, got {requested}")
    if num_agents == 0:
        return 1
    largest = max(1, BLOCK_ENTRIES // num_agents) if requested is None else requested
    num_blocks = -(-num_agents // largest)
    return -(-num_agents // num_blocks)


def product(left: Array, right: Array, compute_dtype: jax.typing.DTypeLike | None) -> Array:
    """Matrix product in the compute dtype, accumulated and returned in the dtype of the
    features.

    Args:
        left: ``[n, f]``.
        right: ``[f, m]``.
        compute_dtype: dtype of the operands; their own by default.

    >>> product(jnp.ones((1, 2)), jnp.ones((2, 1)), None).tolist()
    [[2.0]]
    """
    dtype = right.dtype
    if compute_dtype is None:
        return matmul(left, right)
    info = jnp.finfo(compute_dtype)

    def rounded(left: Array, right: Array) -> Array:
        # A product of two bfloat16 arrays is one of float32 on a CPU, which XLA forgets to make of
        # some of them and then refuses to run.
        left, right = (jax.lax.reduce_precision(x, info.nexp, info.nmant) for x in (left, right))
        return matmul(left, right)

    def mixed(left: Array, right: Array) -> Array:
        left, right = left.astype(compute_dtype), right.astype(compute_dtype)
        return jnp.matmul(left, right, preferred_element_type=dtype)

    return jax.lax.platform_dependent(left, right, cpu=rounded, default=mixed)


def cut(x: Array, size: int, *, copies: bool = True) -> Array:
    """Rows in blocks, ``[n, ...]`` to ``[blocks, size, ...]``; the last block is filled up with
    copies of the last row, or with 0.

    Args:
        x: the rows.
        size: of a block.
        copies: whether the last block is filled up with copies.

    >>> cut(jnp.array([1, 2, 3]), 2).tolist()
    [[1, 2], [3, 3]]
    """
    padding = [(0, -x.shape[0] % size)] + [(0, 0)] * (x.ndim - 1)
    filled = jnp.pad(x, padding, mode="edge" if copies else "constant")
    return filled.reshape(-1, size, *x.shape[1:])


def blocks(inputs: Streamed, size: int) -> tuple[Array, Array, Array]:
    """Receivers in blocks: indices ``[blocks, b]``, features ``[blocks, b, f]``, coefficients.

    The last block is filled up with copies of the last agent whose coefficient is 0. A copy is a
    receiver like any other, so the slope of its energy is as finite as theirs.

    >>> rows = jnp.ones((3, 1))
    >>> index, _, coefficient = blocks(inputs(rows, rows, jnp.float32(1.0), None, None), 2)
    >>> index.tolist(), coefficient.tolist()
    ([[0, 1], [2, 2]], [[1.0, 1.0], [1.0, 0.0]])
    """
    index = cut(jnp.arange(inputs.receiver.shape[0]), size)
    return index, cut(inputs.receiver, size), cut(inputs.coefficient, size, copies=False)


def _block_energies(
    divergence: Array, log_weight: Array | None, index: Array, setting: Setting
) -> Array:
    """Energies of one block of receivers against all senders, itself excluded."""
    return setting.alignment_fn(*counted(divergence, log_weight, index), alignment.rows())


def whole_rows(setting: Setting) -> Sweep:
    """The sweep on one device: a block holds whole rows.

    >>> sweep = whole_rows(Setting(alignment.weighted, 2, None))
    >>> rows = jnp.ones((3, 1))
    >>> float(sweep.energy(inputs(rows, rows, jnp.float32(1.0), None, None)))
    3.0
    """
    return Sweep(partial(_energy, setting), partial(_value_and_grad, setting))


def _energy(setting: Setting, inputs: Streamed) -> Array:
    def block(total: Array, xs: tuple[Array, Array, Array]) -> tuple[Array, None]:
        index, receiver, coefficient = xs
        divergence = product(receiver, inputs.sender.T, setting.compute_dtype)
        energies = _block_energies(divergence, inputs.log_weight, index, setting)
        return total + jnp.sum(coefficient * energies), None

    zero = jnp.zeros((), inputs.receiver.dtype)
    return jax.lax.scan(block, zero, blocks(inputs, setting.block_size))[0]


def _value_and_grad(setting: Setting, inputs: Streamed) -> tuple[Array, Streamed]:
    """Energy and its gradient in one sweep: a block holds whole rows, so its softmax and slope need
    no second pass.
    """
    times = partial(product, compute_dtype=setting.compute_dtype)

    def block(carry: PyTree, xs: tuple[Array, Array, Array]) -> tuple[PyTree, PyTree]:
        total, sender_grad, weight_grad = carry
        index, receiver, coefficient = xs
        divergence = times(receiver, inputs.sender.T)
        energies, pull_back = jax.vjp(
            lambda d, w: _block_energies(d, w, index, setting), divergence, inputs.log_weight
        )
        slope, weight_slope = pull_back(coefficient)
        sender_grad = sender_grad + times(slope.T, receiver)
        weight_grad = jax.tree.map(jnp.add, weight_grad, weight_slope)
        total = total + jnp.sum(coefficient * energies)
        return (total, sender_grad, weight_grad), (times(slope, inputs.sender), energies)

    start = (
        jnp.zeros((), inputs.receiver.dtype),
        jnp.zeros_like(inputs.sender),
        jax.tree.map(jnp.zeros_like, inputs.log_weight),
    )
    (total, sender_grad, weight_grad), (receiver_grad, energies) = jax.lax.scan(
        block, start, blocks(inputs, setting.block_size)
    )
    num, width = inputs.receiver.shape
    receiver_grad = receiver_grad.reshape(-1, width)[:num]
    return total, Streamed(receiver_grad, sender_grad, energies.reshape(-1)[:num], weight_grad)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def energy(inputs: Streamed, sweep: Sweep) -> Array:
    """``sum_i coefficient_i E_i`` in units of the temperature.

    >>> rows, sweep = jnp.ones((3, 1)), whole_rows(Setting(alignment.weighted, 2, None))
    >>> float(energy(inputs(rows, rows, jnp.float32(1.0), None, None), sweep))
    3.0
    """
    return sweep.energy(inputs)


@energy.defjvp
def _energy_jvp(
    sweep: Sweep, primals: tuple[Streamed], tangents: tuple[Streamed]
) -> tuple[Array, Array]:
    # A jvp rule that is linear in the tangents serves forward mode, reverse mode (by transposition,
    # which only scales the stored O(n k^2) gradient) and their compositions; a vjp rule would serve
    # reverse mode alone.
    (inputs,), (tangent,) = primals, tangents
    value, gradient = sweep.value_and_grad(inputs)
    products = jax.tree.map(lambda g, t: jnp.sum(g * t), gradient, tangent)
    return value, jax.tree.reduce(jnp.add, products)
