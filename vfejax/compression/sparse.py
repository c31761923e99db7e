"""Unstructured pruning: single weights become zero, and a bitmap says which.

In every column of a kernel, the weights of one output, those with the largest scores stay:

    magnitude        |W_ij|
    activation-aware |W_ij| (E x_i^2)^(1/2)

Source: Sun, Liu, Bair, Kolter, A simple and effective pruning approach for large language models
(Wanda, 2023), for the second.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.compression.packing import pack, unpack
from vfejax.types import Array, PyTree

__all__ = [
    "Sparse",
    "TwoOfFour",
    "activation_aware",
    "from_sparse",
    "from_two_of_four",
    "keep_largest",
    "magnitude",
    "masked",
    "to_sparse",
    "to_two_of_four",
    "two_of_four",
]


class Sparse(NamedTuple):
    """Weights that stay, row by row, and a bit for every weight: ``n / 8`` bytes beside theirs.

    Attributes:
        bitmap: 1 where a weight stays, packed, ``[ceil(n / 8)]``.
        values: those that stay, ``[kept]``.
    """

    bitmap: Array | np.ndarray
    values: Array | np.ndarray


class TwoOfFour(NamedTuple):
    """Two of every four weights of a column, and two bits for the place of each.

    Attributes:
        places: 0 to 3, packed, ``[ceil(n / 8)]``.
        values: ``[..., n / 2, m]``.
    """

    places: Array | np.ndarray
    values: Array


def magnitude(kernel: Array) -> Array:
    """Scores ``|W|``.

    >>> magnitude(jnp.asarray([[-2.0]])).tolist()
    [[2.0]]
    """
    return jnp.abs(kernel)


def activation_aware(kernel: Array, moments: Array) -> Array:
    """Scores ``|W_ij| (E x_i^2)^(1/2)``: by how much the output moves without a weight.

    Args:
        kernel: ``[..., n, m]``.
        moments: second moments of what it reads, ``[..., n, n]``, of which the diagonal counts.

    >>> activation_aware(jnp.ones((2, 1)), jnp.diag(jnp.asarray([4.0, 1.0]))).tolist()
    [[2.0], [1.0]]
    """
    squares = jnp.diagonal(moments, axis1=-2, axis2=-1)
    return jnp.abs(kernel) * jnp.sqrt(squares)[..., None].astype(kernel.dtype)


def keep_largest(scores: Array, sparsity: float) -> Array:
    """True for the largest scores of each column; NaN counts as the largest, so that it stays.

    Args:
        scores: ``[..., n, m]``.
        sparsity: share of every column that goes, from 0 to 1; ``round(n sparsity)`` weights.

    Returns:
        Booleans ``[..., n, m]``.

    Raises:
        ValueError: for a share beyond.

    >>> keep_largest(jnp.asarray([[1.0, 5.0], [2.0, 4.0]]), 0.5).tolist()
    [[False, True], [True, False]]
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must lie between 0 and 1, got {sparsity}")
    size = scores.shape[-2]
    gone = round(size * sparsity)
    if gone in (0, size):
        return jnp.full(scores.shape, gone == 0)
    # One sort of the scores; ranks would take two, of scores with their places.
    least = jnp.sort(scores, axis=-2)[..., gone : gone + 1, :]
    above = (scores > least) | (jnp.isnan(scores) & ~jnp.isnan(least))
    equal = (scores == least) | (jnp.isnan(scores) & jnp.isnan(least))
    room = size - gone - jnp.sum(above, axis=-2, keepdims=True, dtype=jnp.int32)
    # Of equal scores the last ones stay.
    here_and_after = jax.lax.cumsum(equal.astype(jnp.int32), axis=scores.ndim - 2, reverse=True)
    return above | (equal & (here_and_after <= room))


def two_of_four(scores: Array) -> Array:
    """True for the two largest scores of every four that follow one another in a column.

    Args:
        scores: ``[..., n, m]``, n a multiple of 4.

    Raises:
        ValueError: for another n.

    >>> two_of_four(jnp.asarray([[3.0], [1.0], [2.0], [0.0]]))[:, 0].tolist()
    [True, False, True, False]
    """
    _check_fours(scores)
    fours = scores.reshape(*scores.shape[:-2], -1, 4, scores.shape[-1])
    return (_ranks(fours, -2) >= 2).reshape(scores.shape)


def _ranks(scores: Array, axis: int) -> Array:
    """Place of every score in rising order along an axis; of equal ones, the first is lower."""
    return jnp.argsort(jnp.argsort(scores, axis=axis), axis=axis)


def _check_fours(kernel: Array) -> None:
    if kernel.shape[-2] % 4:
        raise ValueError(f"kernel must have a multiple of 4 inputs, got shape {kernel.shape}")


