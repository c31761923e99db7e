"""Which experts read a token: the most probable ones, or straight-through Gumbel noise."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.devices import by_device
from vfejax.types import Array

__all__ = ["Routing", "gumbel_top_k", "top_k"]


class Routing(NamedTuple):
    """Chosen experts ``[..., k]`` (int32), their weights ``[..., k]``, and the router's
    probabilities of all ``[..., e]``.
    """

    experts: Array
    weights: Array
    probabilities: Array


def _check_k(logits: Array, k: int) -> None:
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"k must lie between 1 and the {logits.shape[-1]} experts, got {k}")


def _most_probable(logits: Array, k: int) -> Array:
    """Indices of the k largest logits; those of the probabilities would tie where small ones
    underflow to 0.
    """
    num_tokens = logits.shape[0] if logits.ndim > 1 else 1
    return by_device(lambda x: jax.lax.top_k(x, k)[1], num_tokens)(logits)


def top_k(logits: Array, k: int, key: Array | None = None) -> Routing:
    """The k most probable experts, weighed by their probabilities under the softmax over all.

    The weights are not brought to sum 1: with k = 1 the weight would then be constant and the
    router would never learn; with k = e the output is the dense mixture ``sum_e p_e f_e(x)`` either
    way.

    Args:
        logits: ``[..., e]``.
        k: number of experts per token.
        key: not used; every router has it.

    Raises:
        ValueError: unless ``1 <= k <= e``.

    >>> top_k(jnp.asarray([0.0, 2.0, 1.0]), 2).experts.tolist()
    [1, 2]

    Source: Fedus, Zoph, Shazeer, Switch transformers (2022), for k = 1.
    """
    del key
    _check_k(logits, k)
    probabilities = jax.nn.softmax(logits, axis=-1)
    experts = _most_probable(logits, k)
    return Routing(experts, jnp.take_along_axis(probabilities, experts, axis=-1), probabilities)


def gumbel_top_k(logits: Array, k: int, key: Array | None = None) -> Routing:
    """k experts drawn without replacement by Gumbel noise, each with weight ``1 / k``; the gradient
    is that of the noisy softmax.

    Straight through: forward a hard choice, backward ``dp_i = p_i (dlogit_i - sum_j p_j
    dlogit_j)``, which reaches the logits of experts that were not chosen, too. Without a key there
    is no noise.

    Args:
        logits: ``[..., e]``.
        k: number of experts per token.
        key: of the noise; None for none.

    Raises:
        ValueError: unless ``1 <= k <= e``.

    >>> gumbel_top_k(jnp.asarray([0.0, 2.0, 1.0]), 2).experts.tolist()
    [1, 2]

    Source: Jang, Gu, Poole, Categorical reparameterization with Gumbel-softmax (2017).
    """
    _check_k(logits, k)
    noisy = logits if key is None else logits + jax.random.gumbel(key, logits.shape, logits.dtype)
    experts = _most_probable(noisy, k)
    soft = jnp.take_along_axis(jax.nn.softmax(noisy, axis=-1), experts, axis=-1)
    weights = jnp.full_like(soft, 1.0 / k) + (soft - jax.lax.stop_gradient(soft))
    return Routing(experts, weights, jax.nn.softmax(logits, axis=-1))
