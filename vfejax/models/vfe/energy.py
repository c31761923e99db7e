"""The free energy of each agent, in memory of the size of its inputs.

Agent i, a token, pays

    F_i = sum_h KL(q_i^h || p_i^h) + lambda_h E_h({KL(q_i^h || Omega_ij q_j^h)}_j),

over its neighbours j: itself and earlier tokens. E is an alignment energy of
:mod:`vfejax.agents.alignment` at the temperature tau_h. Divergences are products of rows, ``KL_ij =
a_i . b_j``, so E is attention with these rows as queries and keys, and so is its slope:

    dE_i/da_i = sum_j beta_ij b_j                                  (entropic)
    dE_i/da_i = sum_j beta_ij (1 - (KL_ij - <KL>_i) / tau) b_j     (weighted)

A custom rule says so, and a step of inference costs one attention. Slopes in senders and
temperature are those of automatic differentiation, and only made where they are asked for.

Long sequences are read by blocks of receivers, each of which forms its row of divergences again in
the backward pass: memory is ``O(n r + block n)`` per head for rows of r numbers, and no array of
pairs is kept.

Source: Feynman's envelope theorem for the entropic slope; Rabe and Staats, Self-attention does not
need O(n^2) memory (2021) for the blocks.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfejax.agents import alignment
from vfejax.agents.alignment import AlignmentFn
from vfejax.attention.softmax import softmax
from vfejax.types import Array

__all__ = ["SLOPES", "Alignment", "Places", "Reader", "align", "attention", "neighbours", "reader"]

BLOCK = 128
"""Receivers of a block; sequences of up to twice as many are read in one piece."""


class Places(NamedTuple):
    """Places in the sequence of receivers ``[n]`` and of senders ``[m]``, integers."""

    receivers: Array
    senders: Array


class Alignment(NamedTuple):
    """What receivers pay for alignment in nats, and the entropy of their attention in nats, which
    has no gradient: ``[b, n, heads]``.
    """

    energy: Array
    entropy: Array


class Reader(NamedTuple):
    """How receivers read senders.

    Attributes:
        alignment_fn: the energy, one of ``ALIGNMENTS`` of :mod:`vfejax.agents.alignment`.
        slope_fn: ``(attention, divergences / tau, log weights) -> dE / dKL`` of every pair.
        neighbour_fn: ``place of the receiver less that of the sender -> bool``.
        block: receivers of a block.
    """

    alignment_fn: AlignmentFn
    slope_fn: Callable[[Array, Array, Array], Array]
    neighbour_fn: Callable[[Array], Array]
    block: int = BLOCK


def _weighted_slope(weights: Array, divergence: Array, log_weight: Array) -> Array:
    mean = jnp.sum(weights * divergence, axis=-1, keepdims=True)
    return weights * (1.0 - (divergence - mean))


def _automatic_slope(alignment_fn: AlignmentFn) -> Callable[[Array, Array, Array], Array]:
    def slope(weights: Array, divergence: Array, log_weight: Array) -> Array:
        def total(divergence: Array) -> Array:
            return jnp.sum(alignment_fn(divergence, log_weight, alignment.rows()))

        return jax.grad(total)(divergence)

    return slope


SLOPES: dict[str, Callable[[Array, Array, Array], Array]] = {
    "entropic": lambda weights, divergence, log_weight: weights,
    "weighted": _weighted_slope,
}
"""Slopes of alignment energies in the divergences of each pair, from attention weights, divergences
in units of the temperature, and log weights. Those of other energies are differentiated."""


def neighbours(
    window: int | None = None, stride: int = 0, mask_self: bool = False
) -> Callable[..., Array]:
    """Whom an agent reads, by how far back it stands.

    Args:
        window: the last so many tokens, its own included; None for all.
        stride: beyond the window one token in so many; 0 for none.
        mask_self: whether an agent does not read itself.

    Returns:
        ``offset -> bool`` for integers of any shape.

    >>> neighbours(window=2, stride=3)(jnp.arange(-1, 7)).astype(int).tolist()
    [0, 1, 1, 0, 1, 0, 0, 1]
    """

    def near(offset: Array) -> Array:
        allowed = offset >= (1 if mask_self else 0)
        if window is None:
            return allowed
        inside = offset < window
        if stride:
            inside = inside | (offset % stride == 0)
        return allowed & inside

    return near


def reader(
    name: str, neighbour_fn: Callable[[Array], Array] | None = None, block: int = BLOCK
) -> Reader:
    """How receivers read senders under an alignment energy of the table.

    Args:
        name: one of ``ALIGNMENTS`` of :mod:`vfejax.agents.alignment`.
        neighbour_fn: as :func:`neighbours` makes it; None for all tokens up to the agent's own.
        block: receivers of a block.

    >>> reader("entropic").block
    128
    """
    near = neighbours() if neighbour_fn is None else neighbour_fn
    alignment_fn = alignment.ALIGNMENTS[name]
    return Reader(alignment_fn, SLOPES.get(name) or _automatic_slope(alignment_fn), near, block)


def _pairs(how: Reader, a: Array, b: Array, tau: Array, places: Places) -> tuple[Array, Array]:
    """Divergences in units of the temperature, ``[b, heads, n, m]``, 0 between strangers; and the
    logarithm of the weight of each pair, 0 or -inf, ``[1, 1, n, m]``.
    """
    products = jnp.einsum("bnhr,bmhr->bhnm", a, b, precision="highest")
    near = how.neighbour_fn(places.receivers[:, None] - places.senders[None])[None, None]
    log_weight = jnp.where(near, 0.0, -jnp.inf).astype(products.dtype)
    divergence = products / tau[None, :, None, None]
    return jnp.where(near, divergence, jnp.zeros((), divergence.dtype)), log_weight


def _energies(how: Reader, divergence: Array, log_weight: Array, tau: Array) -> Array:
    """``[b, n, heads]``, in nats."""
    energy = how.alignment_fn(divergence, log_weight, alignment.rows())
    return tau[None, None] * jnp.moveaxis(energy, 1, 2)


def _energy(how: Reader, a: Array, b: Array, tau: Array, places: Places) -> Array:
    return _energies(how, *_pairs(how, a, b, tau, places), tau)


def _read(how: Reader, a: Array, b: Array, tau: Array, places: Places) -> tuple[Array, ...]:
    """Energy, entropy of the attention, and slope in the receivers' rows."""
    divergence, log_weight = _pairs(how, a, b, tau, places)
    weights = softmax(log_weight - divergence)
    pairs = how.slope_fn(weights, divergence, log_weight)
    slope = jnp.einsum("bhnm,bmhr->bnhr", pairs, b, precision="highest")
    held = jax.lax.stop_gradient(weights)
    entropy = -jnp.sum(held * jnp.log(jnp.where(held == 0, 1.0, held)), axis=-1)
    return _energies(how, divergence, log_weight, tau), jnp.moveaxis(entropy, 1, 2), slope


