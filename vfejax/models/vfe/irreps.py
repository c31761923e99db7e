"""How the channels of a head are made of irreps, and how positions turn them.

A head has ``copies`` copies of one direct sum of irreps with K components, and arrays of channels
are ``[..., heads, K, copies]``. In every irrep the components come in pairs that one commuting
direction of the algebra turns, (0, 1), (2, 3), ..., and an odd one out stands last:

- so(3), spin l: ``J_z`` turns the pairs by l, l - 1, ..., 1 times the angle. A copy has one angle
  per token.
- so(n), vectors: the direction is ``sum_k w_k J_(2k, 2k+1)``. Each plane of each copy has an angle
  per token.

Angles per token are spaced geometrically, as the frequencies of rotary positions are, from 1 down
to 1 / base radians; heads stand at even intervals between two of them.

Source: Su et al., RoFormer (2021) for the frequencies: a head of vectors of so(2) without frames
has their rotations.
"""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vfejax.geometry import irreps
from vfejax.geometry.groups import Group
from vfejax.models.blocks import OptionError
from vfejax.types import Array

__all__ = ["Layout", "Phases", "blocks", "num_copies", "over_irreps", "phases", "so", "so3"]
__all__ += ["turn_back", "turn_matrices", "widen"]


class Layout(NamedTuple):
    """Channels of all heads.

    Attributes:
        group: what frames turn under, acting on the K components of one copy.
        sizes: components of each irrep of a copy; K is their sum.
        heads: number of heads.
        copies: copies per head.
        rates: angle per token by which positions turn each component with its partner, radians,
            ``[heads, K, copies]``; 0 for a component without one.
    """

    group: Group
    sizes: tuple[int, ...]
    heads: int
    copies: int
    rates: np.ndarray

    @property
    def components(self) -> int:
        """K, components of one copy."""
        return sum(self.sizes)

    @property
    def channels(self) -> int:
        """Channels of one head."""
        return self.components * self.copies


class Phases(NamedTuple):
    """Cosine and sine of the angle that a position turns each component by, ``[b | 1, n, heads, K,
    copies]``.
    """

    cosine: Array
    sine: Array


def num_copies(dim: int, heads: int, components: int) -> int:
    """Copies of each head in a stream of width ``dim``.

    Args:
        dim: width of the residual stream.
        heads: number of heads.
        components: K, components of one copy.

    Raises:
        OptionError: for a width that is no multiple of ``heads K``, naming those next to it.

    >>> num_copies(128, heads=4, components=4)
    8
    """
    unit = heads * components
    if dim % unit or dim < unit:
        below = dim // unit * unit
        near = " or ".join(str(width) for width in (below, below + unit) if width)
        raise OptionError(
            "dim",
            dim,
            f"a multiple of {heads} heads x {components} components of the irreps, such as {near}",
        )
    return dim // unit


def _turning(copies: int, share: float) -> int:
    """How many copies positions turn, at least one."""
    return max(1, round(share * copies))


def so3(
    spins: tuple[int, ...], heads: int, copies: int, base: float = 10_000.0, share: float = 1.0
) -> Layout:
    """Heads of so(3) irreps.

    Args:
        spins: spins l >= 0 of one copy.
        heads: number of heads.
        copies: copies per head.
        base: of the angles per token.
        share: of the copies that positions turn.

    >>> layout = so3((0, 1), heads=2, copies=3)
    >>> layout.sizes, layout.rates[0, :, 0].tolist()
    ((1, 3), [0.0, 1.0, 1.0, 0.0])
    """
    turning = _turning(copies, share)
    steps = np.arange(copies)[None] + np.arange(heads)[:, None] / heads
    angles = base ** (-steps / turning) * (np.arange(copies) < turning)
    turns = [m for spin in spins for m in (*np.repeat(np.arange(spin, 0, -1), 2), 0)]
    rates = np.asarray(turns, np.float64)[None, :, None] * angles[:, None]
    sizes = tuple(2 * spin + 1 for spin in spins)
    return Layout(irreps.so3(spins), sizes, heads, copies, rates)


def so(n: int, heads: int, copies: int, base: float = 10_000.0, share: float = 1.0) -> Layout:
    """Heads of vectors of so(n).

    Args:
        n: components of a vector, at least 2.
        heads: number of heads.
        copies: vectors per head.
        base: of the angles per token.
        share: of the copies that positions turn.

    >>> so(5, heads=1, copies=1, base=100.0).rates[0, :, 0].tolist()
    [1.0, 1.0, 0.1, 0.1, 0.0]
    """
    planes, turning = n // 2, _turning(copies, share)
    order = np.arange(planes)[None, :, None] * turning + np.arange(copies)
    steps = order + np.arange(heads)[:, None, None] / heads
    angles = base ** (-steps / (planes * turning)) * (np.arange(copies) < turning)
    angles = np.repeat(angles, 2, axis=1)
    rates = np.concatenate([angles, np.zeros((heads, n % 2, copies))], axis=1)
    return Layout(irreps.so(n), (n,), heads, copies, rates)


