"""Draws of whole paths from the posterior of a chain: filter forwards, sample backwards."""

import jax
import jax.numpy as jnp

from vfejax.inference._logarithms import safe_log
from vfejax.inference.chains.hidden_markov import HiddenMarkov, HiddenMarkovFiltered
from vfejax.inference.chains.square_root import BackwardChain
from vfejax.numerics import as_floating, matmul_nt
from vfejax.types import Array

__all__ = ["sample_paths", "sample_states"]


def sample_paths(key: Array, chain: BackwardChain, num_samples: int) -> Array:
    """Independent paths of a linear Gaussian chain given all observations.

    The chain's roots may be singular: a state that is known stays where it is. O(s t n^2).

    Args:
        key: a key of ``jax.random``.
        chain: the posterior, of :func:`vfejax.inference.chains.square_root.backward_chain`.
        num_samples: how many, s.

    Returns:
        ``[s, t, n]``.

    Source: Fruhwirth-Schnatter (1994), Carter and Kohn (1994).

    >>> chain = BackwardChain(jnp.zeros((4, 1, 1)), jnp.ones((4, 1)), jnp.zeros((4, 1, 1)))
    >>> sample_paths(jax.random.key(0), chain, 2)[..., 0].tolist()
    [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    """
    t, n = chain.offset.shape
    noise = jax.random.normal(key, (t, num_samples, n), chain.offset.dtype)

    def step(after: Array, xs: tuple[BackwardChain, Array]) -> tuple[Array, Array]:
        link, noise = xs
        now = matmul_nt(after, link.gain) + link.offset[None] + matmul_nt(noise, link.chol)
        return now, now

    last = jnp.zeros((num_samples, n), chain.offset.dtype)
    return jnp.swapaxes(jax.lax.scan(step, last, (chain, noise), reverse=True)[1], 0, 1)


def sample_states(
    key: Array, model: HiddenMarkov, filtered: HiddenMarkovFiltered, num_samples: int
) -> Array:
    """Independent paths of a hidden Markov chain given all observations. O(s t k).

    Args:
        key: a key of ``jax.random``.
        model: the one that was filtered.
        filtered: what :func:`vfejax.inference.chains.hidden_markov.hidden_markov_filter` returned.
        num_samples: how many, s.

    Returns:
        States ``[s, t]``.

    >>> model = HiddenMarkov(jnp.array([0.0, 1.0]), jnp.eye(2))
    >>> from vfejax.inference.chains.hidden_markov import hidden_markov_filter
    >>> filtered = hidden_markov_filter(model, jnp.zeros((3, 2)))
    >>> sample_states(jax.random.key(0), model, filtered, 1).tolist()
    [[1, 1, 1]]
    """
    known = safe_log(filtered.probabilities)
    t, _ = known.shape
    table = safe_log(as_floating(model.transition, "model.transition").astype(known.dtype))
    keys = jax.random.split(key, t)
    last = jax.random.categorical(keys[-1], known[-1], shape=(num_samples,))

    def step(after: Array, xs: tuple) -> tuple[Array, Array]:
        key, row, varying = xs
        logits = row[None] + (table if varying is None else varying)[after]
        now = jax.random.categorical(key, logits)
        return now, now

    tables = table if table.ndim == 3 else None
    _, states = jax.lax.scan(step, last, (keys[:-1], known[:-1], tables), reverse=True)
    return jnp.concatenate([states, last[None]]).T
