"""How evenly a router uses its experts: sums over tokens, and the losses made of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.routing.choice import Routing, top_k
from vfejax.types import Array

__all__ = [
    "RouterLosses",
    "RouterSums",
    "expert_usage",
    "load_balance_loss",
    "router_losses",
    "router_sums",
    "router_z_loss",
]


class RouterSums(NamedTuple):
    """Sums over tokens, of which the router's losses are functions: those of a batch are the sums
    of those of its parts.

    Attributes:
        choices: how many choices fell on each expert, ``[e]``, without a gradient.
        probabilities: the router's probabilities of each expert, added up, ``[e]``.
        squares: ``logsumexp(logits)^2``, added up.
        tokens: how many tokens there are.
    """

    choices: Array
    probabilities: Array
    squares: Array
    tokens: Array


class RouterLosses(NamedTuple):
    """Load-balance and router-z losses, not weighted, and the share of choices of each expert
    ``[e]``.
    """

    load_balance: Array
    router_z: Array
    usage: Array


def router_sums(logits: Array, routing: Routing, mask: Array | None = None) -> RouterSums:
    """What a router's losses are made of.

    Args:
        logits: the router's, ``[..., e]``.
        routing: the choices made from them.
        mask: True at the tokens that count, ``[...]``; None when all do.

    Returns:
        The sums, of the dtype of the probabilities.

    >>> logits = jnp.asarray([[0.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    >>> router_sums(logits, top_k(logits, 1), jnp.asarray([True, True, False])).choices.tolist()
    [1.0, 1.0]
    """
    num_experts, dtype = routing.probabilities.shape[-1], routing.probabilities.dtype
    experts, probabilities = routing.experts, routing.probabilities
    squares = jax.nn.logsumexp(logits, axis=-1) ** 2
    tokens = jnp.asarray(squares.size, dtype)
    if mask is not None:
        experts = jnp.where(mask[..., None], experts, num_experts)  # outside: not counted
        probabilities = jnp.where(mask[..., None], probabilities, jnp.zeros((), dtype))
        squares = jnp.where(mask, squares, jnp.zeros((), squares.dtype))
        tokens = jnp.sum(mask, dtype=dtype)
    return RouterSums(
        jnp.bincount(experts.reshape(-1), length=num_experts).astype(dtype),
        jnp.sum(probabilities.reshape(-1, num_experts), axis=0),
        jnp.sum(squares),
        tokens,
    )


def router_losses(sums: RouterSums) -> RouterLosses:
    """The router's losses from its sums, which may be those of several parts of a batch, added up.

    Without tokens all are 0. Leading axes, such as layers, are kept.

    >>> logits = jnp.asarray([[9.0, 0.0], [0.0, 9.0]])
    >>> losses = router_losses(router_sums(logits, top_k(logits, 1)))
    >>> round(float(losses.load_balance), 3), losses.usage.tolist()
    (1.0, [0.5, 0.5])
    """
    usage = sums.choices / jnp.maximum(jnp.sum(sums.choices, axis=-1, keepdims=True), 1)
    tokens = jnp.maximum(sums.tokens, 1)
    mean = sums.probabilities / tokens[..., None]
    balance = sums.choices.shape[-1] * jnp.sum(usage * mean, axis=-1)
    return RouterLosses(balance, sums.squares / tokens, usage)


def expert_usage(routing: Routing, mask: Array | None = None) -> Array:
    """Share of all choices that fell on each expert, ``[e]``, without a gradient.

    Args:
        routing: the choices.
        mask: True at the tokens that count, ``[...]``; None when all do.

    >>> routing = top_k(jnp.asarray([[2.0, 0.0], [3.0, 0.0]]), 1)
    >>> expert_usage(routing).tolist()
    [1.0, 0.0]
    """
    return router_losses(router_sums(routing.probabilities, routing, mask)).usage


def load_balance_loss(routing: Routing, mask: Array | None = None) -> Array:
    """``e sum_e f_e P_e``: shares f of the choices times mean probabilities P; 1 when both are
    even, up to e when one expert has all.

    Args:
        routing: the choices.
        mask: True at the tokens that count, ``[...]``; None when all do.

    Source: Fedus, Zoph, Shazeer (2022), equation 4.

    >>> routing = top_k(jnp.asarray([[9.0, 0.0], [0.0, 9.0]]), 1)
    >>> round(float(load_balance_loss(routing)), 3)
    1.0
    """
    return router_losses(router_sums(routing.probabilities, routing, mask)).load_balance


def router_z_loss(logits: Array, mask: Array | None = None) -> Array:
    """Mean of ``logsumexp(logits)^2`` over tokens: keeps logits small, where the softmax is
    accurate.

    Args:
        logits: ``[..., e]``.
        mask: True at the tokens that count, ``[...]``; None when all do.

    Source: Zoph et al., ST-MoE (2022), equation 5.

    >>> round(float(router_z_loss(jnp.zeros((3, 8)))), 4)  # (log 8)^2
    4.3241
    """
    return router_losses(router_sums(logits, top_k(logits, 1), mask)).router_z
