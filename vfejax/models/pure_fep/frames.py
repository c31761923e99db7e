"""Frames of tokens and positions, and the way into the common frame.

The frame of token i in a layer is ``g_i = U(x_i) exp(i w J_z)``: a learned rotation of its symbol,
and a turn about one direction that is linear in the position, at a rate w of its own in each head.
Turns about one direction commute, so the transport ``g_i g_j^{-1} = U(x_i) exp((i - j) w J_z)
U(x_j)^{-1}`` knows positions by their distance alone. In the common frame, ``g_i^{-1} q_i``, no
transport is left. Covariances are constant on irreps, so frames do not change them.

A rotation is kept as one matrix for each spin, which turns all irreps of that spin: three vectors
beside two scalars and a spin 2 have 9 + 25 numbers, where the whole matrix has 256.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vfejax.geometry import irreps
from vfejax.geometry.transport import frames
from vfejax.models.pure_fep.gaussians import IrrepGaussian, Irreps
from vfejax.numerics import matmul, matmul_nt
from vfejax.types import Array

__all__ = ["Frames", "from_common", "sinusoids", "to_common", "token_frames", "turn", "turn_rates"]


class Frames(NamedTuple):
    """Frames of tokens by spin l, ``[..., h, 2 l + 1, 2 l + 1]``, their positions ``[...]``, and
    rates of the heads ``[h]`` in radians per token. Spin 0 is not turned and has no entry.
    """

    rotation: dict[int, Array]
    positions: Array
    rates: np.ndarray


def turn_rates(heads: int, length: int) -> np.ndarray:
    """Rates from a quarter turn per token down to a quarter turn per ``length`` tokens, ``[h]``.

    >>> turn_rates(2, 10).round(3).tolist()
    [1.571, 0.157]
    """
    return np.geomspace(np.pi / 2, np.pi / (2 * max(length, 2)), heads)


def token_frames(phi: Array, tokens: Array, kind: Irreps) -> dict[int, Array]:
    """The learned rotation of every token.

    Of a vocabulary larger than the text only the rotations that occur are made.

    Args:
        phi: frame coordinates of the vocabulary ``[v, h, 3]``, radians.
        tokens: integers ``[b, n]``.
        kind: the irreps of a head.

    Returns:
        By spin l > 0, ``[b, n, h, 2 l + 1, 2 l + 1]``.

    >>> from vfejax.models.pure_fep.gaussians import irreps
    >>> found = token_frames(jnp.zeros((5, 1, 3)), jnp.zeros((2, 4), int), irreps((0, 1, 1)))
    >>> {spin: rotation.shape for spin, rotation in found.items()}
    {1: (2, 4, 1, 3, 3)}
    """
    few = tokens.size < phi.shape[0]
    chosen = jnp.take(phi, tokens, axis=0) if few else phi
    found = {}
    for spin in sorted({spin for spin, _ in kind.runs()} - {0}):
        rotation = frames(chosen, irreps.so3((spin,)))
        found[spin] = rotation if few else jnp.take(rotation, tokens, axis=0)
    return found


def _rotated(
    mean: Array, rotation: dict[int, Array], kind: Irreps, product_fn: Callable[..., Array]
) -> Array:
    """Means ``[..., h, c]`` whose irreps, as rows, are multiplied by the rotation of their spin."""
    parts, start = [], 0
    for spin, number in kind.runs():
        stop = start + number * (2 * spin + 1)
        part = mean[..., start:stop]
        if spin:
            rows = part.reshape(*part.shape[:-1], number, 2 * spin + 1)
            part = product_fn(rows, rotation[spin]).reshape(part.shape)
        parts.append(part)
        start = stop
    return jnp.concatenate(parts, axis=-1)


def turn(mean: Array, positions: Array, rates: np.ndarray, kind: Irreps) -> Array:
    """``exp(position w J_z) mean``.

    Args:
        mean: ``[..., h, c]``.
        positions: ``[...]``.
        rates: w of each head, ``[h]``, radians per token.
        kind: the irreps of a head.

    Returns:
        ``[..., h, c]``.

    >>> from vfejax.models.pure_fep.gaussians import irreps
    >>> turned = turn(jnp.ones((1, 3)), jnp.asarray(1.0), np.array([np.pi / 2]), irreps((1,)))
    >>> turned.round(3).tolist()
    [[-1.0, 1.0, 1.0]]
    """
    angle = positions[..., None].astype(mean.dtype) * jnp.asarray(rates, mean.dtype)
    angle = angle[..., None] * jnp.asarray(kind.turns, mean.dtype)
    quarter = jnp.matmul(mean, jnp.asarray(kind.quarter.T, mean.dtype), precision="highest")
    return mean * jnp.cos(angle) + quarter * jnp.sin(angle)


def to_common(q: IrrepGaussian, place: Frames, kind: Irreps) -> IrrepGaussian:
    """Beliefs in the common frame, ``g^{-1} q``.

    Args:
        q: means ``[b, n, h, c]`` in their own frames.
        place: those frames.
        kind: the irreps of a head.
    """
    mean = _rotated(q.mean, place.rotation, kind, matmul)
    return q._replace(mean=turn(mean, -place.positions, place.rates, kind))


def from_common(q: IrrepGaussian, place: Frames, kind: Irreps) -> IrrepGaussian:
    """Beliefs in their own frames, ``g q``: the inverse of :func:`to_common`.

    Args:
        q: means ``[b, n, h, c]`` in the common frame.
        place: the frames.
        kind: the irreps of a head.
    """
    mean = turn(q.mean, place.positions, place.rates, kind)
    return q._replace(mean=_rotated(mean, place.rotation, kind, matmul_nt))


def sinusoids(positions: Array, dim: int) -> Array:
    """Sines and cosines of a position at geometrically spaced rates, ``[..., dim]``.

    Source: Vaswani et al., Attention is all you need (2017), section 3.5.

    >>> sinusoids(jnp.asarray([0]), 4).tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    """
    rates = 10_000.0 ** (-np.arange(-(-dim // 2)) * 2.0 / dim)
    angle = positions[..., None].astype(jnp.float32) * jnp.asarray(rates, jnp.float32)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)[..., :dim]
