"""Text from a sequence model: choosing the next token, and decoding one token after another in one
compiled loop.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.numerics import at_least_float32
from vfejax.types import Array, PyTree, SequenceModel

__all__ = ["SamplerFn", "generate", "sampler"]

SamplerFn = Callable[[Array, Array], Array]


def sampler(
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    forbidden: tuple[int, ...] = (),
) -> SamplerFn:
    """A function ``(key, logits [b, v]) -> tokens [b]`` that draws from ``softmax(logits /
    temperature)``, cut short.

    Args:
        temperature: dimensionless; 0 takes the most probable token.
        top_k: keep only the k most probable tokens (and what ties with the last of them).
        top_p: keep the most probable tokens until they hold this much probability: the smallest
            such set, never empty. After ``top_k``.
        forbidden: tokens that are never drawn, such as padding.

    Raises:
        ValueError: for a temperature below 0, ``top_k < 1`` or ``top_p`` outside (0, 1].

    Source: Holtzman et al., The curious case of neural text degeneration (2020), for ``top_p``.
    """
    if not temperature >= 0 or not np.isfinite(temperature):
        raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")

    def choose(key: Array, logits: Array) -> Array:
        logits = logits.astype(at_least_float32(logits.dtype))
        if forbidden:
            logits = logits.at[..., jnp.asarray(forbidden)].set(-jnp.inf)
        if temperature == 0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        logits = logits / temperature
        if top_k is not None and top_k < logits.shape[-1]:
            logits = jnp.where(logits < jax.lax.top_k(logits, top_k)[0][..., -1:], -jnp.inf, logits)
        if top_p is not None:
            logits = jnp.where(logits < _nucleus_edge(logits, top_p), -jnp.inf, logits)
        return jax.random.categorical(key, logits).astype(jnp.int32)

    return choose


def _nucleus_edge(logits: Array, top_p: float) -> Array:
    """The smallest logit of the smallest set of most probable tokens that holds ``top_p``, ``[b,
    1]``.
    """
    ordered = -jnp.sort(-logits, axis=-1)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    return jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)


def _schedule(total: int, max_length: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which position is read at each step of decoding, where the state starts afresh, and whether
    the position is read for the first time.

    A model with room for ``max_length`` tokens that is full starts again from the last half of
    them.
    """
    room = total + 1 if max_length is None else max_length
    rows: list[tuple[int, bool, bool]] = []
    used = 0
    for position in range(total):
        full = used == room
        again = range(position - room // 2, position) if full else range(0)
        rows += [(earlier, earlier == again[0], False) for earlier in again]
        rows.append((position, full and not again, True))
        used = len(again) + 1 if full else used + 1
    positions, resets, first = zip(*rows, strict=True)
    return np.asarray(positions, np.int32), np.asarray(resets), np.asarray(first)


def generate(
    model: SequenceModel,
    params: PyTree,
    prompt: Array,
    num_tokens: int,
    key: Array,
    sampler_fn: SamplerFn,
) -> Array:
    """Continue every prompt by ``num_tokens`` tokens.

    One scan over positions, one token of every sequence per step. A model that holds at most
    ``max_length`` tokens starts again from the last ``max_length // 2`` of them whenever it is
    full, which reads each token twice.

    Args:
        model: what predicts.
        params: its weights.
        prompt: tokens ``[b, p]``, ``p >= 1``.
        num_tokens: static number of new tokens.
        key: random key; that of a token depends only on its position, so a longer text begins like
            a shorter one.
        sampler_fn: chooses tokens, see :func:`sampler`.

    Returns:
        The new tokens ``[b, num_tokens]``, int32.

    Raises:
        ValueError: for an empty prompt, or one that is no integer array ``[b, p]``.
    """
    if prompt.ndim != 2 or prompt.shape[1] < 1 or not jnp.issubdtype(prompt.dtype, jnp.integer):
        raise ValueError(
            f"prompt must be integers of shape [b, p], p >= 1, got {prompt.dtype} of shape {prompt.shape}"
        )
    batch, given = prompt.shape
    # The last token is never read, only drawn.
    positions, resets, first = _schedule(given + num_tokens - 1, model.max_length)
    text = jnp.pad(prompt.astype(jnp.int32), ((0, 0), (0, num_tokens)))

    def step(
        carry: tuple[Array, PyTree], now: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, PyTree], None]:
        text, state = carry
        position, reset, is_first = now
        state = jax.lax.cond(
            reset, lambda _: model.init_decode(params, batch), lambda old: old, state
        )
        token = jax.lax.dynamic_index_in_dim(text, position, 1, keepdims=False)
        logits, state = model.decode(params, state, token)
        drawn = sampler_fn(jax.random.fold_in(key, position), logits)
        known = jax.lax.dynamic_index_in_dim(text, position + 1, 1, keepdims=False)
        new = jnp.where(is_first & (position + 1 >= given), drawn, known)
        return (jax.lax.dynamic_update_index_in_dim(text, new, position + 1, 1), state), None

    (text, _), _ = jax.lax.scan(
        step, (text, model.init_decode(params, batch)), (positions, resets, first)
    )
    return text[:, given:]
