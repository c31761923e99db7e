"""Text from a sequence model: choosing the next token, and decoding one token after another in one
compiled loop.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.models.protocol import as_batch, check_batch, pack
from vfejax.numerics import at_least_float32
from vfejax.types import Array, Batch, PyTree, SequenceModel

__all__ = ["SamplerFn", "generate", "sampler"]

SamplerFn = Callable[[Array, Array], Array]

_CHUNK = 128  # tokens of a prompt that are read at once, by a model that can


def sampler(
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    forbidden: tuple[int, ...] = (),
) -> SamplerFn:
    """A function ``(key, logits [b, v]) -> tokens [b]`` that draws from ``softmax(logits /
    temperature)``, cut short.

    Args:
        temperature: dimensionless; 0, and what is 0 to the precision of the logits, takes the most
            probable token.
        top_k: keep only the k most probable tokens (and what ties with the last of them).
        top_p: keep the smallest set of most probable tokens that holds this much probability, to
            rounding; of equal ones the first, and always one. After ``top_k``.
        forbidden: tokens that are never drawn, such as padding.

    Returns:
        The function; its tokens are int32. It raises ValueError for a forbidden token outside the
        vocabulary, or when no token is left.

    Raises:
        ValueError: for a temperature below 0, ``top_k < 1`` or ``top_p`` outside (0, 1].

    Source: Holtzman et al., The curious case of neural text degeneration (2020), for ``top_p``.

    >>> draw = sampler(temperature=0.8, top_p=0.5, forbidden=(0,))
    >>> draw(jax.random.key(0), jnp.asarray([[9.0, 1.0, 5.0]])).tolist()
    [2]
    """
    if not temperature >= 0 or not np.isfinite(temperature):
        raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")

    def choose(key: Array, logits: Array) -> Array:
        logits = jnp.asarray(logits)
        logits = logits.astype(at_least_float32(logits.dtype))
        logits = _without(logits, forbidden)
        if temperature < float(jnp.finfo(logits.dtype).tiny):
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        # The largest becomes 0, which no temperature can make overflow.
        logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature
        if top_k is not None and top_k < logits.shape[-1]:
            logits = jnp.where(logits < jax.lax.top_k(logits, top_k)[0][..., -1:], -jnp.inf, logits)
        if top_p is not None and top_p < 1:
            logits = jnp.where(_nucleus(logits, top_p), logits, -jnp.inf)
        return jax.random.categorical(key, logits).astype(jnp.int32)

    return choose


def _without(logits: Array, forbidden: tuple[int, ...]) -> Array:
    """Logits that no forbidden token can win."""
    size = logits.shape[-1]
    for token in forbidden:
        if not 0 <= token < size:
            raise ValueError(f"forbidden must hold tokens from 0 to {size - 1}, got {token}")
    if len(set(forbidden)) == size:
        raise ValueError(f"forbidden must leave a token to draw, got all {size}")
    return logits.at[..., jnp.asarray(forbidden)].set(-jnp.inf) if forbidden else logits


def _nucleus(logits: Array, top_p: float) -> Array:
    """Which tokens are in the smallest set of most probable ones that holds ``top_p``, ``[b, v]``;
    of equal ones the first.
    """
    order = jnp.argsort(-logits, axis=-1, stable=True)
    probabilities = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    held = jnp.cumsum(probabilities, axis=-1)
    # Ten tokens of probability 0.1 hold 0.5 after five, whichever way the sum was rounded.
    enough = held >= top_p * (1.0 - 8.0 * float(jnp.finfo(logits.dtype).eps))
    kept = jnp.pad(~enough[..., :-1], [(0, 0)] * (logits.ndim - 1) + [(1, 0)], constant_values=True)
    return jnp.take_along_axis(kept, jnp.argsort(order, axis=-1), axis=-1)


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
    prompt: Array | Batch,
    num_tokens: int,
    key: Array,
    sampler_fn: SamplerFn,
) -> Array:
    """Continue every prompt by ``num_tokens`` tokens.

    One loop over positions, one token of every sequence per step. Rows of unequal length are moved
    to begin together, so that decoding meets no padding: a row is continued as it would be without
    it. Prompts are read in chunks by a model with ``read``, as far as the shortest of them reaches.
    A model that holds at most ``max_length`` tokens starts again from the last ``max_length // 2``
    of them whenever it is full, which reads each token twice.

    Args:
        model: what predicts.
        params: its weights; for long texts, or many, those of ``jax.jit(model.prepare)(params)``,
            which decode faster and compile more slowly.
        prompt: tokens ``[b, p]``, ``p >= 1``; or a batch whose mask says which of them are real,
            at least one in each row.
        num_tokens: static number of new tokens, at least 1.
        key: random key; that of a token depends only on its place after the first real one, so a
            longer text begins like a shorter one.
        sampler_fn: chooses tokens, see :func:`sampler`.

    Returns:
        The new tokens ``[b, num_tokens]``, int32.

    Raises:
        ValueError: for an empty prompt, one that is no integer array ``[b, p]``, or no new tokens.

    >>> from vfejax.models import table
    >>> model = table.build("transformer", table.MODELS["transformer"].tiny, 11, length=8)
    >>> params = model.init(jax.random.key(0))
    >>> prompt = Batch(jnp.asarray([[0, 3], [5, 4]]), jnp.asarray([[False, True], [True, True]]))
    >>> generate(model, params, prompt, 4, jax.random.key(1), sampler()).shape
    (2, 4)
    """
    tokens, lengths = _prompts(prompt)
    if num_tokens < 1:
        raise ValueError(f"num_tokens must be at least 1, got {num_tokens}")
    batch, longest = tokens.shape
    # The last token is never read, only drawn.
    schedule = _schedule(longest + num_tokens - 1, model.max_length)
    text = jnp.pad(tokens, ((0, 0), (0, num_tokens)))

    state, start = _read_prompts(model, params, tokens, lengths)

    def step(index: Array, carry: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
        text, state = carry
        position, reset, is_first = (jnp.asarray(column)[index] for column in schedule)
        state = jax.lax.cond(
            reset, lambda _: model.init_decode(params, batch), lambda old: old, state
        )
        token = jax.lax.dynamic_index_in_dim(text, position, 1, keepdims=False)
        logits, state = model.decode(params, state, token)
        drawn = sampler_fn(jax.random.fold_in(key, position), logits)
        known = jax.lax.dynamic_index_in_dim(text, position + 1, 1, keepdims=False)
        new = jnp.where(is_first & (position + 1 >= lengths), drawn, known)
        return jax.lax.dynamic_update_index_in_dim(text, new, position + 1, 1), state

    text, _ = jax.lax.fori_loop(start, len(schedule[0]), step, (text, state))
    places = lengths[:, None] + jnp.arange(num_tokens, dtype=jnp.int32)[None]
    return jnp.take_along_axis(text, places, axis=1)


def _read_prompts(
    model: SequenceModel, params: PyTree, tokens: Array, lengths: Array
) -> tuple[PyTree, Array | int]:
    """The state of decoding after the chunks that can be read at once, and how many tokens they
    are. The last token of a prompt is not among them: what it predicts is drawn.
    """
    batch, longest = tokens.shape
    state = model.init_decode(params, batch)
    read, room = model.read, longest if model.max_length is None else model.max_length
    chunk = min(_CHUNK, longest - 1, room)
    if read is None or chunk < 1:
        return state, 0
    # Up to there the schedule has one step per position, in order.
    count = jnp.minimum(jnp.min(lengths) - 1, room) // chunk

    def step(index: Array, state: PyTree) -> PyTree:
        part = jax.lax.dynamic_slice_in_dim(tokens, index * chunk, chunk, axis=1)
        return read(params, state, part)[1]

    return jax.lax.fori_loop(0, count, step, state), count * chunk


def _prompts(prompt: Array | Batch) -> tuple[Array, Array]:
    """Prompts with their real tokens in front, int32 ``[b, p]``, and their lengths ``[b]``."""
    tokens = prompt.tokens if isinstance(prompt, Batch) else prompt
    if tokens.ndim != 2 or tokens.shape[1] < 1 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"prompt must be integers of shape [b, p], p >= 1, got {tokens.dtype} of shape "
            f"{tokens.shape}"
        )
    batch = as_batch(prompt)
    check_batch(batch, None)
    batch, _ = pack(batch)
    if batch.mask is None:
        lengths = jnp.full(tokens.shape[0], tokens.shape[1], jnp.int32)
    else:
        lengths = jnp.maximum(jnp.sum(batch.mask, axis=1, dtype=jnp.int32), 1)
    return batch.tokens.astype(jnp.int32), lengths