def blocks(sizes: tuple[int, ...]) -> list[slice]:
    """The components of each irrep.

    >>> blocks((1, 3))
    [slice(0, 1, None), slice(1, 4, None)]
    """
    ends = list(itertools.accumulate(sizes))
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def over_irreps(x: Array, sizes: tuple[int, ...]) -> Array:
    """Sums over the components of each irrep, ``[..., K, copies] -> [..., irreps, copies]``.

    >>> over_irreps(jnp.ones((4, 2)), (1, 3)).tolist()
    [[1.0, 1.0], [3.0, 3.0]]
    """
    return jnp.stack([jnp.sum(x[..., block, :], axis=-2) for block in blocks(sizes)], axis=-2)


def widen(x: Array, sizes: tuple[int, ...]) -> Array:
    """Each irrep's number for all its components, ``[..., irreps, copies] -> [..., K, copies]``.

    >>> widen(jnp.array([[1.0], [2.0]]), (1, 3)).ravel().tolist()
    [1.0, 2.0, 2.0, 2.0]
    """
    parts = [
        jnp.broadcast_to(x[..., i : i + 1, :], (*x.shape[:-2], size, x.shape[-1]))
        for i, size in enumerate(sizes)
    ]
    return jnp.concatenate(parts, axis=-2)


def phases(layout: Layout, positions: Array, dtype: jnp.dtype) -> Phases:
    """Angles of positions.

    Args:
        layout: with the angles per token.
        positions: integers ``[b | 1, n]``.
        dtype: of the result, at least float32.

    >>> phases(so3((1,), heads=1, copies=1), jnp.asarray([[0, 2]]), jnp.float32).sine.shape
    (1, 2, 1, 3, 1)
    """
    angles = positions.astype(dtype)[..., None, None, None] * jnp.asarray(
        layout.rates[None, None], dtype
    )
    return Phases(jnp.cos(angles), jnp.sin(angles))


def turn_back(x: Array, layout: Layout, turn: Phases | None) -> Array:
    """``R(position)^-1 x``.

    Args:
        x: channels, ``[b, n, heads, K, copies]``.
        layout: with the irreps.
        turn: how far positions turn; None for not at all.

    >>> layout = so3((1,), heads=1, copies=1)
    >>> x = jnp.array([0.0, 1.0, 5.0]).reshape(1, 1, 1, 3, 1)  # y goes to sin x + cos y
    >>> turned = turn_back(x, layout, phases(layout, jnp.asarray([[1]]), jnp.float32))
    >>> turned.ravel().round(3).tolist()
    [0.8410000205039978, 0.5400000214576721, 5.0]
    """
    if turn is None:
        return x
    parts = []
    for block in blocks(layout.sizes):
        pairs = (block.stop - block.start) // 2
        part = x[..., block, :]
        paired = part[..., : 2 * pairs, :].reshape(*x.shape[:-2], pairs, 2, x.shape[-1])
        swapped = jnp.stack([paired[..., 1, :], -paired[..., 0, :]], axis=-2)
        parts.append(swapped.reshape(*x.shape[:-2], 2 * pairs, x.shape[-1]))
        parts.append(jnp.zeros_like(part[..., 2 * pairs :, :]))
    return turn.cosine * x + turn.sine * jnp.concatenate(parts, axis=-2)


def turn_matrices(layout: Layout, places: Array, dtype: jnp.dtype) -> Array:
    """``R(place)`` of one place for each head.

    Args:
        layout: with C channels per head.
        places: integers ``[heads]``.
        dtype: of the result.

    Returns:
        ``[heads, C, C]``.

    >>> layout = so3((1,), heads=1, copies=1)
    >>> turn_matrices(layout, jnp.asarray([1]), jnp.float32)[0, :2, :2].round(2).tolist()
    [[0.5399999618530273, -0.8399999737739563], [0.8399999737739563, 0.5399999618530273]]
    """
    heads, channels = layout.heads, layout.channels
    own = phases(layout, -places[:, None].astype(jnp.int32), dtype)  # [heads, 1, heads, K, copies]
    each = jnp.arange(heads)
    turn = Phases(*(x[each, 0, each][None] for x in own))
    columns = jnp.broadcast_to(
        jnp.eye(channels, dtype=dtype)[:, None], (channels, heads, channels)
    ).reshape(channels, heads, layout.components, layout.copies)
    turned = turn_back(columns, layout, turn).reshape(channels, heads, channels)
    return jnp.transpose(turned, (1, 2, 0))
