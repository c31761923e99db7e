"""Scores of the experts of a mixture, and corrections of the weights of those that are kept.

The router's weights are a softmax over the experts. Without some of them, the others' weights grow
by one over the probability that they kept, and the layer says more than it learned to. The output
kernels of those that stay are therefore scaled (:func:`kept_scale`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.numerics import matmul, matmul_tn
from vfejax.routing import Routing, top_k
from vfejax.types import Array

__all__ = ["ExpertStatistics", "combined_scale", "expert_statistics", "kept_scale", "shares"]


class ExpertStatistics(NamedTuple):
    """What the experts of one layer do with t tokens. An expert that reads none has 0 throughout.

    Attributes:
        activation: mean norm of an expert's output over the tokens that it reads, ``[e]``.
        contribution: mean over them of that norm times the router's weight, ``[e]``.
        frequency: share of the choices that fall on an expert, ``[e]``.
        logits: of the router, ``[t, e]``.
        similarity: cosine of the outputs of two experts to all tokens, ``[e, e]``.
        inputs: second moments of what an expert reads, ``[e, d, d]``.
        hidden: second moments of its hidden layer over the same tokens, ``[e, f, f]``.

    Source: Lasby et al., REAP the experts (2025), for the contribution.
    """

    activation: Array
    contribution: Array
    frequency: Array
    logits: Array
    similarity: Array
    inputs: Array
    hidden: Array


def shares(routing: Routing) -> Array:
    """The router's weight of every expert, 0 for those that do not read a token: ``[..., e]``.

    >>> shares(top_k(jnp.zeros((1, 2)), 1)).tolist()
    [[0.5, 0.0]]
    """
    num_experts, weights = routing.probabilities.shape[-1], routing.weights
    chosen = jax.nn.one_hot(routing.experts, num_experts, dtype=weights.dtype)
    return jnp.sum(chosen * weights[..., None], axis=-2)


def expert_statistics(
    x: Array,
    logits: Array,
    routing: Routing,
    kernel_in: Array,
    kernel_out: Array,
    activation_fn: Callable[[Array], Array] = jax.nn.gelu,
) -> ExpertStatistics:
    """What each expert does with the tokens it reads. Every expert is given every token: O(t e d
    f).

    Args:
        x: the tokens, ``[t, d]``.
        logits: of the router, ``[t, e]``.
        routing: its choices, ``[t, k]``.
        kernel_in: ``[e, d, f]``.
        kernel_out: ``[e, f, d]``.
        activation_fn: elementwise.

    Returns:
        The statistics.

    >>> kernels, x = jnp.asarray([[[1.0]], [[2.0]]]), jnp.ones((3, 1))
    >>> logits = jnp.asarray([[9.0, 0.0], [0.0, 9.0], [0.0, 9.0]])
    >>> found = expert_statistics(x, logits, top_k(logits, 1), kernels, kernels, lambda x: x)
    >>> found.activation.tolist(), (3 * found.frequency).tolist()
    ([1.0, 4.0], [1.0, 2.0])
    """
    chosen = jax.nn.one_hot(routing.experts, kernel_in.shape[0], dtype=x.dtype).sum(axis=-2)
    read = jnp.maximum(jnp.sum(chosen, axis=0), 1)

    def one(expert: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array]:
        first, last, reads, number = expert
        hidden = activation_fn(matmul(x, first))
        moments = matmul_tn(x * reads[:, None], x), matmul_tn(hidden * reads[:, None], hidden)
        return matmul(hidden, last), moments[0] / number, moments[1] / number

    found, inputs, hidden = jax.lax.map(one, (kernel_in, kernel_out, chosen.T, read))
    norms = jnp.linalg.norm(found, axis=-1).T
    weights = shares(routing).astype(x.dtype)
    flat = found.reshape(found.shape[0], -1)
    lengths = jnp.linalg.norm(flat, axis=-1)
    lengths = jnp.where(lengths <= 0, jnp.ones((), x.dtype), lengths)
    return ExpertStatistics(
        jnp.sum(chosen * norms, axis=0) / read,
        jnp.sum(weights * norms, axis=0) / read,
        jnp.sum(chosen, axis=0) / jnp.maximum(jnp.sum(chosen), 1),
        logits,
        matmul(flat, flat.T) / (lengths[:, None] * lengths[None]),
        inputs,
        hidden,
    )


def kept_scale(
    logits: Array,
    experts: Array,
    k: int,
    router_fn: Callable[[Array, int, Array | None], Routing] = top_k,
) -> Array:
    """Factors for the output kernels of experts that stay alone.

    Args:
        logits: of the router of all experts, ``[t, e]``.
        experts: those that stay, ``[m]``.
        k: how many read a token.
        router_fn: the router.

    Returns:
        ``[m]``; see :func:`combined_scale`.

    >>> logits = jnp.log(jnp.asarray([[0.4, 0.2, 0.4], [0.2, 0.4, 0.4]]))
    >>> found = kept_scale(logits, jnp.asarray([0, 1]), 1)  # each has 2/3 now
    >>> bool(jnp.allclose(found, 0.6))
    True
    """
    select = jax.nn.one_hot(experts, logits.shape[-1], dtype=logits.dtype).T
    return combined_scale(logits, select, select, k, router_fn)


def combined_scale(
    logits: Array,
    mixing: Array,
    members: Array,
    k: int,
    router_fn: Callable[[Array, int, Array | None], Routing] = top_k,
) -> Array:
    """Factors r for the output kernels of experts that others are left out of or went into.

    A new expert reads some tokens with weight w'. Among all experts its members had the weight w if
    they were chosen; else w is what the router of all gives to the most probable of them. Then
    ``r = sum w w' / sum w'^2`` makes ``r w'`` as near to w as one factor can.

    Args:
        logits: of the router of all experts, ``[t, e]``.
        mixing: the new router's columns as sums of the old ones, ``[e, m]``.
        members: 1 where an old expert went into a new one, ``[e, m]``.
        k: how many of the old experts read a token.
        router_fn: the router, old and new.

    Returns:
        ``[m]``; 1 for an expert that reads none of the tokens.

    >>> logits = jnp.log(jnp.asarray([[0.5, 0.5]]))
    >>> one = jnp.ones((2, 1))
    >>> combined_scale(logits, one / 2, one, 1).round(3).tolist()  # one of two had half of it
    [0.5]
    """
    num_new, num_old = members.shape[1], members.shape[0]
    routing = router_fn(matmul(logits, mixing), min(k, num_new), None)
    new, reads = shares(routing), jax.nn.one_hot(routing.experts, num_new, dtype=logits.dtype)
    old, all_of_them = router_fn(logits, k, None), router_fn(logits, num_old, None)
    # A router may give more weight to one of k than to one of all; to the first, in proportion.
    ratio = old.weights[..., :1] / all_of_them.weights[..., :1]
    single = (shares(all_of_them) * ratio)[..., None] * members[None]
    held = matmul(shares(old), members)
    wanted = jnp.where(held <= 0, jnp.max(single, axis=-2), held) * jnp.sum(reads, axis=-2)
    squares = jnp.sum(new * new, axis=0)
    scale = jnp.sum(wanted * new, axis=0) / jnp.where(squares <= 0, 1, squares)
    return jnp.where(squares <= 0, jnp.ones((), scale.dtype), scale)
