"""Structured pruning of any model of the table: a smaller model of the same family, whose weights
are some of the larger one's.

    found = jax.jit(model.activations)(params, tokens)          # of real tokens [b, n]
    params, config = pruned(name, config, params, found, {"experts": 2, "dim": 96})
    model = table.build(name, config, vocab_size, length)
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vfejax.compression.compensation import compensated, inputs
from vfejax.compression.prune import Part, choose, shrink, written
from vfejax.models.blocks import OptionError
from vfejax.models.table import MODELS, entry_of
from vfejax.types import Array, PyTree

__all__ = ["importance", "pruned", "structure"]


def structure(name: str, config: Any) -> dict[str, Part]:
    """What can be taken out of a model, by option.

    Args:
        name: one of ``MODELS``.
        config: its options.

    Raises:
        KeyError: for a name that is not in the table.
        ValueError: for a model of which nothing can, and for options of another one.

    >>> sorted(structure("transformer", MODELS["transformer"].tiny))
    ['dim', 'heads', 'hidden', 'layers']
    """
    found = entry_of(name, config).structure
    if found is None:
        able = ", ".join(other for other, entry in MODELS.items() if entry.structure is not None)
        raise ValueError(
            f"model must be one of {able} to be pruned, got {name}; distil into a new model "
            "with smaller options instead"
        )
    return found(config)


def importance(
    name: str,
    config: Any,
    params: PyTree,
    activations: Mapping[str, Array],
    *,
    experts: str = "contribution",
) -> dict[str, Array]:
    """Scores of all units that can be taken out; the larger, the more they are worth.

    Heads and hidden units: root mean square of what the next kernel writes of them. Channels of the
    stream: their share of the squares that the norms read. Layers: how far they turn the stream.

    Args:
        name: one of ``MODELS``.
        config: its options.
        params: its weights.
        activations: ``model.activations(params, tokens)``.
        experts: score of experts: ``activation``, ``contribution`` or ``frequency``
            (:class:`vfejax.compression.experts.ExpertStatistics`).

    Returns:
        By option, ``[units]`` where all layers keep the same, else ``[layers, ..., units]``.

    Raises:
        ValueError: for a model of which nothing can be taken out, for an unknown score, and for
            activations of another model.
    """
    scores = ("activation", "contribution", "frequency")
    if experts not in scores:
        raise ValueError(f"experts must be one of {', '.join(scores)}, got {experts!r}")
    parts = structure(name, config)
    if "experts" in parts:
        (measured,) = parts["experts"].scored
        measured = measured.removesuffix("contribution") + experts
        parts["experts"] = parts["experts"]._replace(scored=(measured,))
    _check_activations(parts, activations)
    return {option: _scores(part, params, activations) for option, part in parts.items()}


def _check_activations(parts: Mapping[str, Part], activations: Mapping[str, Array]) -> None:
    read: set[str] = set()
    for part in parts.values():
        read.update(part.scored if part.reader is None else (part.reader.leaf,))
    missing = sorted(read - activations.keys())
    if missing:
        raise ValueError(
            "activations must be model.activations(params, tokens) of the model of these options, "
            f"which has {missing[0]!r}, got one that has not"
        )


def _scores(part: Part, params: PyTree, activations: Mapping[str, Array]) -> Array:
    if part.reader is not None:
        kernel = params
        for key in part.reader.leaf.split("/"):
            kernel = kernel[key]
        return written(kernel, activations[part.reader.leaf], part.reader, part.number)
    found = [activations[leaf] for leaf in part.scored]
    if not part.shared:
        return found[0]
    total = jnp.zeros(part.number, found[0].dtype)
    for statistic in found:
        sums = jnp.sum(statistic, axis=-1, keepdims=True)
        shares = statistic / jnp.where(sums <= 0, jnp.ones((), sums.dtype), sums)
        total = total + jnp.sum(shares.reshape(-1, part.number), axis=0)
    return total


def pruned(
    name: str,
    config: Any,
    params: PyTree,
    activations: Mapping[str, Array],
    sizes: Mapping[str, int],
    *,
    experts: str = "contribution",
    ridge: float | None = 1e-3,
) -> tuple[PyTree, Any]:
    """Weights and options of a smaller model, that has the most important units of a larger one.

    Where the width is that of the heads, ``dim`` and ``heads`` shrink together, and one of them is
    enough. Kernels make up for the inputs that they lose
    (:func:`vfejax.compression.compensation.compensated`), and experts that stay are scaled to what
    they said among all (:func:`vfejax.compression.experts.kept_scale`).

    Args:
        name: one of ``MODELS``.
        config: its options.
        params: its weights.
        activations: ``model.activations(params, tokens)`` of real tokens, a few thousand of them.
        sizes: new values of the options that shrink.
        experts: score of experts, as :func:`importance` takes it.
        ridge: of the regression by which kernels make up for lost inputs; None leaves them as they
            are.

    Returns:
        The weights, as ``table.build`` of that name and of the options asks for, and the options.

    Raises:
        ValueError: for options that cannot shrink so, naming option, value and what fits.

    >>> import jax
    >>> from vfejax.models import table
    >>> config = MODELS["transformer"].tiny
    >>> model = table.build("transformer", config, vocab_size=11, length=8)
    >>> params = jax.jit(model.init)(jax.random.key(0))
    >>> found = jax.jit(model.activations)(params, jnp.zeros((1, 8), jnp.int32))
    >>> params, config = pruned("transformer", config, params, found, {"dim": 8, "hidden": 20})
    >>> config.dim, config.heads, params["blocks"]["block"]["qkv"]["kernel"].shape
    (8, 2, (2, 8, 24))
    """
    parts = structure(name, config)
    wanted = _wanted(parts, sizes)
    scores = importance(name, config, params, activations, experts=experts)
    keep: dict[str, Array] = {}
    options: dict[str, Any] = {}
    for option, size in wanted.items():
        part = parts[option]
        kept = size // part.multiple
        options |= {option: size} | part.options(kept)
        if kept == part.number:
            continue
        keep[option] = choose(scores[option], kept)
        if part.correct is not None:
            params = part.correct(params, activations, keep[option])
        if ridge is not None:
            params = _compensated(params, part, activations, keep[option], ridge)
    return shrink(params, parts, keep), dataclasses.replace(config, **options)


def _compensated(
    params: PyTree, part: Part, activations: Mapping[str, Array], units: Array, ridge: float
) -> PyTree:
    """The weights, where every kernel that reads the units makes up for those that go."""
    readers = {cut.leaf: cut for cut in part.cuts if cut.axis == -2 and cut.leaf in activations}

    def change(path: tuple, leaf: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name not in readers:
            return leaf
        kept = inputs(readers[name], part.number, units)
        return compensated(leaf, activations[name], kept, ridge)

    return jax.tree_util.tree_map_with_path(change, params)


def _wanted(parts: Mapping[str, Part], sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes, with heads for a width and a width for heads."""
    wanted = dict(sizes)
    heads = parts.get("heads")
    if heads is not None and heads.channels and {"dim", "heads"} & wanted.keys():
        channels = heads.channels // heads.multiple
        width = wanted.setdefault("dim", wanted.get("heads", 0) * channels)
        number = wanted.setdefault("heads", width // channels)
        if width != number * channels:
            needed = f"{channels} (the width of a head) times the heads {number}"
            raise OptionError("dim", width, needed)
    for option, size in wanted.items():
        if option not in parts:
            raise ValueError(
                f"sizes must name options among {', '.join(parts)}, got {option}; for a smaller "
                f"{option}, distil into a new model"
            )
        part = parts[option]
        if not part.multiple <= size <= part.number * part.multiple or size % part.multiple:
            needed = f"between {part.multiple} and {part.number * part.multiple}"
            if part.multiple > 1:
                needed = f"a multiple of {part.multiple} {needed}"
            raise OptionError(option, size, needed)
    return wanted
