"""A compressed model as one safetensors file: weights, vocabulary, and all that is needed to read
them.

The arrays are the parts of the leaves (:mod:`vfejax.compression.storage`), a leaf's name with
``.codes``, ``.scale`` and so on behind it, or the bare name for exact weights. The header holds one
JSON document under ``vfejax``: format and version, the settings of the run as ``config.toml`` has
them, the vocabulary, the form of every leaf that is not exact, what the run was computed from, the
SHA-256 of the weights that the model was made from, and one over document and arrays. Reading
executes nothing.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vfejax.compression import storage
from vfejax.compression.storage import Encoded, Form
from vfejax.data import tensors, tokenizers
from vfejax.data.files import one_line
from vfejax.data.tokenizers import Tokenizer
from vfejax.errors import UserError
from vfejax.numerics import matmul
from vfejax.runs import artefact_forms
from vfejax.types import PyTree

__all__ = [
    "SUFFIX",
    "Content",
    "checksum",
    "decode",
    "encode",
    "is_artefact",
    "num_bytes",
    "read",
    "weights",
    "write",
]

SUFFIX = ".safetensors"
_FORMAT, _VERSION, _KEY = "vfejax compressed model", 1, "vfejax"
_LEFT, _RIGHT = "/left", "/right"
_EXACT = Form()


class Content(NamedTuple):
    """What the file says besides the weights.

    Attributes:
        config: settings of the run, as ``config.toml`` has them: ``model``, its table of options,
            ``length``, ``compute``, and those that name the data.
        vocabulary: the tokenizer.
        forms: by name of a leaf, how it is kept; a leaf without one is exact. A leaf in two factors
            has two names, with ``/left`` and ``/right`` behind its own.
        teacher: SHA-256 of the weights that the model was made from, :func:`checksum`.
        step: number of updates after which these weights were there.
        valid_loss: their validation loss, in nats per token.
        inputs: size and SHA-256 of what the run was computed from, as ``inputs.json`` has them.
        ranks: by name of a leaf in two factors, how many columns the first has.
    """

    config: dict[str, Any]
    vocabulary: Tokenizer
    forms: dict[str, Form]
    teacher: str
    step: int
    valid_loss: float
    inputs: dict[str, Any] | None = None
    ranks: dict[str, int] = {}  # noqa: RUF012 (a NamedTuple's default)


def is_artefact(path: str | os.PathLike) -> bool:
    """Whether a path names such a file, by its ending or because a file is there; no directory."""
    named_so = os.fspath(path).endswith(SUFFIX) and not os.path.isdir(path)
    return named_so or os.path.isfile(path)


def checksum(params: PyTree) -> str:
    """SHA-256 of names, types, shapes and numbers of all leaves, in hexadecimal digits.

    >>> checksum({"kernel": np.zeros(2, np.float32)})[:8]
    '55270ac7'
    """
    arrays = {name: np.asarray(x) for name, x in storage.leaf_names(params).items()}
    return _digest(b"", arrays)


def _digest(text: bytes, arrays: Mapping[str, np.ndarray]) -> str:
    found = hashlib.sha256(text)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"\n{name} {array.dtype.name} {array.shape}\n".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def encode(params: PyTree, forms: Mapping[str, Form]) -> dict[str, Encoded]:
    """The leaves of a model as a file keeps them, by name; one compiled program.

    Args:
        params: the weights. A leaf in two factors is a dict of ``left`` and ``right``.
        forms: by name of a leaf; a leaf without one is exact.

    Raises:
        ValueError: for the form of a leaf that is not there.
    """
    leaves = storage.leaf_names(params)
    if strange := sorted(forms.keys() - leaves.keys()):
        raise ValueError(f"forms name {strange[0]!r}, and the weights have no such leaf")

    def encoded(leaves: dict[str, jax.Array]) -> dict[str, Encoded]:
        return {name: storage.encode(x, forms.get(name, _EXACT)) for name, x in leaves.items()}

    return jax.jit(encoded)(leaves)


def write(path: str | os.PathLike, leaves: Mapping[str, Encoded], content: Content) -> int:
    """Write the file, which appears complete or not at all; one that exists is replaced.

    Args:
        path: the file.
        leaves: of :func:`encode`, with the forms of ``content``.
        content: what else it says.

    Returns:
        Its size in bytes.

    Raises:
        UserError: when it cannot be written.
    """
    tensors.write_tensors(path, *_file(leaves, content))
    return os.path.getsize(path)


def num_bytes(leaves: Mapping[str, Encoded], content: Content) -> int:
    """The size that the file of :func:`write` has."""
    return len(tensors.as_bytes(*_file(leaves, content)))


def _file(
    leaves: Mapping[str, Encoded], content: Content
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a file by name, and its header."""
    arrays = {
        name if part == storage.VALUES else f"{name}.{part}": array
        for name, leaf in leaves.items()
        for part, array in storage.parts(leaf, content.forms.get(name, _EXACT)).items()
    }
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "config": content.config,
        "vocabulary": content.vocabulary.to_json(),
        "leaves": artefact_forms.to_json(content.forms),
        "ranks": content.ranks,
        "teacher": content.teacher,
        "step": content.step,
        "valid_loss": content.valid_loss,
        "inputs": content.inputs,
    }
    document = {name: value for name, value in document.items() if value not in (None, {}, [])}
    document["sha256"] = _digest(_text(document).encode(), arrays)
    return arrays, {_KEY: _text(document)}


