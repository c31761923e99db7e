"""Mixtures of experts: which experts read a token, and how to work through the choices so that unused experts cost nothing and nothing leaks.

Routing by a capacity that a batch shares lets a token change what happens to others, even to earlier ones. Here no choice is ever dropped: rows are
sorted by expert and multiplied group by group, so that a token's output depends on that token alone.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.types import Array

__all__ = [
    "Routing",
    "expert_feed_forward",
    "expert_usage",
    "feed_forward_blocks",
    "feed_forward_ragged",
    "gumbel_top_k",
    "load_balance_loss",
    "router_z_loss",
    "top_k",
]

_LARGEST_BLOCK = 32  # rows; larger ones pad more than they gain


class Routing(NamedTuple):
    """Chosen experts ``[..., k]`` (int32), their weights ``[..., k]``, and the router's probabilities of all ``[..., e]``."""

    experts: Array
    weights: Array
    probabilities: Array


def _check_k(logits: Array, k: int) -> None:
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"k must lie between 1 and the {logits.shape[-1]} experts, got {k}")


def top_k(logits: Array, k: int, key: Array | None = None) -> Routing:
    """The k most probable experts, weighed by their probabilities under the softmax over all.

    The weights are not brought to sum 1: with k = 1 the weight would then be constant and the router would never learn; with k = e the output
    is the dense mixture ``sum_e p_e f_e(x)`` either way.

    Args:
        logits: ``[..., e]``.
        k: number of experts per token.
        key: not used; every router has it.

    Raises:
        ValueError: unless ``1 <= k <= e``.

    Source: Fedus, Zoph, Shazeer, Switch transformers (2022), for k = 1.
    """
    del key
    _check_k(logits, k)
    probabilities = jax.nn.softmax(logits, axis=-1)
    weights, experts = jax.lax.top_k(probabilities, k)
    return Routing(experts, weights, probabilities)


def gumbel_top_k(logits: Array, k: int, key: Array | None = None) -> Routing:
    """k experts drawn without replacement by Gumbel noise, each with weight ``1 / k``; the gradient is that of the noisy softmax.

    Straight through: forward a hard choice, backward ``dp_i = p_i (dlogit_i - sum_j p_j dlogit_j)``, which reaches the logits of
    experts that were not chosen, too. Without a key there is no noise.

    Args and Raises: as in :func:`top_k`.

    Source: Jang, Gu, Poole, Categorical reparameterization with Gumbel-softmax (2017).
    """
    _check_k(logits, k)
    noisy = logits if key is None else logits + jax.random.gumbel(key, logits.shape, logits.dtype)
    soft, experts = jax.lax.top_k(jax.nn.softmax(noisy, axis=-1), k)
    weights = jnp.full_like(soft, 1.0 / k) + (soft - jax.lax.stop_gradient(soft))
    return Routing(experts, weights, jax.nn.softmax(logits, axis=-1))


def _ranks(experts: Array, num_experts: int) -> tuple[Array, Array]:
    """Place of every choice ``[r]`` within its expert's group, in order of appearance, and the group sizes ``[e]``."""
    order = jnp.argsort(experts, stable=True)
    sizes = jnp.bincount(experts, length=num_experts).astype(jnp.int32)
    starts = jnp.cumsum(sizes) - sizes
    places = jnp.arange(len(experts), dtype=jnp.int32) - starts[experts[order]]
    return jnp.zeros_like(places).at[order].set(places), sizes


