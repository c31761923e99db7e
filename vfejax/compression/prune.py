"""Structured pruning: whole units of a model (experts, hidden units, heads, channels, layers) are
taken out of its weights, whose shapes shrink.

A model says where its units are: its *structure* is a :class:`Part` for each option that can
shrink, and a part is a list of :class:`Cut`, axes of leaves that are made up of units. The axis of
a cut is read as ``[copies, units, size]``: queries, keys and values in one kernel are three copies
of the heads, of ``size`` channels each.
"""

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.numerics import matmul, safe_sqrt
from vfejax.types import Array, PyTree

__all__ = ["Cut", "Part", "Scaling", "choose", "shrink", "written"]


class Cut(NamedTuple):
    """An axis of a leaf that is made up of units.

    Attributes:
        leaf: name of the leaf, its path with "/"; ``*`` stands for anything, so that ``blocks/*``
            are all leaves of the blocks.
        axis: the axis; negative but for the axis of the layers.
        copies: how often the units follow one another along the axis.
        size: entries of one unit in one copy.
    """

    leaf: str
    axis: int
    copies: int = 1
    size: int = 1


class Scaling(NamedTuple):
    """A leaf that is multiplied by ``(number / kept)^power``, so that a sum over fewer units means
    the same.

    Attributes:
        leaf: its name.
        power: the exponent.
        part: which of ``parts`` equal pieces of the last axis is multiplied.
        parts: number of pieces.
    """

    leaf: str
    power: float
    part: int = 0
    parts: int = 1


class Part(NamedTuple):
    """The units of one option.

    Attributes:
        number: how many there are.
        cuts: where they live. Every leaf exists.
        reader: the kernel that reads what the units put out, cut along its axis of inputs; by what
            it writes of each unit they are scored. None where ``scored`` says by what.
        scored: names of statistics of activations, by whose sum the units are scored, each brought
            to sum 1; where layers may choose apart, of one that has the scores of each.
        shared: whether all layers keep the same units.
        scalings: what has to grow or shrink with their number.
        alone: leaves that a model with one unit does not have.
        multiple: the option counts so many for each unit.
        channels: width of the residual stream for each unit; 0 where it does not depend on them.
        options: further options of a model with so many units.
        correct: ``(params, activations, units) -> params``: what is changed in the weights, before
            they are cut, once the units are chosen; from statistics of activations.
    """

    number: int
    cuts: tuple[Cut, ...]
    reader: Cut | None = None
    scored: tuple[str, ...] = ()
    shared: bool = False
    scalings: tuple[Scaling, ...] = ()
    alone: tuple[str, ...] = ()
    multiple: int = 1
    channels: int = 0
    options: Callable[[int], dict] = lambda kept: {}
    correct: Callable[[PyTree, Mapping[str, Array], Array], PyTree] | None = None


def choose(scores: Array, count: int) -> Array:
    """Indices of the ``count`` largest scores, in their order: the units that stay. NaN counts as
    the largest, whatever its sign bit.

    Args:
        scores: ``[..., units]``.
        count: how many stay.

    Returns:
        Integers ``[..., count]``, rising.

    Raises:
        ValueError: unless ``1 <= count <= units``.

    >>> choose(jnp.asarray([0.3, 0.1, 0.9]), 2).tolist()
    [0, 2]
    """
    if not 1 <= count <= scores.shape[-1]:
        raise ValueError(f"count must lie between 1 and {scores.shape[-1]} units, got {count}")
    scores = jnp.where(jnp.isnan(scores), jnp.asarray(jnp.inf, scores.dtype), scores)
    return jnp.sort(jax.lax.top_k(scores, count)[1], axis=-1)


def written(kernel: Array, moments: Array, reader: Cut, count: int) -> Array:
    """Root mean square of what a kernel writes of each unit that it reads,

        s_u = (E |x_u W_u|^2)^(1/2) = (tr W_u^T E[x_u^T x_u] W_u)^(1/2),

    where x_u are the inputs that belong to unit u, and W_u the rows that read them.

    Args:
        kernel: W, ``[..., n, m]``.
        moments: second moments ``E[x^T x]`` of what it reads, ``[..., n, n]``.
        reader: how its inputs are made up of units.
        count: number of units.

    Returns:
        ``[..., count]``, in units of the output.

    Raises:
        ValueError: for inputs that are not made up so.

    >>> kernel, moments = jnp.asarray([[3.0], [1.0], [0.0]]), jnp.eye(3)
    >>> written(kernel, moments, Cut("kernel", -2), 3).tolist()
    [3.0, 1.0, 0.0]
    """
    width = reader.copies * count * reader.size
    if kernel.shape[-2] != width:
        raise ValueError(
            f"kernel must have {width} inputs ({reader.copies} x {count} x {reader.size}), got "
            f"shape {kernel.shape}"
        )
    if moments.shape != (*kernel.shape[:-1], width):
        raise ValueError(
            f"moments must be {(*kernel.shape[:-1], width)} to fit the kernel, got {moments.shape}"
        )
    places = np.arange(width).reshape(reader.copies, count, reader.size)
    order = np.swapaxes(places, 0, 1).reshape(count, -1)
    rows = kernel[..., order, :]
    blocks = moments[..., order[:, :, None], order[:, None, :]]
    squares = jnp.sum(rows * matmul(blocks, rows), axis=(-2, -1))
    # Rounding may leave a sum of squares that is 0 just below it.
    return safe_sqrt(jnp.where(squares < 0, jnp.zeros((), squares.dtype), squares))


