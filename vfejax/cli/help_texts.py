"""Help texts of options: the docstrings of a dataclass' fields, each as one paragraph.

The parser wraps a paragraph to the width of the terminal, but keeps the line breaks of an indented
docstring, which on a terminal of 80 columns leaves a few words on every other line.
"""

import ast
import dataclasses
import inspect
import itertools
import textwrap
import typing
from functools import partial
from typing import Annotated, Any

import tyro

__all__ = ["field_docstrings", "with_paragraphs"]


def field_docstrings(config_type: type) -> dict[str, str]:
    """The docstring below each field, without line breaks; those of a base are inherited.

    Args:
        config_type: a class whose source can be read, or whose bases' can.

    >>> from vfejax.cli.options import RunOptions
    >>> field_docstrings(RunOptions)["resume"][-42:]
    '(Only a few, such as --steps, may change.)'
    """
    found: dict[str, str] = {}
    for cls in reversed(config_type.__mro__):
        try:
            source = textwrap.dedent(inspect.getsource(cls))
        except (OSError, TypeError):  # built in, or made by a function
            continue
        body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
        for entry, below in itertools.pairwise(body):
            match entry, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[name] = " ".join(text.split())
    return found


def with_paragraphs(config_type: type) -> type:
    """The dataclass with the same fields, whose help texts the parser wraps to any width.

    Args:
        config_type: a frozen dataclass; so may be its fields.

    Returns:
        A subclass, only for showing help.
    """
    hints = typing.get_type_hints(config_type, include_extras=True)
    texts = field_docstrings(config_type)
    fields: list[tuple[str, Any, Any]] = []
    for entry in dataclasses.fields(config_type):
        kind = hints[entry.name]
        options: dict[str, Any] = {"default": entry.default}
        if entry.default_factory is not dataclasses.MISSING:
            options = {"default_factory": entry.default_factory}
            if dataclasses.is_dataclass(kind):
                kind = with_paragraphs(typing.cast(type, kind))
                options = {"default_factory": partial(_as, kind, entry.default_factory)}
        if entry.name in texts:
            kind = Annotated[kind, tyro.conf.arg(help=texts[entry.name])]
        fields.append((entry.name, kind, dataclasses.field(**options)))
    namespace = {"__doc__": config_type.__doc__, "__module__": config_type.__module__}
    return dataclasses.make_dataclass(
        config_type.__name__, fields, bases=(config_type,), namespace=namespace, frozen=True
    )


def _as(kind: type, default_fn: typing.Callable[[], Any]) -> Any:
    """A default of the dataclass that stands for another one."""
    default = default_fn()
    return kind(**{x.name: getattr(default, x.name) for x in dataclasses.fields(default)})
