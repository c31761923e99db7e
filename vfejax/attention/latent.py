"""A compressed representation of the tokens before the window of a stream, with a bound on its
error.

A token that leaves the window is kept for ``horizon`` steps more as its coefficients in an
orthonormal basis of r channels, ``a = U^T k`` for its key and ``V^T v`` for its value: 2 r numbers
in place of 2 c. The part of the key outside the basis is lost, and only its norm is kept. It is
known exactly when the token leaves, so it is measured, not estimated:

    <q, k> - <U^T q, a> = <q_out, k_out>,    |<q_out, k_out>| <= |q_out| |k_out|,

where ``x_out = x - U U^T x``. Logits within the window do not change. So those of a query change by
at most ``eps = |q_out| max_j |k_out,j| / c^(1/2)``, and :func:`total_variation_bound` bounds what
becomes of its weights.

A basis is good if the keys of the stream lie in few directions; :func:`principal_basis` takes it
from an example. Coefficients are kept in at least float32, so that their rounding is no part of the
error.
"""

from typing import NamedTuple

import jax.numpy as jnp

from vfejax.attention import windows
from vfejax.attention.buffers import held_places, push, replaced
from vfejax.attention.softmax import Average, combine, total_variation_bound
from vfejax.attention.tiles import average
from vfejax.attention.windows import (
    Reach,
    Tokens,
    WindowState,
    flat,
    heads_first,
    heads_last,
    pattern_of,
    places,
)
from vfejax.numerics import at_least_float32, cast_like
from vfejax.quantum.hermitian import eigh
from vfejax.types import Array

__all__ = [
    "Compression",
    "LatentInfo",
    "LatentState",
    "Leaving",
    "check_compression",
    "check_past",
    "empty",
    "leaving",
    "principal_basis",
    "read",
    "total_variation_bound",
    "write",
]


class Compression(NamedTuple):
    """How the past is compressed.

    Attributes:
        key_basis: orthonormal columns for each inner head, ``[g, c, r]``; the platters of joint
            attention share them.
        value_basis: ``[g, v, r']``.
        horizon: how many tokens behind the window are read, at least 1.
    """

    key_basis: Array
    value_basis: Array
    horizon: int


class Latent(NamedTuple):
    """Compressed tokens.

    Attributes:
        keys: coefficients ``[b, g, m, D, r]``.
        values: coefficients ``[b, g, m, D, r']``.
        lost_keys: norms of what the basis leaves out, ``[b, g, m, D]``.
        lost_values: ``[b, g, m, D]``.
    """

    keys: Array
    values: Array
    lost_keys: Array
    lost_values: Array


class LatentState(NamedTuple):
    """The exact window and a ring of the ``horizon`` tokens before it."""

    window: WindowState
    past: Latent


class Leaving(NamedTuple):
    """The tokens that leave the window while a chunk is read.

    Attributes:
        tokens: compressed, ``[b, g, n, D, ...]``.
        residual: what the basis leaves out of their keys, ``[b, g, n, D, c]``.
        places: integer ``[b, n]``; negative before the first token.
    """

    tokens: Latent
    residual: Array
    places: Array


class LatentInfo(NamedTuple):
    """How far an answer may be off, for each query and head ``[b, n, h]``.

    Attributes:
        logit_change: no logit of the query changed by more than this, ``eps``.
        total_variation: the weights changed by at most this, ``tanh(eps / 2)``.
        measured: largest change of a logit among the tokens that left the window in this step,
            whose keys are still at hand; at most ``logit_change``. 0 where none left.
        value_error: norm of what the basis leaves out of the values read. The answer is off by at
            most ``2 total_variation max_j |v_j| + value_error``.
    """

    logit_change: Array
    total_variation: Array
    measured: Array
    value_error: Array


