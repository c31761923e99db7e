"""Phi models in directories: ``config.json`` and safetensors files, as PyTorch transformers reads
and writes them.

The only module of ``models`` that touches files: a pretrained model is its directory.
"""

import dataclasses
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp

from vfejax.data.files import atomic_write, one_line, write_errors
from vfejax.data.tensors import read_json, read_tensors, write_tensors
from vfejax.errors import UserError
from vfejax.models.phi.attention import check_encodings
from vfejax.models.phi.checkpoint import check_finite, to_params, to_tensors
from vfejax.models.phi.config import PhiConfig, Swap, from_json, to_json
from vfejax.models.phi.model import build
from vfejax.models.phi.swap import swap_attention
from vfejax.types import PyTree, SequenceModel

__all__ = ["load", "load_swapped", "read_config", "save"]


def read_config(directory: str | os.PathLike, length: int | None = None) -> PhiConfig:
    """The options of the model in a directory.

    Args:
        directory: it holds ``config.json``.
        length: the most tokens that a sequence may have; what the file says by default.

    Raises:
        UserError: naming the file, when it is missing or damaged, when it is of another
            architecture, or when its values do not fit; and for a length out of its limits.
    """
    path = Path(directory) / "config.json"
    try:
        config = from_json(read_json(path))
        check_encodings(config)
    except ValueError as error:
        raise UserError(f"{path}: {one_line(error)}; give a directory of a Phi model") from error
    if length is None:
        return config
    if length < 1 or length > config.length:
        raise UserError(
            f"{path}: the model reads 1 to {config.length} tokens, not {length}; choose another "
            "length"
        )
    return dataclasses.replace(config, length=length)


def load(
    directory: str | os.PathLike,
    length: int | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> tuple[SequenceModel, PyTree]:
    """The model in a directory, and its weights.

    Args:
        directory: it holds ``config.json``, and ``model.safetensors`` or several files with
            ``model.safetensors.index.json``.
        length: the most tokens that a sequence may have, for which decoding keeps room; what the
            configuration says by default.
        dtype: that of the arithmetic: float32, float64 or bfloat16. The weights stay in the
            precision of the file.

    Returns:
        The model and its parameters.

    Raises:
        UserError: naming the file and the reason: a missing, damaged or incomplete file, another
            architecture, and tensors that are missing, misshapen, without a place, or not finite.
    """
    config = read_config(directory, length)
    tensors = read_tensors(directory)
    try:
        params = to_params(config, tensors)
        check_finite(tensors)
    except ValueError as error:
        raise UserError(
            f"{os.fspath(directory)}: {error}; give a directory whose config.json and tensors "
            "belong together"
        ) from error
    return build(dataclasses.replace(config, dtype=jnp.dtype(dtype).name)), params


def load_swapped(
    directory: str | os.PathLike,
    swap: Swap,
    length: int | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> tuple[SequenceModel, PyTree]:
    """The model in a directory with attention on a torus in some layers, and its weights.

    Args:
        directory: as in :func:`load`.
        swap: which layers, and the options of their attention.
        length: as in :func:`load`.
        dtype: as in :func:`load`.

    Returns:
        The model and its parameters.

    Raises:
        UserError: as :func:`load`.
        ValueError: as :func:`vfejax.models.phi.swap.swap_attention`.
    """
    model, params = load(directory, length, dtype)
    options = dataclasses.asdict(swap)
    layers = options.pop("layers") or (model.config.layers - 1,)
    return swap_attention(model, params, layers, **options)


def save(directory: str | os.PathLike, model: SequenceModel, params: PyTree) -> None:
    """Write a model so that :func:`load`, and PyTorch transformers, read it back.

    Every array keeps its precision. transformers computes a layer whose attention was swapped
    as an ordinary one, and reports the tensors of the swapped attention as unused.

    Args:
        directory: made if it is missing; files of a model in it are replaced.
        model: as :func:`load` returned it, or with other attention.
        params: its weights.

    Raises:
        UserError: when a file cannot be written.
        ValueError: naming the tensor, for parameters of another model.
    """
    directory = Path(directory)
    tensors = to_tensors(model.config, params)
    with write_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory / "model.safetensors", tensors, {"format": "pt"})
    text = json.dumps(to_json(model.config), indent=2)
    atomic_write(directory / "config.json", text + "\n")
