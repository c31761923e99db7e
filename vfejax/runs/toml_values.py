"""A dataclass from parsed TOML: every value checked against the field's type, and named when it
does not fit.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from vfejax.errors import UserError

__all__ = ["build"]

Config = TypeVar("Config")


def build(config_type: type[Config], mapping: Mapping[str, Any], where: str) -> Config:
    """The dataclass with the values of ``mapping`` over its defaults.

    Args:
        config_type: a dataclass whose fields all have defaults; its fields are dataclasses, or of
            the types bool, int, float, str, Path, Literal, tuple of one of these, or one of these
            or None.
        mapping: parsed TOML; dashes in keys count as underscores.
        where: the file, for messages.

    Raises:
        UserError: naming file and key, for a key that is unknown or given twice, and for a value
            of another type.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Options:
    ...     steps: int = 5
    >>> build(Options, {"steps": 7}, "a.toml")
    Options(steps=7)
    >>> build(Options, {"steps": "many"}, "a.toml")
    Traceback (most recent call last):
    vfejax.errors.UserError: a.toml: 'steps' must be an integer, got 'many'
    """
    return _table(config_type, mapping, where, "")


def _table(
    config_type: type[Config], mapping: Mapping[str, Any], where: str, prefix: str
) -> Config:
    kinds = typing.get_type_hints(config_type)
    fields = dataclasses.fields(cast(Any, config_type))
    known = {field.name: field for field in fields}
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        name = key.replace("-", "_")
        if name not in known:
            names = ", ".join(sorted(prefix + field for field in known))
            raise UserError(f"{where}: unknown key '{prefix}{key}'; known keys: {names}")
        if name in values:
            raise UserError(f"{where}: '{prefix}{name}' is given twice; remove one")
        if dataclasses.is_dataclass(kinds[name]):
            if not isinstance(value, Mapping):
                raise UserError(f"{where}: '{prefix}{key}' must be a table")
            values[name] = _table(kinds[name], value, where, f"{prefix}{name}.")
        else:
            values[name] = _value(kinds[name], value, where, prefix + key)
    return config_type(**values)


def _value(kind: Any, value: Any, where: str, key: str) -> Any:
    """A value as the field's type; ``kind`` is what ``typing.get_type_hints`` says of it."""

    def refuse(what: str) -> UserError:
        return UserError(f"{where}: '{key}' must be {what}, got {_shown(value)}")

    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _value(inner, value, where, key)
    if origin is typing.Literal:
        if value not in arguments or isinstance(value, bool) != isinstance(arguments[0], bool):
            raise refuse(f"one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise refuse("a list")
        return tuple(
            _value(arguments[0], item, where, f"{key}[{i}]") for i, item in enumerate(value)
        )
    if kind is bool:
        if not isinstance(value, bool):
            raise refuse("true or false")
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise refuse(_NAMES[kind])
    return _scalar(kind, value, refuse)


_NAMES = {int: "an integer", float: "a number", str: "a string", Path: "a path, as a string"}


def _scalar(kind: type, value: str | int | float, refuse: Any) -> Any:
    if kind is int and isinstance(value, int):
        return value
    if kind is float and not isinstance(value, str):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if kind in (str, Path) and isinstance(value, str):
        if "\0" in value:
            raise refuse(f"{_NAMES[kind]} without NUL")
        return kind(value)
    raise refuse(_NAMES[kind])


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a huge number"
    return text if len(text) <= 80 else f"{text[:77]}..."