def principal_basis(x: Array, rank: int, depth: int = 1) -> Array:
    """The orthonormal basis that leaves least out of an example: its first principal directions.

    It minimises ``sum |x - U U^T x|^2`` over the tokens of each head (Eckart and Young, 1936).
    Directions are about 0, not about the mean.

    Args:
        x: turned keys, or values, floating ``[b, n, h, c]``.
        rank: number of directions r, 1 to c.
        depth: platters that share a basis: D for joint attention, 1 for axial.

    Returns:
        ``[h / depth, c, r]`` in at least float32, the strongest direction first.

    Raises:
        ValueError: for a rank out of range.

    >>> x = jnp.array([[3.0, 0.0], [0.0, 1.0]]).reshape(1, 2, 1, 2)
    >>> jnp.abs(principal_basis(x, 1)).tolist()
    [[[1.0], [0.0]]]
    """
    channels = x.shape[-1]
    if not 1 <= rank <= channels:
        raise ValueError(f"rank must be 1 to the {channels} channels, got {rank}")
    tokens = heads_first(x.astype(at_least_float32(x.dtype)), depth)
    moments = jnp.einsum("bgndc,bgnde->gce", tokens, tokens, precision="highest")
    _, directions = eigh(moments)
    return directions[..., ::-1][..., :rank]


def check_compression(compression: Compression, reach: Reach) -> None:
    """Raise ValueError for a horizon that does not fit.

    >>> from vfejax.geometry.torus import circular_distance
    >>> reach = Reach(1, 1, None, 8, 4, 0, circular_distance)
    >>> check_compression(Compression(jnp.eye(4)[None], jnp.eye(4)[None], 5), reach)
    Traceback (most recent call last):
    ValueError: horizon must be 1 to the 4 places that the window leaves of the ring, got 5
    """
    room = reach.circumference - reach.window
    if not 1 <= compression.horizon <= room:
        raise ValueError(
            f"horizon must be 1 to the {room} places that the window leaves of the ring, got "
            f"{compression.horizon}"
        )


def empty(compression: Compression, reach: Reach, tokens: Tokens) -> LatentState:
    """A stream before its first token.

    Args:
        compression: how the past is compressed.
        reach: what the queries read.
        tokens: shapes and dtypes of a chunk of any length.

    >>> from vfejax.geometry.torus import circular_distance
    >>> bases = Compression(jnp.ones((2, 8, 3)), jnp.ones((2, 8, 5)), 6)
    >>> token = Tokens(*(jnp.zeros((1, 1, 2, 8)),) * 3)
    >>> empty(bases, Reach(1, 1, None, 16, 4, 0, circular_distance), token).past.keys.shape
    (1, 2, 6, 1, 3)
    """
    window = windows.empty(reach, tokens)
    batch, group = window.ring[0].shape[:2]
    bases = {"key_basis": compression.key_basis, "value_basis": compression.value_basis}
    for (name, basis), held in zip(bases.items(), window.ring, strict=True):
        channels = held.shape[-1]
        if basis.ndim != 3 or basis.shape[:2] != (group, channels) or basis.shape[2] > channels:
            raise ValueError(
                f"{name} must be [{group}, {channels}, r] with r up to {channels}, got "
                f"{basis.shape}"
            )
    shape = (batch, group, compression.horizon, reach.depth)
    real = at_least_float32(tokens.query.dtype)
    keys, values = (jnp.zeros((*shape, basis.shape[2]), real) for basis in bases.values())
    # Two arrays, not one twice: a state can be donated.
    return LatentState(window, Latent(keys, values, jnp.zeros(shape, real), jnp.zeros(shape, real)))


