"""Attention on a torus swapped into layers of a Phi model, and the weights that learn then."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from vfejax.models.phi.attention import check_encodings, first_fusion
from vfejax.models.phi.checkpoint import slots, to_params, to_tensors
from vfejax.models.phi.config import Toroidal, segments, with_swapped
from vfejax.models.phi.model import build
from vfejax.numerics import at_least_float32
from vfejax.types import Array, PyTree, SequenceModel

__all__ = ["swap_attention", "trainable"]


def swap_attention(
    model: SequenceModel,
    params: PyTree,
    layers: Iterable[int],
    options: Toroidal | None = None,
    *,
    key: Array | None = None,
    **changes: Any,
) -> tuple[SequenceModel, PyTree]:
    """The model with attention on a torus in some layers, and its weights.

    The projections of a layer stay as they are. With the default options so do the logits: one
    platter, no bias, the rates of the weights. They do so too for any depth of axial attention with
    the low-rank fusion, which is the identity until it is trained.

    The layers swapped get weights of at least single precision, so that they can learn; the others
    keep the bits that they have. Where the options of the ring leave no room for as many tokens as
    the model reads, it reads fewer.

    Args:
        model: as :func:`vfejax.models.phi.load` returned it, or as this function did.
        params: its weights.
        layers: numbers of layers, from 0.
        options: of the attention; the defaults of :class:`vfejax.models.phi.config.Toroidal` if
            None.
        key: random key of the first weights of the fusion; that of seed 0 by default.
        changes: options by name, such as ``depth=2``, over those of ``options``.

    Returns:
        Model and weights.

    Raises:
        ValueError: for a layer that the model does not have, and for options that do not fit,
            naming them; a depth that does not divide the heads names those that do.

    >>> from vfejax.models.phi import config, model as phi
    >>> small = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    >>> model = phi.build(config.from_json({"model_type": "phi", "vocab_size": 11} | small))
    >>> swapped, params = swap_attention(
    ...     model, model.init(jax.random.key(0)), [1], depth=2, fusion="low-rank"
    ... )
    >>> swapped.config.swapped[1].depth, jax.tree.leaves(trainable(swapped, params)).count(True)
    (2, 16)
    """
    config, chosen = model.config, set(layers)
    _check_layers(chosen, config.layers)
    options = dataclasses.replace(Toroidal() if options is None else options, **changes)
    kinds = config.swapped or (None,) * config.layers
    kinds = [options if layer in chosen else kind for layer, kind in enumerate(kinds)]
    swapped = with_swapped(config, kinds)
    check_encodings(swapped)
    tensors = to_tensors(config, params)
    key = jax.random.key(0) if key is None else key
    for layer in chosen:
        own = f"model.layers.{layer}."
        for name in [name for name in tensors if name.startswith(own)]:
            tensors[name] = tensors[name].astype(at_least_float32(tensors[name].dtype))
        fusion = f"{own}self_attn.fusion."  # of an earlier swap, maybe with other options
        tensors = {name: array for name, array in tensors.items() if not name.startswith(fusion)}
        weights = first_fusion(swapped, options, jax.random.fold_in(key, layer))
        tensors |= {f"{fusion}{i}": np.asarray(x) for i, x in enumerate(weights)}
    return build(swapped), to_params(swapped, tensors)


def _check_layers(chosen: set[int], num_layers: int) -> None:
    strange = sorted(layer for layer in chosen if not 0 <= layer < num_layers)
    if strange or not chosen:
        got = ", ".join(map(str, strange)) or "none"
        raise ValueError(f"layers must be numbers from 0 to {num_layers - 1}, got {got}")


def trainable(model: SequenceModel, params: PyTree) -> PyTree:
    """True for every weight of a layer whose attention was swapped, its fusion among them, and
    False for all others: for ``trained`` of :func:`vfejax.training.step.trainer`, and for optax's
    ``partition`` and ``masked``.

    Args:
        model: the model.
        params: its weights.
    """
    swapped = {
        number
        for number, segment in enumerate(segments(model.config))
        if segment.toroidal is not None
    }
    learning = {
        slot.path
        for slot in slots(model.config)
        if slot.path[0] == "segments" and slot.path[1] in swapped
    }
    return jax.tree_util.tree_map_with_path(
        lambda path, _: tuple(entry.key for entry in path) in learning, params
    )