def _text(document: Mapping[str, Any]) -> str:
    text = json.dumps(document, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character, in a tokenizer that was read from a file
        return json.dumps(document, separators=(",", ":"), sort_keys=True)
    return text


def read(path: str | os.PathLike) -> tuple[Content, dict[str, np.ndarray]]:
    """What a file says, and its arrays.

    Raises:
        UserError: naming the file, when it is missing, cut short, damaged, no such file, or of a
            version or with numbers of bits that this vfejax does not know.
    """
    path = Path(path)
    metadata, arrays = tensors.read_file(path)
    document = _document(path, metadata)
    if document.pop("sha256", None) != _digest(_text(document).encode(), arrays):
        raise UserError(f"{path} is damaged: its checksum is wrong; fetch it again")
    try:
        content = Content(
            config=_of(dict, document, "config"),
            vocabulary=tokenizers.from_json(document.get("vocabulary")),
            forms=artefact_forms.from_json(document.get("leaves", [])),
            teacher=_of(str, document, "teacher"),
            step=_of(int, document, "step"),
            valid_loss=_of(float, document, "valid_loss"),
            inputs=document.get("inputs"),
            ranks=artefact_forms.ranks(document.get("ranks", {})),
        )
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: {one_line(error)}; it was not written by this vfejax, so compress again"
        ) from error
    return content, arrays


def _document(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The document of the header, of a format and version that are known."""
    try:
        document = json.loads(metadata.get(_KEY, ""))
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise UserError(
            f"{path} is a safetensors file, but no compressed model that vfejax compress wrote; "
            "give one"
        )
    if document.get("version") != _VERSION:
        raise UserError(
            f"{path} has version {document.get('version')!r} of the format, and this vfejax reads "
            f"version {_VERSION}; compress again, or use the vfejax that wrote it"
        )
    return document


def _of(kind: type, document: Mapping[str, Any], name: str) -> Any:
    value = document.get(name)
    if type(value) is not kind:
        raise ValueError(f"{name!r} must be of type {kind.__name__}, got {value!r:.60}")
    return value


def weights(
    path: str | os.PathLike, content: Content, arrays: Mapping[str, np.ndarray], template: PyTree
) -> PyTree:
    """The weights of a file as the model reads them, whatever model that is:
    ``vfejax.runs.load`` knows those of the table, and this reads the file of a model of your own.

    Args:
        path: the file, for messages.
        content: what it says.
        arrays: its arrays.
        template: shapes and types of the model's weights, ``jax.eval_shape(model.init, key)``.

    Raises:
        UserError: naming file and leaf, when the arrays do not fit the model.

    >>> import tempfile
    >>> from vfejax.compression.quantize import Scheme
    >>> params = {"kernel": np.ones((64, 4), np.float32), "bias": np.zeros(4, np.float32)}
    >>> forms = {"kernel": Form(Scheme(bits=4))}
    >>> words = tokenizers.build("character", "a text")
    >>> mine = Content({"model": "mine"}, words, forms, checksum(params), step=0, valid_loss=0.5)
    >>> file = Path(tempfile.mkdtemp()) / "mine.safetensors"
    >>> size = write(file, encode(params, forms), mine)
    >>> content, arrays = read(file)
    >>> jax.tree.map(lambda x: float(x.sum()), weights(file, content, arrays, params))
    {'bias': 0.0, 'kernel': 256.0}
    """
    wanted = storage.leaf_names(template)
    factors = {name + side for name in content.ranks for side in (_LEFT, _RIGHT)}
    parts = _by_leaf(arrays, wanted.keys() | factors)
    leaves: dict[str, Encoded] = {}

    def take(name: str, shape: tuple[int, ...], dtype: Any) -> None:
        try:
            form = content.forms.get(name, _EXACT)
            leaves[name] = storage.encoded(parts.get(name, {}), form, shape, dtype)
        except (ValueError, IndexError, TypeError) as error:
            raise UserError(
                f"{path} does not fit its own model: {name}: {one_line(error)}; compress again"
            ) from error

    for name in content.ranks:
        if name not in wanted or len(wanted[name].shape) < 2:
            raise UserError(
                f"{path} does not fit its own model: it has no kernel {name!r:.60} that could be "
                "two factors; compress again"
            )
    for name, like in wanted.items():
        if name in content.ranks:
            *stack, rows, columns = like.shape
            take(name + _LEFT, (*stack, rows, content.ranks[name]), like.dtype)
            take(name + _RIGHT, (*stack, content.ranks[name], columns), like.dtype)
        else:
            take(name, like.shape, like.dtype)
    if strange := sorted(parts.keys() - leaves.keys()):
        raise UserError(
            f"{path} holds {strange[0]!r}, and its model has no such leaf; compress again"
        )
    return decode(leaves, content, template)


def decode(leaves: Mapping[str, Encoded], content: Content, template: PyTree) -> PyTree:
    """The weights that a model reads; one compiled program.

    Args:
        leaves: by name.
        content: forms and ranks of these leaves.
        template: shapes and types of the model's weights.
    """

    def decoded(leaves: dict[str, Encoded]) -> PyTree:
        def read(name: str, dtype: Any) -> jax.Array:
            return storage.decode(leaves[name], content.forms.get(name, _EXACT), dtype)

        def whole(path: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if name not in content.ranks:
                return read(name, like.dtype)
            return matmul(read(name + _LEFT, like.dtype), read(name + _RIGHT, like.dtype))

        return jax.tree_util.tree_map_with_path(whole, template)

    return jax.jit(decoded)(dict(leaves))


def _by_leaf(
    arrays: Mapping[str, np.ndarray], names: AbstractSet[str]
) -> dict[str, dict[str, np.ndarray]]:
    """The parts of every leaf; one of these names may have points of its own."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        leaf, point, part = name.rpartition(".")
        if name in names or not point:
            leaf, part = name, storage.VALUES
        found.setdefault(leaf, {})[part] = array
    return found