def check_past(compression: Compression, state: LatentState) -> None:
    """Raise ValueError unless a state holds a past that was compressed in this way.

    >>> from vfejax.geometry.torus import circular_distance
    >>> reach, full = Reach(1, 1, None, 8, 4, 0, circular_distance), jnp.eye(3)[None]
    >>> state = empty(Compression(full, full, 2), reach, Tokens(*(jnp.ones((1, 1, 1, 3)),) * 3))
    >>> check_past(Compression(full[..., :2], full, 4), state)
    Traceback (most recent call last):
    ValueError: state must hold a past of 4 tokens in 2 and 3 channels, got 2 in 3 and 3
    """
    bases = compression.key_basis, compression.value_basis
    needed = compression.horizon, *(basis.shape[2] for basis in bases)
    got = state.past.keys.shape[2], state.past.keys.shape[4], state.past.values.shape[4]
    if got != needed:
        raise ValueError(
            "state must hold a past of {} tokens in {} and {} channels, ".format(*needed)
            + "got {} in {} and {}".format(*got)
        )


def _compress(x: Array, basis: Array) -> tuple[Array, Array]:
    """Coefficients of ``[b, g, n, D, c]`` and what the basis leaves out, in at least float32."""
    x = x.astype(at_least_float32(x.dtype))
    basis = cast_like(basis, x)
    inside = jnp.einsum("bgndc,gcr->bgndr", x, basis, precision="highest")
    return inside, x - jnp.einsum("bgndr,gcr->bgndc", inside, basis, precision="highest")


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(x * x, axis=-1))


def leaving(compression: Compression, reach: Reach, state: LatentState, tokens: Tokens) -> Leaving:
    """The tokens that leave the window while a chunk is read, compressed.

    Args:
        compression: how the past is compressed.
        reach: what the queries read.
        state: before the chunk.
        tokens: the chunk.

    >>> from vfejax.geometry.torus import circular_distance
    >>> bases = Compression(jnp.eye(3)[None, :, :2], jnp.eye(3)[None], 6)
    >>> reach = Reach(1, 1, None, 16, 1, 0, circular_distance)
    >>> chunk = Tokens(*(jnp.ones((1, 2, 1, 3)),) * 3)
    >>> found = leaving(bases, reach, empty(bases, reach, chunk), chunk)
    >>> found.places.tolist(), found.tokens.lost_keys.tolist()
    ([[-1, 0]], [[[[0.0], [1.0]]]])
    """
    new = tuple(heads_first(x, reach.depth) for x in tokens[1:])
    keys, values = replaced(state.window.ring, new, state.window.position)
    inner_keys, lost_keys = _compress(keys, compression.key_basis)
    inner_values, lost_values = _compress(values, compression.value_basis)
    compressed = Latent(inner_keys, inner_values, _norm(lost_keys), _norm(lost_values))
    here = places(state.window, tokens.key.shape[1])
    return Leaving(compressed, lost_keys, here - jnp.asarray(reach.window, here.dtype))


class _Part(NamedTuple):
    """What queries read of one part of the past.

    Attributes:
        answer: undivided, in coefficients.
        allowed: which tokens a query reads, ``[b, n, m]``.
        lost_key: largest norm of what the basis leaves out of their keys, ``[b, g, n]``.
        lost_value: of their values.
    """

    answer: Average
    allowed: Array
    lost_key: Array
    lost_value: Array


