"""Layers of a student beside those of its teacher: which is compared with which, and how far apart
they are.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.numerics import at_least_float32
from vfejax.types import Array

__all__ = ["MatchSums", "layer_pairs", "match_sums", "projections", "relative_error"]


class MatchSums(NamedTuple):
    """Sums over tokens and channels for each pair of layers, ``[pairs]``: of the squared difference
    between student and teacher, and of the teacher's squares.
    """

    error: Array
    square: Array


def layer_pairs(student: int, teacher: int) -> tuple[tuple[int, int], ...]:
    """Which layer of a student is compared with which of its teacher: as many pairs as the
    shallower of them has layers, evenly spaced, the last with the last.

    Args:
        student: its number of layers, at least 1.
        teacher: its number of layers, at least 1.

    Returns:
        ``(student's, teacher's)``, counted from 0.

    >>> layer_pairs(2, 6), layer_pairs(3, 2)
    (((0, 2), (1, 5)), ((0, 0), (2, 1)))
    """
    pairs = min(student, teacher)
    return tuple(
        ((i + 1) * student // pairs - 1, (i + 1) * teacher // pairs - 1) for i in range(pairs)
    )


def match_sums(
    student: Array, teacher: Array, counts: Array, projection: Array | None = None
) -> MatchSums:
    """How far a student's layers are from those of its teacher: sums of ``|P s - t|^2`` and of
    ``|t|^2`` over the tokens that count.

    Args:
        student: ``[layers, b, n, d]``.
        teacher: ``[layers', b, n, d']``.
        counts: booleans ``[b, n]``.
        projection: P of each pair, ``[pairs, d, d']``; None for the identity.

    Returns:
        Two arrays ``[pairs]``, for the pairs of :func:`layer_pairs`; in float32 at least, or in
        the precision of the student.

    >>> counts = jnp.ones((1, 2), bool)
    >>> sums = match_sums(jnp.ones((1, 1, 2, 3)), 2 * jnp.ones((2, 1, 2, 3)), counts)
    >>> (sums.error / sums.square).tolist()
    [0.25]
    """
    real = at_least_float32(student.dtype)
    pairs = layer_pairs(len(student), len(teacher))
    own = jnp.stack([student[i] for i, _ in pairs]).astype(real)
    aim = jnp.stack([teacher[i] for _, i in pairs]).astype(real)
    if projection is not None:
        own = jnp.einsum("lbnd,lde->lbne", own, projection.astype(real))

    def total(x: Array) -> Array:
        counted = jnp.where(counts[None, :, :, None], x, jnp.zeros((), real))
        return jnp.sum(jnp.square(counted), axis=(1, 2, 3))

    return MatchSums(total(own - aim), total(aim))


def relative_error(sums: MatchSums) -> Array:
    """``sum |P s - t|^2 / sum |t|^2``, mean over the pairs of layers; 0 where nothing counts.

    >>> relative_error(MatchSums(jnp.asarray([1.0, 0.0]), jnp.asarray([4.0, 0.0]))).item()
    0.125
    """
    square = jnp.where(sums.square == 0, jnp.ones((), sums.square.dtype), sums.square)
    return jnp.mean(sums.error / square)


def projections(
    layers: Mapping[str, tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]], key: Array
) -> dict[str, Array]:
    """First maps from the channels of a student's layers to those of its teacher's, where their
    numbers differ: normal numbers of variance ``1 / d``, which keep lengths on average.

    Args:
        layers: by name, shape and dtype of the student's layers ``[layers, b, n, d]`` and of the
            teacher's.
        key: where the numbers come from.

    Returns:
        By name, ``[pairs, d, d']``; in float32 at least, or in the precision of the student.

    >>> student, teacher = jnp.zeros((2, 1, 1, 4)), jnp.zeros((3, 1, 1, 8))
    >>> learned = projections(
    ...     {"hidden": (student, teacher), "resolvent": (student, student)}, jax.random.key(0)
    ... )
    >>> {name: x.shape for name, x in learned.items()}
    {'hidden': (2, 4, 8)}
    """
    found = {}
    for index, (name, (student, teacher)) in enumerate(layers.items()):
        if student.shape[-1] == teacher.shape[-1]:
            continue
        width, real = student.shape[-1], at_least_float32(student.dtype)
        shape = (min(student.shape[0], teacher.shape[0]), width, teacher.shape[-1])
        normal = jax.random.normal(jax.random.fold_in(key, index), shape, real)
        found[name] = normal / width**0.5
    return found