def feed_forward_blocks(
    rows: Array, experts: Array, kernel_in: Array, kernel_out: Array, activation_fn: Callable[[Array], Array]
) -> Array:
    """``W_out[e] activation(W_in[e] x)`` of every row by its own expert: groups padded to whole blocks, one batched product.

    At most ``r / block + e`` blocks of equal size, each with the kernels of one expert: r rows cost what r rows cost, however many experts there are.

    Args:
        rows: x, ``[r, d]``.
        experts: e of every row, ``[r]``.
        kernel_in: ``[e, d, f]``.
        kernel_out: ``[e, f, d]``.
        activation_fn: elementwise.

    Returns:
        ``[r, d]``.
    """
    num_experts = kernel_in.shape[0]
    num_rows, dim = rows.shape
    block = max(1, min(_LARGEST_BLOCK, num_rows // (2 * num_experts)))
    num_blocks = num_rows // block + num_experts
    places, sizes = _ranks(experts, num_experts)
    last_block = jnp.cumsum((sizes + block - 1) // block)
    first_block = last_block - (sizes + block - 1) // block
    slots = first_block[experts] * block + places
    owners = jnp.searchsorted(last_block, jnp.arange(num_blocks, dtype=last_block.dtype), side="right")
    owners = jnp.minimum(owners, num_experts - 1)  # blocks behind the last group hold zeros
    padded = jnp.zeros((num_blocks * block, dim), rows.dtype).at[slots].set(rows, unique_indices=True)
    hidden = activation_fn(jnp.matmul(padded.reshape(num_blocks, block, dim), kernel_in[owners]))
    return jnp.matmul(hidden, kernel_out[owners]).reshape(-1, dim)[slots]


def feed_forward_ragged(
    rows: Array, experts: Array, kernel_in: Array, kernel_out: Array, activation_fn: Callable[[Array], Array]
) -> Array:
    """As :func:`feed_forward_blocks` by ``jax.lax.ragged_dot`` on sorted rows: without padding on accelerators, but every expert times every row on CPU."""
    order = jnp.argsort(experts, stable=True)
    sizes = jnp.bincount(experts, length=kernel_in.shape[0]).astype(jnp.int32)
    hidden = activation_fn(jax.lax.ragged_dot(rows[order], kernel_in, sizes))
    found = jax.lax.ragged_dot(hidden, kernel_out, sizes)
    return jnp.zeros_like(found).at[order].set(found, unique_indices=True)


def expert_feed_forward(
    x: Array, routing: Routing, kernel_in: Array, kernel_out: Array, activation_fn: Callable[[Array], Array] = jax.nn.gelu
) -> Array:
    """Weighted sum over the chosen experts, ``sum_j w_j W_out[e_j] activation(W_in[e_j] x)``, for every token.

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
    """
    dim, k = x.shape[-1], routing.experts.shape[-1]
    if kernel_in.shape[:2] != (kernel_in.shape[0], dim) or kernel_out.shape != (*kernel_in.shape[::2], dim):
        raise ValueError(
            f"kernels must be [e, {dim}, f] and [e, f, {dim}], got {kernel_in.shape} and {kernel_out.shape}"
        )
    if routing.experts.shape[:-1] != x.shape[:-1]:
        raise ValueError(f"routing must be for tokens {x.shape[:-1]}, got {routing.experts.shape[:-1]}")
    rows = jnp.repeat(x.reshape(-1, dim), k, axis=0)
    found = jax.lax.platform_dependent(
        rows,
        routing.experts.reshape(-1),
        kernel_in,
        kernel_out,
        cpu=partial(feed_forward_blocks, activation_fn=activation_fn),
        default=partial(feed_forward_ragged, activation_fn=activation_fn),
    )
    weighted = found.reshape(*x.shape[:-1], k, dim) * routing.weights[..., None].astype(found.dtype)
    return jnp.sum(weighted, axis=-2)


def expert_usage(routing: Routing) -> Array:
    """Share of all choices that fell on each expert, ``[e]``, without a gradient."""
    num_experts = routing.probabilities.shape[-1]
    counts = jnp.bincount(routing.experts.reshape(-1), length=num_experts)
    return counts.astype(routing.probabilities.dtype) / routing.experts.size


def load_balance_loss(routing: Routing) -> Array:
    """``e sum_e f_e P_e``: shares f of the choices times mean probabilities P; 1 when both are even, up to e when one expert has all.

    Source: Fedus, Zoph, Shazeer (2022), equation 4.
    """
    num_experts = routing.probabilities.shape[-1]
    mean = jnp.mean(routing.probabilities.reshape(-1, num_experts), axis=0)
    return num_experts * jnp.sum(expert_usage(routing) * mean)


def router_z_loss(logits: Array) -> Array:
    """Mean of ``logsumexp(logits)^2`` over tokens: keeps logits ``[..., e]`` small, where the softmax is accurate.

    Source: Zoph et al., ST-MoE (2022), equation 5.
    """
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) ** 2)
