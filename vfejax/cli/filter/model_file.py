"""Model files: the parameters of a model as TOML, written by every run and read by ``--model``.

``model`` says which one; every other key is a field of it, a list or a list of rows. ``columns``
may name the series that it is for, in their order.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tomli_w

from vfejax.data.files import one_line, read_errors
from vfejax.errors import UserError

__all__ = ["FIELDS", "ModelFile", "read", "write"]

_LOCAL = {
    "drift_std": ("o",),
    "noise_std": ("o",),
    "initial_mean": ("n",),
    "initial_cov": ("n", "n"),
}
FIELDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "local-level": _LOCAL,
    "local-trend": _LOCAL,
    "lgssm": {
        "initial_mean": ("n",),
        "initial_cov": ("n", "n"),
        "transition": ("n", "n"),
        "transition_cov": ("n", "n"),
        "emission": ("o", "n"),
        "emission_cov": ("o", "o"),
        "transition_offset": ("n",),
        "emission_offset": ("o",),
    },
    "generalized": {
        "drift": ("n", "n"),
        "emission": ("o", "n"),
        "output_precision": ("o", "o"),
        "state_precision": ("n", "n"),
        "smoothness": (),
        "order": (),
        "dt": (),
        "gain": ("n", "m"),
        "cause_precision": ("m", "m"),
        "cause_order": (),
        "cause_smoothness": (),
        "output_smoothness": (),
        "drift_std": ("n", "n"),
        "gain_std": ("n", "m"),
        "emission_std": ("o", "n"),
    },
    "koopman": {
        "operator": ("d", "d"),
        "centre": ("d",),
        "mean": ("o",),
        "scale": ("o",),
        "delays": (),
        "degree": (),
    },
    "hmm": {
        "initial": ("k",),
        "transition": ("k", "k"),
        "means": ("k", "o"),
        "stds": ("k", "o"),
    },
    "discrete-hmm": {
        "initial": ("k",),
        "transition": ("k", "k"),
        "emission": ("m", "k"),
    },
}
"""Fields of each model and their axes: n is the size of the state, o the number of series, k the
number of states, m that of symbols or of causes, and d that of observables. A field without axes is
a number.
"""
OPTIONAL = (
    *("transition_offset", "emission_offset"),
    *("dt", "gain", "cause_precision", "cause_order", "cause_smoothness", "output_smoothness"),
    *("drift_std", "gain_std", "emission_std"),
)
_LETTERS = {
    "n": "the size of the state",
    "o": "the number of series",
    "k": "the number of states",
    "m": "the number of symbols or causes",
    "d": "the number of observables",
}


class ModelFile(NamedTuple):
    """What a model file says.

    Attributes:
        kind: name of the model.
        columns: names of its series; None when it does not say.
        fields: float64 arrays by name.
        num_series: o.
    """

    kind: str
    columns: tuple[str, ...] | None
    fields: dict[str, np.ndarray]
    num_series: int


def write(document: Mapping[str, Any]) -> str:
    """The text of a model file.

    >>> print(write({"model": "lgssm", "emission": [[1.0]]}), end="")
    model = "lgssm"
    emission = [
        [
            1.0,
        ],
    ]
    """
    return tomli_w.dumps(document)


def read(path: Path) -> ModelFile:
    """Read a model file; shapes are checked, values are not.

    Args:
        path: the file.

    Raises:
        UserError: naming file and key: one that is unknown, missing, no number, or of a shape that
            does not fit the others.
    """
    import tomllib

    with read_errors(f"--model {path}:"):
        text = path.read_text(encoding="utf-8-sig")
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"--model {path}: not valid TOML: {one_line(error)}") from None
    kind = content.pop("model", None)
    if kind not in FIELDS:
        known = ", ".join(FIELDS)
        raise UserError(f"{path}: key 'model' must be one of {known}, got {_shown(kind)}")
    columns = _columns(path, content.pop("columns", None))
    wanted = FIELDS[kind]
    for key in content:
        if key not in wanted:
            raise UserError(f"{path}: unknown key '{key}'; a model {kind} has {', '.join(wanted)}")
    for key in wanted:
        if key not in content and key not in OPTIONAL:
            axes = ", ".join(wanted[key])
            shape = f" [{axes}]" if axes else ""
            raise UserError(f"{path}: key '{key}'{shape} is missing")
    fields = {key: _array(path, key, content[key], len(wanted[key])) for key in content}
    sizes = _sizes(path, fields, wanted, columns)
    return ModelFile(kind, columns, fields, sizes.get("o", 1))


def _columns(path: Path, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(isinstance(x, str) for x in value):
        raise UserError(f"{path}: 'columns' must be a list of names, got {_shown(value)}")
    return tuple(value)


def _array(path: Path, key: str, value: Any, rank: int) -> np.ndarray:
    shape = ("a number", "a list of numbers", "a list of rows of numbers")[rank]

    def check(value: Any, depth: int, place: str) -> None:
        if depth == 0:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UserError(f"{path}: '{place}' must be a number, got {_shown(value)}")
        elif not isinstance(value, list) or not value:
            raise UserError(f"{path}: '{key}' must be {shape}, got {_shown(value)}")
        else:
            for i, item in enumerate(value):
                check(item, depth - 1, f"{place}[{i}]")
            lengths = {len(item) for item in value} if depth > 1 else set()
            if len(lengths) > 1:
                raise UserError(f"{path}: the rows of '{place}' have different lengths")

    check(value, rank, key)
    try:
        array = np.asarray(value, np.float64)
    except OverflowError:
        raise UserError(f"{path}: '{key}' has an integer that is too large") from None
    if not np.all(np.isfinite(array)):
        entry = np.argwhere(~np.isfinite(array))[0].tolist()
        place = f" at {entry}" if entry else ""
        raise UserError(f"{path}: '{key}' is {array[tuple(entry)]}{place}; it must be finite")
    return array


def _sizes(
    path: Path,
    fields: Mapping[str, np.ndarray],
    wanted: Mapping[str, tuple[str, ...]],
    columns: tuple[str, ...] | None,
) -> dict[str, int]:
    """Sizes by letter, each from the first field that has it."""
    sizes: dict[str, int] = {}
    origin: dict[str, str] = {}
    if columns is not None:
        sizes["o"], origin["o"] = len(columns), "columns"
    for key, axes in wanted.items():
        if key not in fields:
            continue
        for size, axis in zip(fields[key].shape, axes, strict=True):
            if sizes.setdefault(axis, size) != size:
                expected = [sizes.get(a, s) for s, a in zip(fields[key].shape, axes, strict=True)]
                raise UserError(
                    f"{path}: '{key}' has shape {list(fields[key].shape)}, and "
                    f"{expected} is needed: {_LETTERS[axis]} is {sizes[axis]} in "
                    f"'{origin[axis]}'"
                )
            origin.setdefault(axis, key)
    return sizes


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
