"""Work through the choices of a router, so that unused experts cost nothing and nothing leaks.

Routing by a capacity that a batch shares lets a token change what happens to others, even to
earlier ones. Here no choice is ever dropped: rows are sorted by expert and multiplied group by
group, so that a token's output depends on that token alone.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from vfejax.devices import alike, by_device
from vfejax.numerics import at_least_float32
from vfejax.routing.choice import Routing
from vfejax.types import Array

__all__ = ["KEPT", "expert_feed_forward", "feed_forward_blocks", "feed_forward_ragged"]

KEPT = "experts"
"""What products of experts, and the places of their rows, are called for ``jax.checkpoint``: a
gradient that recomputes a layer may keep them, as it keeps other products with weights
(``jax.checkpoint_policies.save_only_these_names``)."""

# Rows; larger blocks pad more than they gain, smaller ones read the kernels too often.
_LARGEST_BLOCK = 32
_LEAST_WIDTH = 16  # numbers in a vector register: narrower products are compiled as loops over rows


def _ranks(experts: Array, num_experts: int) -> tuple[Array, Array]:
    """Place of every choice ``[r]`` within its expert's group, in order of appearance, and the
    group sizes ``[e]``.
    """
    chosen = jax.nn.one_hot(experts, num_experts, dtype=jnp.int32)
    return jnp.sum(jnp.cumsum(chosen, axis=0) * chosen, axis=1) - 1, jnp.sum(chosen, axis=0)


def _check(rows: Array, experts: Array, kernel_in: Array, kernel_out: Array) -> None:
    if rows.ndim != 2 or experts.shape != rows.shape[:1]:
        raise ValueError(
            "rows must be [r, d] with one expert each, "
            f"got rows {rows.shape} and experts {experts.shape}"
        )
    dim, num_experts = rows.shape[-1], kernel_in.shape[0]
    if kernel_in.shape != (num_experts, dim, kernel_in.shape[-1]):
        raise ValueError(f"kernel_in must be [e, {dim}, f], got {kernel_in.shape}")
    needed = (num_experts, kernel_in.shape[-1], dim)
    if kernel_out.shape != needed:
        raise ValueError(f"kernel_out must be {needed} to fit kernel_in, got {kernel_out.shape}")


def _existing(experts: Array, num_experts: int) -> tuple[Array, Array]:
    """Experts with the first in place of those that do not exist, which would take the slots of
    other rows, and which rows' experts exist ``[r, 1]``.
    """
    exist = (experts >= 0) & (experts < num_experts)
    return jnp.where(exist, experts, 0), checkpoint_name(exist[:, None], KEPT)


def _block_size(num_rows: int, num_experts: int) -> int:
    """Rows per block: few enough that at most a third of the blocks is spare (from 2 e rows on),
    and a power of two.

    In blocks of 5 and of 13 rows the last bits of a row were seen to depend on its place, which
    depends on others: presumably XLA's CPU products treat the rows that their tiles leave over
    differently. In a block of a power of two all rows are in tiles, or all are left over.
    """
    largest = max(1, min(_LARGEST_BLOCK, num_rows // (2 * num_experts)))
    return 1 << (largest.bit_length() - 1)


@jax.custom_vjp
def _multiply(blocks: Array, owners: Array, kernels: Array) -> Array:
    """``blocks [n, b, d]`` times ``kernels [e, d, f]``, each by that of its owner ``[n]``.

    In turn, in both directions, because a batched product would first copy the owners' kernels to
    ``[n, d, f]``, and add up as many gradients.
    """
    return jax.lax.map(lambda block: block[0] @ kernels[block[1]], (blocks, owners))


def _multiply_forward(
    blocks: Array, owners: Array, kernels: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    return _multiply(blocks, owners, kernels), (blocks, owners, kernels)


def _multiply_backward(
    residuals: tuple[Array, Array, Array], cotangent: Array
) -> tuple[Array, None, Array]:
    blocks, owners, kernels = residuals
    sums = jnp.zeros_like(kernels, at_least_float32(kernels.dtype))

    def add(sums: Array, block: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        x, owner, change = block
        share = jnp.matmul(x.T, change, preferred_element_type=sums.dtype)
        return sums.at[owner].add(share), change @ kernels[owner].T

    sums, found = jax.lax.scan(add, sums, (blocks, owners, cotangent))
    return found, None, sums.astype(kernels.dtype)


_multiply.defvjp(_multiply_forward, _multiply_backward)


class _Layout(NamedTuple):
    """Rows in blocks of one expert each: the slot of every row ``[r]``, the row in every slot
    ``[s]`` (r where none is), and the expert of every block.
    """

    slots: Array
    rows: Array
    owners: Array


def _layout(experts: Array, num_experts: int, block: int) -> _Layout:
    """Groups of rows of the same expert, padded to whole blocks."""
    num_rows = experts.shape[0]
    num_blocks = num_rows // block + num_experts
    places, sizes = _ranks(experts, num_experts)
    last_block = jnp.cumsum((sizes + block - 1) // block)
    first_block = last_block - (sizes + block - 1) // block
    slots = first_block[experts] * block + places
    owners = jnp.searchsorted(
        last_block, jnp.arange(num_blocks, dtype=last_block.dtype), side="right"
    )
    owners = jnp.minimum(owners, num_experts - 1)  # blocks behind the last group hold zeros
    empty = jnp.full((num_blocks * block,), num_rows, slots.dtype)
    rows = empty.at[slots].set(jnp.arange(num_rows, dtype=slots.dtype), unique_indices=True)
    return checkpoint_name(_Layout(slots, rows, owners), KEPT)


@jax.custom_vjp
def _to_slots(x: Array, layout: _Layout) -> Array:
    """Rows ``[r, d]`` in their slots ``[s, d]``, zeros in the others; transposed by
    :func:`_from_slots`, so that both directions are gathers.
    """
    filled = layout.rows < x.shape[0]
    found = x[jnp.minimum(layout.rows, x.shape[0] - 1)]
    return jnp.where(filled[:, None], found, jnp.zeros((), x.dtype))


@jax.custom_vjp
def _from_slots(x: Array, layout: _Layout) -> Array:
    """Slots ``[s, d]`` back to rows ``[r, d]``."""
    return x[layout.slots]


_to_slots.defvjp(
    lambda x, layout: (_to_slots(x, layout), layout),
    lambda layout, cotangent: (_from_slots(cotangent, layout), None),
)
_from_slots.defvjp(
    lambda x, layout: (_from_slots(x, layout), layout),
    lambda layout, cotangent: (_to_slots(cotangent, layout), None),
)


def _widened(kernels: Array, axis: int) -> Array:
    """Kernels with zeros added to an axis that is narrower than a vector register."""
    missing = max(_LEAST_WIDTH - kernels.shape[axis], 0)
    return jnp.pad(kernels, [(0, missing if i == axis else 0) for i in range(3)])


def feed_forward_blocks(
    rows: Array,
    experts: Array,
    kernel_in: Array,
    kernel_out: Array,
    activation_fn: Callable[[Array], Array],
) -> Array:
    """``W_out[e] activation(W_in[e] x)`` of every row by its own expert: groups padded to whole
    blocks, one product per block.

    ``r / block + e`` blocks of equal size, each for one expert: r rows cost what r rows cost,
    however many experts there are. Reverse mode only.

    On CPU a row's result does not depend on other rows, bit for bit. Its place in a block does
    depend on them, and a compiler may treat the last lanes of a loop differently from the others.
    So blocks are a power of two, narrow kernels are widened with zeros, and the activation is taken
    with the rows in their own order.

    Args:
        rows: x, ``[r, d]``.
        experts: e of every row, ``[r]``.
        kernel_in: ``[e, d, f]``.
        kernel_out: ``[e, f, d]``.
        activation_fn: elementwise.

    Returns:
        ``[r, d]``, NaN where an expert does not exist.

    Raises:
        ValueError: when the kernels do not fit, or rows and experts are not equally many.

    >>> rows, kernels = jnp.ones((3, 1)), jnp.asarray([[[1.0]], [[2.0]]])
    >>> feed_forward_blocks(rows, jnp.asarray([1, 0, 1]), kernels, kernels, lambda x: x).tolist()
    [[4.0], [1.0], [4.0]]
    """
    _check(rows, experts, kernel_in, kernel_out)
    num_experts = kernel_in.shape[0]
    if rows.shape[0] == 0:
        return jnp.zeros(rows.shape, jnp.result_type(rows, kernel_in, kernel_out))
    experts, exist = _existing(experts, num_experts)
    block = _block_size(rows.shape[0], num_experts)
    layout = _layout(experts, num_experts, block)

    def product(x: Array, kernels: Array) -> Array:
        blocks = _to_slots(x, layout).reshape(-1, block, x.shape[-1])
        found = _multiply(*alike(blocks, layout.owners, _widened(kernels, 2)))
        rows = _from_slots(found.reshape(-1, found.shape[-1]), layout)[:, : kernels.shape[-1]]
        return checkpoint_name(rows, KEPT)

    return jnp.where(exist, product(activation_fn(product(rows, kernel_in)), kernel_out), jnp.nan)


def feed_forward_ragged(
    rows: Array,
    experts: Array,
    kernel_in: Array,
    kernel_out: Array,
    activation_fn: Callable[[Array], Array],
) -> Array:
    """``W_out[e] activation(W_in[e] x)`` of every row by its own expert, by ``jax.lax.ragged_dot``
    on sorted rows.

    Equal to :func:`feed_forward_blocks`. It needs no padding on accelerators; on CPU it multiplies
    every row by every expert.

    Args:
        rows: x, ``[r, d]``.
        experts: e of every row, ``[r]``.
        kernel_in: ``[e, d, f]``.
        kernel_out: ``[e, f, d]``.
        activation_fn: elementwise.

    Returns:
        ``[r, d]``, NaN where an expert does not exist.

    Raises:
        ValueError: when the kernels do not fit, or rows and experts are not equally many.

    >>> rows, kernels = jnp.ones((3, 1)), jnp.asarray([[[1.0]], [[2.0]]])
    >>> feed_forward_ragged(rows, jnp.asarray([1, 0, 1]), kernels, kernels, lambda x: x).tolist()
    [[4.0], [1.0], [4.0]]
    """
    _check(rows, experts, kernel_in, kernel_out)
    experts, exist = _existing(experts, kernel_in.shape[0])
    order = jnp.argsort(experts, stable=True)
    sizes = jnp.bincount(experts, length=kernel_in.shape[0]).astype(jnp.int32)
    order, sizes = checkpoint_name((order, sizes), KEPT)

    hidden = checkpoint_name(jax.lax.ragged_dot(rows[order], kernel_in, sizes), KEPT)
    found = jax.lax.ragged_dot(activation_fn(hidden), kernel_out, sizes)
    found = checkpoint_name(jnp.zeros_like(found).at[order].set(found, unique_indices=True), KEPT)
    return jnp.where(exist, found, jnp.nan)


def expert_feed_forward(
    x: Array,
    routing: Routing,
    kernel_in: Array,
    kernel_out: Array,
    activation_fn: Callable[[Array], Array] = jax.nn.gelu,
) -> Array:
    """Weighted sum over the chosen experts, ``sum_j w_j W_out[e_j] activation(W_in[e_j] x)``, for
    every token.

    Args:
        x: ``[..., d]``.
        routing: choices for the same tokens.
        kernel_in: ``[e, d, f]``.
        kernel_out: ``[e, f, d]``.
        activation_fn: elementwise.

    Returns:
        ``[..., d]``.

    Raises:
        ValueError: when shapes do not fit.

    >>> kernels = jnp.asarray([[[1.0]], [[2.0]]])
    >>> from vfejax.routing.choice import top_k
    >>> routing = top_k(jnp.asarray([[2.0, 1.0]]), 1)  # the first expert, which copies
    >>> out = expert_feed_forward(jnp.ones((1, 1)), routing, kernels, kernels, lambda x: x)
    >>> bool(jnp.allclose(out, routing.weights))
    True
    """
    dim, k = x.shape[-1], routing.experts.shape[-1]
    if routing.experts.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"routing must be for tokens {x.shape[:-1]}, got {routing.experts.shape[:-1]}"
        )
    if routing.probabilities.shape[-1] != kernel_in.shape[0]:
        raise ValueError(
            f"routing must be for {kernel_in.shape[0]} experts, got "
            f"{routing.probabilities.shape[-1]}"
        )

    def of_tokens(x: Array, experts: Array, kernel_in: Array, kernel_out: Array) -> Array:
        found = jax.lax.platform_dependent(
            jnp.repeat(x.reshape(-1, dim), k, axis=0),
            experts.reshape(-1),
            kernel_in,
            kernel_out,
            cpu=partial(feed_forward_blocks, activation_fn=activation_fn),
            default=partial(feed_forward_ragged, activation_fn=activation_fn),
        )
        return found.reshape(*x.shape[:-1], k, dim)

    of_shares = by_device(of_tokens, x.shape[0] if x.ndim > 1 else 1, shared=2)
    found = of_shares(x, routing.experts, kernel_in, kernel_out)
    weights = routing.weights.astype(found.dtype)
    # Written out, as XLA's sum over an axis of one or two is slow on CPUs.
    return reduce(jnp.add, [weights[..., j, None] * found[..., j, :] for j in range(k)])