def attention(how: Reader, a: Array, b: Array, tau: Array, places: Places) -> Array:
    """Attention of all pairs, ``beta_ij``, ``[b, heads, n, m]``; to look at, not to compute with.

    Args:
        how, a, b, tau, places: as :func:`align` takes them.

    >>> rows = jnp.ones((1, 2, 1, 2))
    >>> places = Places(jnp.arange(2), jnp.arange(2))
    >>> attention(reader("entropic"), rows, rows, jnp.ones(1), places)[0, 0].tolist()
    [[1.0, 0.0], [0.5, 0.5]]
    """
    divergence, log_weight = _pairs(how, a, b, tau, places)
    return softmax(log_weight - divergence)


def _by_blocks(fn: Callable[..., Any], how: Reader, a: Array, places: Places) -> Any:
    """``fn(rows of receivers, their places)`` by blocks of receivers, ``[b, n, ...]``; blocks are
    made again in the backward pass.
    """
    n = a.shape[1]
    if n <= 2 * how.block:
        return fn(a, places.receivers)
    num = -(-n // how.block)
    spare = num * how.block - n
    rows = jnp.pad(a, ((0, 0), (0, spare), (0, 0), (0, 0)))
    rows = jnp.moveaxis(rows.reshape(a.shape[0], num, how.block, *a.shape[2:]), 1, 0)
    # Receivers behind the last one stand at its place.
    own = jnp.pad(places.receivers, (0, spare), mode="edge").reshape(num, how.block)
    found = jax.lax.map(lambda block: jax.checkpoint(fn, prevent_cse=False)(*block), (rows, own))
    return jax.tree.map(
        lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :n], found
    )


def align(how: Reader, a: Array, b: Array, tau: Array, places: Places) -> Alignment:
    """What every receiver pays for its divergences from its neighbours.

    Args:
        how: energy, neighbours and blocks.
        a: rows of receivers, ``[b, n, heads, r]``.
        b: rows of senders, ``[b, m, heads, r]``.
        tau: temperatures in nats, ``[heads]``.
        places: where receivers and senders stand.

    Returns:
        Energies in nats; a receiver without neighbours pays 0. The first derivative is in reverse
        mode, and so is the second.

    >>> rows = jnp.ones((1, 3, 1, 2))
    >>> places = Places(jnp.arange(3), jnp.arange(3))
    >>> align(reader("entropic"), rows, rows, jnp.ones(1), places).energy.ravel().tolist()
    [2.0, 2.0, 2.0]
    """
    return Alignment(*_align(how, a, b, tau, places))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _align(how: Reader, a: Array, b: Array, tau: Array, places: Places) -> tuple[Array, ...]:
    return _whole(how, a, b, tau, places)[:2]


def _whole(how: Reader, a: Array, b: Array, tau: Array, places: Places) -> tuple[Array, ...]:
    return _by_blocks(
        lambda rows, own: _read(how, rows, b, tau, Places(own, places.senders)), how, a, places
    )


def _align_forward(how: Reader, *inputs: Any) -> tuple[tuple[Array, Array], tuple]:
    values = jax.tree.map(lambda x: x.value, inputs, is_leaf=lambda x: hasattr(x, "perturbed"))
    energy, entropy, slope = _whole(how, *values)
    others = inputs[1].perturbed or inputs[2].perturbed
    return (energy, entropy), (slope, values if others else None)


def _align_backward(how: Reader, kept: tuple, cotangents: tuple[Array, Array]) -> tuple:
    (slope, values), cotangent = kept, cotangents[0]
    to_rows = cotangent[..., None] * slope
    if values is None:
        return to_rows, None, None, None
    a, b, tau, places = values

    def total(b: Array, tau: Array) -> Array:
        return _by_blocks(
            lambda rows, own: _energy(how, rows, b, tau, Places(own, places.senders)),
            how,
            a,
            places,
        )

    return (to_rows, *jax.vjp(total, b, tau)[1](cotangent), None)


_align.defvjp(_align_forward, _align_backward, symbolic_zeros=True)
