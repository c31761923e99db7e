"""Weights of a Phi model under the names of a checkpoint, and under those of the module here.

A checkpoint has one array for every matrix of every layer, with the outputs first. Here equal
neighbouring layers are stacked along a leading axis, and matrices have the inputs first. Nothing in
this module touches a file.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.models.phi.attention import first_fusion
from vfejax.models.phi.config import PhiConfig, Segment, segments
from vfejax.numerics import common_dtype
from vfejax.types import Array, PyTree

__all__ = ["Slot", "check_finite", "slots", "to_params", "to_tensors"]

_MATRICES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.dense",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}
_HEAD_NORMS = {"query_norm": "self_attn.q_layernorm", "key_norm": "self_attn.k_layernorm"}
# What older files hold besides the weights: rates that follow from the options.
_DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_MOST_NAMED = 8  # tensors in a message

Path = tuple[str | int, ...]


class Slot(NamedTuple):
    """One array of the parameters.

    Attributes:
        path: keys to it in the nested dict of parameters.
        names: the tensors of a checkpoint that it is made of: one per layer of a stack, or one.
        shape: of each of those tensors.
        is_stacked: whether it has a leading axis of layers.
        is_matrix: whether it is made of their transposes.
    """

    path: Path
    names: tuple[str, ...]
    shape: tuple[int, ...]
    is_stacked: bool = False
    is_matrix: bool = False


def slots(config: PhiConfig) -> list[Slot]:
    """Every array of the parameters of a model with these options."""
    dim, vocab = config.dim, config.vocab_size
    found = [Slot(("embedding", "embedding"), (_EMBEDDING,), (vocab, dim))]
    found += [
        Slot(("norm", leaf), (f"model.final_layernorm.{ending}",), (dim,))
        for leaf, ending in (("scale", "weight"), ("bias", "bias"))
    ]
    found.append(Slot(("head", "bias"), ("lm_head.bias",), (vocab,)))
    if not config.tied:
        found.append(Slot(("head", "kernel"), (_HEAD,), (vocab, dim), is_matrix=True))
    for number, segment in enumerate(segments(config)):
        found += _block(config, segment, ("segments", number, "block"))
    return found


def _block(config: PhiConfig, segment: Segment, path: Path) -> Iterator[Slot]:
    """The arrays of a stack of layers."""
    dim, kv_dim, hidden = config.dim, config.kv_heads * config.head_dim, config.hidden
    outputs = {"key": kv_dim, "value": kv_dim, "mlp_in": hidden}

    def stacked(keys: Path, ending: str, *shape: int, is_matrix: bool = False) -> Slot:
        names = tuple(f"model.layers.{layer}.{ending}" for layer in segment.layers)
        return Slot((*path, *keys), names, shape, True, is_matrix)

    for key, name in _MATRICES.items():
        size, inputs = outputs.get(key, dim), hidden if key == "mlp_out" else dim
        yield stacked((key, "kernel"), f"{name}.weight", size, inputs, is_matrix=True)
        yield stacked((key, "bias"), f"{name}.bias", size)
    norms = {"norm": ("input_layernorm", dim)}
    if config.qk_norm:
        norms |= {key: (name, config.head_dim) for key, name in _HEAD_NORMS.items()}
    for key, (name, width) in norms.items():
        yield stacked((key, "scale"), f"{name}.weight", width)
        yield stacked((key, "bias"), f"{name}.bias", width)
    key = jax.eval_shape(jax.random.key, 0)
    fusion = jax.eval_shape(lambda k: first_fusion(config, segment.toroidal, k), key)
    for number, weights in enumerate(fusion):
        yield stacked(("fusion", number), f"self_attn.fusion.{number}", *weights.shape)


def to_params(config: PhiConfig, tensors: Mapping[str, np.ndarray]) -> PyTree:
    """The parameters that tensors of a checkpoint make, in the precision that they have.

    Args:
        config: the options of the model.
        tensors: by the names of the checkpoint; all that it holds.

    Raises:
        ValueError: naming the tensors that are missing, that the architecture does not have, or
            that have another shape or no floating type.
    """
    table = slots(config)
    _check_tensors(config, {name: slot.shape for slot in table for name in slot.names}, tensors)
    params: dict[Any, Any] = {}
    for slot in table:
        place = params
        for key in slot.path[:-1]:
            place = place.setdefault(key, {})
        place[slot.path[-1]] = _joined(slot, tensors)
    return params


def _check_tensors(
    config: PhiConfig, wanted: Mapping[str, tuple[int, ...]], tensors: Mapping[str, np.ndarray]
) -> None:
    """Refuse tensors that are not those wanted, by name, shape and type."""
    _refuse("lacks", [name for name in wanted if name not in tensors])
    extra = [name for name in tensors if name not in wanted and not _DERIVED.fullmatch(name)]
    if config.tied and _HEAD in extra:  # some files repeat the embedding
        extra.remove(_HEAD)
        # Whoever else reads such a file computes with the head, so leaving it out is no choice.
        is_own = not np.array_equal(tensors[_HEAD], tensors[_EMBEDDING])
        _refuse("ties the head to the embedding, and has another", [_HEAD] if is_own else [])
    _refuse("has what these options have no place for:", extra)
    misshapen = [
        f"{name} {list(tensors[name].shape)} in place of {list(shape)}"
        for name, shape in wanted.items()
        if tensors[name].shape != shape
    ]
    _refuse("has other shapes than its options say:", misshapen)
    _refuse(
        "has tensors that are no floating numbers:",
        [n for n in wanted if not jnp.issubdtype(tensors[n].dtype, jnp.floating)],
    )


def check_finite(tensors: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError naming the tensors with a number that is NaN or infinite: a model with one
    writes nothing but its first token, without a word.

    >>> check_finite({"norm": np.ones(2), "head": np.array([1.0, np.nan])})
    Traceback (most recent call last):
    ValueError: the checkpoint has NaN or infinite numbers in head
    """
    strange = [name for name, array in tensors.items() if not np.all(np.isfinite(array))]
    _refuse("has NaN or infinite numbers in", strange)


