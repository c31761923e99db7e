"""Frames of tokens and positions, and the way into the common frame.

The frame of token i in a layer is ``g_i = U(x_i) exp(i w J_z)``: a learned rotation of its symbol,
and a turn about one direction that is linear in the position, at a rate w of its own in each head.
Turns about one direction commute, so the transport ``g_i g_j^{-1} = U(x_i) exp((i - j) w J_z)
U(x_j)^{-1}`` knows positions by their distance alone. In the common frame, ``g_i^{-1} q_i``, no
transport is left. Covariances are constant on irreps, so frames do not change them.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vfejax.geometry.transport import frames
from vfejax.models.pure_fep.gaussians import IrrepGaussian, Irreps
from vfejax.numerics import matvec, transpose
from vfejax.types import Array

__all__ = ["Frames", "from_common", "sinusoids", "to_common", "token_frames", "turn", "turn_rates"]


class Frames(NamedTuple):
    """Frames of tokens ``[..., h, c, c]``, their positions ``[...]``, and rates of the heads
    ``[h]`` in radians per token.
    """

    rotation: Array
    positions: Array
    rates: np.ndarray


def turn_rates(heads: int, length: int) -> np.ndarray:
    """Rates from a quarter turn per token down to a quarter turn per ``length`` tokens, ``[h]``.

    >>> turn_rates(2, 10).round(3).tolist()
    [1.571, 0.157]
    """
    return np.geomspace(np.pi / 2, np.pi / (2 * max(length, 2)), heads)


def token_frames(phi: Array, tokens: Array, kind: Irreps) -> Array:
    """The learned rotation of every token.

    Of a vocabulary larger than the text only the rotations that occur are made.

    Args:
        phi: frame coordinates of the vocabulary ``[v, h, 3]``, radians.
        tokens: integers ``[b, n]``.
        kind: the irreps of a head.

    Returns:
        ``[b, n, h, c, c]``.
    """
    if tokens.size < phi.shape[0]:
        return frames(jnp.take(phi, tokens, axis=0), kind.group)
    return jnp.take(frames(phi, kind.group), tokens, axis=0)


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
    mean = matvec(transpose(place.rotation), q.mean)
    return q._replace(mean=turn(mean, -place.positions, place.rates, kind))


def from_common(q: IrrepGaussian, place: Frames, kind: Irreps) -> IrrepGaussian:
    """Beliefs in their own frames, ``g q``: the inverse of :func:`to_common`.

    Args:
        q: means ``[b, n, h, c]`` in the common frame.
        place: the frames.
        kind: the irreps of a head.
    """
    mean = turn(q.mean, place.positions, place.rates, kind)
    return q._replace(mean=matvec(place.rotation, mean))


def sinusoids(positions: Array, dim: int) -> Array:
    """Sines and cosines of a position at geometrically spaced rates, ``[..., dim]``.

    Source: Vaswani et al., Attention is all you need (2017), section 3.5.

    >>> sinusoids(jnp.asarray([0]), 4).tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    """
    rates = 10_000.0 ** (-np.arange(-(-dim // 2)) * 2.0 / dim)
    angle = positions[..., None].astype(jnp.float32) * jnp.asarray(rates, jnp.float32)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)[..., :dim]