def read(
    compression: Compression, reach: Reach, state: LatentState, tokens: Tokens, left: Leaving
) -> tuple[Average, LatentInfo]:
    """What a chunk of queries reads behind the window, undivided, and how far it may be off.

    Args:
        compression: how the past is compressed.
        reach: what the queries read.
        state: before the chunk.
        tokens: the chunk.
        left: what :func:`leaving` found.

    >>> from vfejax.geometry.torus import circular_distance
    >>> bases = Compression(jnp.eye(3)[None, :, :2], jnp.eye(3)[None], 6)
    >>> reach = Reach(1, 1, None, 16, 1, 0, circular_distance)
    >>> chunk = Tokens(*(jnp.ones((1, 2, 1, 3)),) * 3)
    >>> state = empty(bases, reach, chunk)
    >>> read(bases, reach, state, chunk, leaving(bases, reach, state, chunk))[1].measured.shape
    (1, 2, 1)
    """
    position, horizon = state.window.position, compression.horizon
    query = heads_first(tokens.query, reach.depth)
    inside, outside = _compress(query, compression.key_basis)
    rank, channels = inside.shape[-1], query.shape[-1]
    # Logits are divided by the root of the number of channels: here of r, there of c.
    inside = inside * jnp.asarray((rank / channels) ** 0.5, inside.dtype)
    outside = outside * jnp.asarray(channels**-0.5, outside.dtype)
    here = places(state.window, query.shape[2])

    def part(kept: Latent, at: Array) -> _Part:
        age = here[:, :, None] - at[:, None, :] - reach.window
        allowed = (age >= 0) & (age < horizon) & (at >= reach.sinks)[:, None]
        pattern = pattern_of(reach, tokens.query, here, at, allowed)
        return _Part(
            average(flat(inside), flat(kept.keys), flat(kept.values), pattern),
            allowed,
            _largest(kept.lost_keys, allowed),
            _largest(kept.lost_values, allowed),
        )

    at = held_places(position - jnp.asarray(reach.window, here.dtype), horizon)
    # What leaves with the first query of the chunk may be a NaN, which its weight 0 does not stop.
    stays = (position[:, None] - at - reach.window < horizon)[:, None, :, None, None]
    past = state.past._replace(values=jnp.where(stays, state.past.values, 0.0))
    old = part(past, at)
    new = part(left.tokens, left.places)
    joined = combine(old.answer, new.answer)
    basis = cast_like(compression.value_basis, joined.values)
    values = jnp.einsum("bgnr,gvr->bgnv", joined.values, basis, precision="highest")
    measured = _measured(outside, left.residual, new.allowed)
    eps = _norm(outside) * jnp.maximum(old.lost_key, new.lost_key)[..., None]
    lost_value = jnp.maximum(old.lost_value, new.lost_value)[..., None]
    value_error = jnp.broadcast_to(lost_value, eps.shape)
    info = LatentInfo(eps, total_variation_bound(eps), measured, value_error)
    return joined._replace(values=values), LatentInfo(
        *(heads_last(x.reshape(*x.shape[:2], -1), reach.depth) for x in info)
    )


def _measured(outside: Array, residual: Array, allowed: Array) -> Array:
    """Largest ``|<q_out, k_out>|`` of the tokens that leave and that a query reads,
    ``[b, g, n, D]``.
    """
    change = jnp.abs(jnp.einsum("bgndc,bgmec->bgndme", outside, residual, precision="highest"))
    read = allowed[:, None, :, None, :, None]
    return jnp.max(jnp.where(read, change, 0.0), axis=(-2, -1), initial=0.0)


def _largest(norms: Array, allowed: Array) -> Array:
    """Largest of ``norms [b, g, m, D]`` that a query reads, ``[b, g, n]``; 0 if it reads none."""
    of_token = jnp.max(norms, axis=-1)[:, :, None, :]
    return jnp.max(jnp.where(allowed[:, None], of_token, 0.0), axis=-1, initial=0.0)


def write(reach: Reach, state: LatentState, tokens: Tokens, left: Leaving) -> LatentState:
    """The state after a chunk.

    Args:
        reach: what the queries read.
        state: before the chunk.
        tokens: the chunk.
        left: what :func:`leaving` found.

    >>> from vfejax.geometry.torus import circular_distance
    >>> bases = Compression(jnp.eye(3)[None, :, :2], jnp.eye(3)[None], 2)
    >>> reach = Reach(1, 1, None, 16, 1, 0, circular_distance)
    >>> chunk = Tokens(*(jnp.ones((1, 2, 1, 3)),) * 3)
    >>> state = empty(bases, reach, chunk)
    >>> write(reach, state, chunk, leaving(bases, reach, state, chunk)).past.lost_keys.tolist()
    [[[[1.0], [0.0]]]]
    """
    window = state.window
    behind = window.position - jnp.asarray(reach.window, window.position.dtype)
    return LatentState(windows.write(reach, window, tokens), push(state.past, left.tokens, behind))
