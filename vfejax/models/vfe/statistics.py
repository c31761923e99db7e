"""Diagnostics of a VFE transformer: sums over tokens, and their means."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.models.vfe.inference import Info
from vfejax.types import Array

__all__ = ["Statistics", "counted", "summary", "sums_of"]


class Statistics(NamedTuple):
    """Sums over the real tokens, by layer ``[layers]``, and how many tokens there are.

    Attributes:
        tokens: the number of real tokens.
        self_coupling: KL of posteriors from priors in all heads, nats.
        alignment: weighted alignment energy in all heads at the last step, before it, nats.
        entropy: of the attention at the last step, nats, mean over heads.
        length: Fisher length of the last step, mean over heads.
        observed: free energy of the last layer with targets observed, nats, a scalar; None without.
    """

    tokens: Array
    self_coupling: Array
    alignment: Array
    entropy: Array
    length: Array
    observed: Array | None = None


def counted(x: Array, mask: Array | None) -> Array:
    """``x [b, n, ...]`` with 0 at padding.

    >>> counted(jnp.ones((1, 2)), jnp.array([[True, False]])).tolist()
    [[1.0, 0.0]]
    """
    if mask is None:
        return x
    mask = mask.reshape(*mask.shape, *(1,) * (x.ndim - 2))
    return jnp.where(mask, x, jnp.zeros((), x.dtype))


def sums_of(self_coupling: Array, info: Info, mask: Array | None) -> Statistics:
    """The sums of one layer, without a gradient; 0 for what a layer without steps does not have.

    Args:
        self_coupling: of the posteriors, ``[b, n, heads]``.
        info: of every step.
        mask: True at real tokens, ``[b, n]``; None when all are.

    >>> step = jnp.ones((1, 2, 3, 4))  # one step of 2 x 3 tokens in 4 heads
    >>> sums = sums_of(step[0], Info(step, step, step, step), None)
    >>> float(sums.tokens), float(sums.self_coupling), float(sums.entropy)
    (6.0, 24.0, 6.0)
    """
    last = jax.tree.map(lambda x: x[-1] if x.shape[0] else jnp.zeros_like(self_coupling), info)
    found = (jax.lax.stop_gradient(self_coupling), last.alignment, last.entropy, last.length)
    paid, alignment, entropy, length = (jnp.sum(counted(x, mask)) for x in found)
    size, heads = self_coupling[..., 0].size, self_coupling.shape[-1]
    tokens = jnp.asarray(size if mask is None else jnp.sum(mask)).astype(paid.dtype)
    return Statistics(tokens, paid, alignment, entropy / heads, length / heads)


def summary(
    observation: float, statistics: Statistics
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Loss terms and diagnostics: energies per token, of all layers together; means over layers of
    the entropy of the attention and of the length of the last step.

    Args:
        observation: weight of the free energy with targets observed.
        statistics: sums over tokens.

    >>> ones = jnp.ones(2)
    >>> losses, found = summary(0.5, Statistics(jnp.asarray(4.0), ones, ones, ones, ones, ones[0]))
    >>> float(losses["observation_term"]), float(found["alignment_nats"])
    (0.125, 0.5)
    """
    tokens = jnp.maximum(statistics.tokens, 1)
    diagnostics = {
        "self_coupling_nats": jnp.sum(statistics.self_coupling) / tokens,
        "alignment_nats": jnp.sum(statistics.alignment) / tokens,
        "attention_entropy_nats": jnp.mean(statistics.entropy) / tokens,
        "inference_residual": jnp.mean(statistics.length) / tokens,
    }
    if statistics.observed is None:
        return {}, diagnostics
    observed = statistics.observed / tokens
    return (
        {"observation_term": observation * observed},
        diagnostics | {"observed_free_energy_nats": observed},
    )