def _refuse(what: str, names: Sequence[str]) -> None:
    if names:
        more = len(names) - _MOST_NAMED
        listed = ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
        raise ValueError(f"the checkpoint {what} {listed}")


def _joined(slot: Slot, tensors: Mapping[str, np.ndarray]) -> Array:
    """The array of a slot: its tensors turned over, and stacked in the widest of their types. NumPy
    does it, so that nothing is compiled for it.
    """
    parts = [tensors[name].T if slot.is_matrix else tensors[name] for name in slot.names]
    if not slot.is_stacked:
        return jnp.asarray(parts[0])
    dtype = common_dtype(*parts)
    return jnp.asarray(np.stack([part.astype(dtype) for part in parts]))


def to_tensors(config: PhiConfig, params: PyTree) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint that parameters make; the inverse of :func:`to_params`.

    Args:
        config: the options of the model.
        params: its parameters.

    Raises:
        ValueError: naming the tensor, for parameters that are not those of such a model.
    """
    tensors = {}
    for slot in slots(config):
        array = params
        try:
            for key in slot.path:
                array = array[key]
        except (KeyError, TypeError) as error:
            raise ValueError(f"params lack what makes {', '.join(slot.names)}") from error
        parts = np.asarray(array) if slot.is_stacked else np.asarray(array)[None]
        for name, part in zip(slot.names, parts, strict=True):
            tensors[name] = part.T if slot.is_matrix else part
            if tensors[name].shape != slot.shape:
                raise ValueError(
                    f"params must have {name} of shape {list(slot.shape)}, got "
                    f"{list(tensors[name].shape)}"
                )
    return tensors
