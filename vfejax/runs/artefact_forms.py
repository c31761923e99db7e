"""The forms of leaves as the document of an artefact has them."""

from collections.abc import Mapping
from typing import Any

from vfejax.compression.quantize import Scheme
from vfejax.compression.storage import Form

__all__ = ["from_json", "ranks", "to_json"]

_BITS = range(1, 9)


def to_json(forms: Mapping[str, Form]) -> list[list[Any]]:
    """Every form that is not exact, once, with the names of its leaves.

    >>> to_json({"a": Form(half=True), "b": Form(), "c": Form(half=True)})
    [[{'half': True}, ['a', 'c']]]
    """
    names: dict[Form, list[str]] = {}
    for name, form in forms.items():
        names.setdefault(form, []).append(name)
    return [[_form_json(form), of_form] for form, of_form in names.items() if form != Form()]


def _form_json(form: Form) -> dict[str, Any]:
    scheme = {} if form.scheme is None else form.scheme._asdict() | {"axis": form.axis}
    flags = {name: True for name in ("sparse", "half") if getattr(form, name)}
    return scheme | flags


def from_json(groups: Any) -> dict[str, Form]:
    """The inverse of :func:`to_json`; ValueError or TypeError for what is none.

    >>> from_json([[{"half": True}, ["a"]]])
    {'a': Form(scheme=None, axis=-2, sparse=False, half=True)}
    """
    found: dict[str, Form] = {}
    for group in groups:
        mapping, names = group
        found |= dict.fromkeys(names, _form(dict(mapping)))
    return found


def ranks(mapping: Any) -> dict[str, int]:
    """Ranks by the name of a leaf in two factors; ValueError or TypeError for what is none.

    >>> ranks({"a": 0})
    Traceback (most recent call last):
    ValueError: the rank of 'a' must be an integer of at least 1, got 0
    """
    found = dict(mapping)
    for name, rank in found.items():
        if type(rank) is not int or rank < 1:
            said = f"the rank of {name!r:.60} must be an integer of at least 1"
            raise ValueError(f"{said}, got {rank!r:.60}")
    return found


def _form(mapping: dict[str, Any]) -> Form:
    flags = {name: mapping.pop(name, False) for name in ("sparse", "half")}
    if any(type(flag) is not bool for flag in flags.values()):
        raise ValueError(f"sparse and half must be true or false, got {flags}")
    if not mapping:
        return Form(**flags)
    bits, group, axis = (mapping.pop(name, None) for name in ("bits", "group", "axis"))
    symmetric = mapping.pop("symmetric", None)
    if type(bits) is not int or bits not in _BITS:
        raise ValueError(f"bits must be from {_BITS[0]} to {_BITS[-1]}, got {bits!r}")
    if type(group) is not int or group < 0 or type(axis) is not int or type(symmetric) is not bool:
        raise ValueError(f"no scheme has group {group!r}, axis {axis!r}, symmetric {symmetric!r}")
    if mapping:
        raise ValueError(f"a form has no {next(iter(mapping))!r}")
    return Form(Scheme(bits, group, symmetric), axis, **flags)