def masked(params: PyTree, masks: Mapping[str, Array]) -> PyTree:
    """The weights, with zeros where a mask is False.

    Args:
        params: nested dicts of arrays.
        masks: booleans by the name of a leaf, of its shape; other leaves stay.

    Raises:
        ValueError: for a name that no leaf has, and for another shape.

    >>> masked({"a": {"kernel": jnp.ones(2)}}, {"a/kernel": jnp.asarray([True, False])})
    {'a': {'kernel': Array([1., 0.], dtype=float32)}}
    """
    unknown = set(masks)

    def cut(path: tuple, leaf: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name not in masks:
            return leaf
        unknown.discard(name)
        if masks[name].shape != leaf.shape:
            raise ValueError(f"masks must be {leaf.shape} for {name}, got {masks[name].shape}")
        return jnp.where(masks[name], leaf, jnp.zeros((), leaf.dtype))

    found = jax.tree_util.tree_map_with_path(cut, params)
    if unknown:
        raise ValueError(f"masks must be for leaves of params, got {', '.join(sorted(unknown))}")
    return found


def to_sparse(kernel: Array | np.ndarray, mask: Array | np.ndarray) -> Sparse:
    """The weights where the mask is True, and the bitmap. On the host: their number depends on the
    mask.

    >>> found = to_sparse(np.arange(4.0).reshape(2, 2), np.asarray([[0, 1], [0, 1]], bool))
    >>> found.values.tolist(), found.bitmap.tolist()
    ([1.0, 3.0], [10])
    """
    kernel, mask = np.asarray(kernel), np.asarray(mask, bool)
    if mask.shape != kernel.shape:
        raise ValueError(f"mask must have the kernel's shape {kernel.shape}, got {mask.shape}")
    return Sparse(pack(mask.reshape(-1).astype(np.uint8), 1), kernel[mask])


def from_sparse(sparse: Sparse, shape: tuple[int, ...]) -> Array:
    """The kernel of that shape, with zeros where the bitmap has none.

    >>> kernel, mask = np.arange(4.0).reshape(2, 2), np.asarray([[0, 1], [0, 1]], bool)
    >>> from_sparse(to_sparse(kernel, mask), (2, 2)).tolist()
    [[0.0, 1.0], [0.0, 3.0]]
    """
    values = jnp.asarray(sparse.values)
    kept = jnp.asarray(unpack(jnp.asarray(sparse.bitmap), 1, int(np.prod(shape)))).astype(bool)
    values = jnp.concatenate([values, jnp.zeros(1, values.dtype)])  # where none is kept at all
    place = jnp.clip(jnp.cumsum(kept) - 1, 0, values.size - 1)
    return jnp.where(kept, values[place], jnp.zeros((), values.dtype)).reshape(shape)


def to_two_of_four(kernel: Array, mask: Array) -> TwoOfFour:
    """The two weights of every four that a mask of :func:`two_of_four` keeps, and their places.

    Args:
        kernel: ``[..., n, m]``.
        mask: booleans of its shape, True for two of every four along n.

    Raises:
        ValueError: for shapes that do not fit.

    >>> kernel = jnp.asarray([[3.0], [1.0], [2.0], [0.0]])
    >>> found = to_two_of_four(kernel, two_of_four(kernel))
    >>> found.values.tolist(), found.places.tolist()
    ([[3.0], [2.0]], [8])
    """
    _check_fours(kernel)
    if mask.shape != kernel.shape:
        raise ValueError(f"mask must have the kernel's shape {kernel.shape}, got {mask.shape}")
    before, width = kernel.shape[:-2], kernel.shape[-1]
    fours = (*before, -1, 4, width)
    places = jnp.argsort(~mask.reshape(fours), axis=-2, stable=True)[..., :2, :]
    values = jnp.take_along_axis(kernel.reshape(fours), places, axis=-2)
    codes = pack(places.reshape(-1).astype(jnp.uint8), 2)
    return TwoOfFour(codes, values.reshape(*before, -1, width))


def from_two_of_four(packed: TwoOfFour) -> Array:
    """The kernel ``[..., n, m]``, with two zeros in every four.

    >>> kernel = jnp.asarray([[3.0], [0.0], [2.0], [0.0]])
    >>> from_two_of_four(to_two_of_four(kernel, two_of_four(kernel)))[:, 0].tolist()
    [3.0, 0.0, 2.0, 0.0]
    """
    values = packed.values
    before, width = values.shape[:-2], values.shape[-1]
    pairs = (*before, -1, 2, width)
    values = values.reshape(pairs)
    places = unpack(jnp.asarray(packed.places), 2, values.size).reshape(pairs)
    here = jnp.moveaxis(jax.nn.one_hot(places, 4, dtype=bool), -1, -3)
    found = jnp.sum(jnp.where(here, values[..., None, :, :], jnp.zeros((), values.dtype)), axis=-2)
    return found.reshape(*before, -1, width)