def shrink(params: PyTree, structure: Mapping[str, Part], keep: Mapping[str, Array]) -> PyTree:
    """The weights of the units that stay.

    Args:
        params: the weights, nested dicts of arrays.
        structure: where units live, by option.
        keep: by option the indices of the units that stay, ``[kept]``, or ``[layers, kept]`` where
            layers may keep others (more leading axes as the leaves have them).

    Returns:
        Weights of the model whose options are the numbers of units that stay.

    Raises:
        ValueError: for an option that the structure does not have, and for indices or leaves that
            do not fit it.

    >>> params = {"in": {"kernel": jnp.ones((2, 3))}, "out": {"kernel": jnp.ones((3, 2))}}
    >>> hidden = Part(3, (Cut("in/kernel", -1), Cut("out/kernel", -2)))
    >>> small = shrink(params, {"hidden": hidden}, {"hidden": jnp.asarray([0, 2])})
    >>> small["in"]["kernel"].shape, small["out"]["kernel"].shape
    ((2, 2), (2, 2))
    """
    for option, units in keep.items():
        if option not in structure:
            raise ValueError(f"keep must name options among {', '.join(structure)}, got {option}")
        _check_units(option, units, structure[option].number)
    # Indices that differ from layer to layer count all layers, so layers go last.
    for option in sorted(keep, key=lambda name: -jnp.ndim(keep[name])):
        params = _without_units(params, structure[option], jnp.asarray(keep[option]))
    return params


def _check_units(option: str, units: Array, number: int) -> None:
    """Refuse what is no index of a unit, where values are known."""
    kind = jnp.asarray(units).dtype
    if not jnp.issubdtype(kind, jnp.integer):
        raise ValueError(f"keep must be integers for {option}, got {kind}")
    if isinstance(units, jax.core.Tracer):
        return
    wrong = [int(unit) for unit in np.ravel(units) if not 0 <= unit < number]
    if wrong:
        raise ValueError(f"keep must be from 0 to {number - 1} for {option}, got {wrong[0]}")


def _without_units(params: PyTree, part: Part, units: Array) -> PyTree:
    kept = units.shape[-1]

    def cut(path: tuple, leaf: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for one in part.cuts:
            if fnmatchcase(name, one.leaf):
                leaf = _taken(name, leaf, one, part.number, units)
        for scaling in part.scalings:
            if name == scaling.leaf:
                leaf = _scaled(leaf, scaling, part.number / kept)
        return leaf

    params = jax.tree_util.tree_map_with_path(cut, params)
    return _without(params, {tuple(name.split("/")) for name in part.alone} if kept == 1 else set())


def _taken(name: str, leaf: Array, cut: Cut, count: int, units: Array) -> Array:
    layers = units.ndim - 1
    length = leaf.shape[cut.axis] if -leaf.ndim <= cut.axis < leaf.ndim else None
    if length != cut.copies * count * cut.size or leaf.shape[:layers] != units.shape[:-1]:
        raise ValueError(
            f"params must have {cut.copies} x {count} x {cut.size} entries along axis {cut.axis} "
            f"of {name}, and its first axes be {units.shape[:-1]}; got shape {leaf.shape}"
        )

    def take(x: Array, units: Array) -> Array:
        axis = cut.axis % x.ndim
        before, after = x.shape[:axis], x.shape[axis + 1 :]
        parts = x.reshape(*before, cut.copies, count, cut.size, *after)
        return jnp.take(parts, units, axis=axis + 1).reshape(*before, -1, *after)

    for _ in range(layers):
        take = jax.vmap(take)
    return take(leaf, units)


def _scaled(leaf: Array, scaling: Scaling, ratio: float) -> Array:
    pieces = jnp.split(leaf, scaling.parts, axis=-1)
    factor = jnp.asarray(ratio**scaling.power, leaf.dtype)
    pieces[scaling.part] = pieces[scaling.part] * factor
    return jnp.concatenate(pieces, axis=-1)


def _without(params: PyTree, paths: set[tuple[str, ...]]) -> PyTree:
    """Nested dicts without the leaves at these paths, and without dicts that they leave empty."""
    if not paths or not isinstance(params, dict):
        return params
    kept = {}
    for name, branch in params.items():
        below = {path[1:] for path in paths if path[0] == name}
        if () not in below:
            branch = _without(branch, below)
            if not (isinstance(branch, dict) and below and not branch):
                kept[name] = branch
    return kept
