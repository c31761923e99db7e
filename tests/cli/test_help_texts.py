"""Help texts of options."""

import contextlib
import io
from dataclasses import dataclass, field
from typing import Annotated

import pytest
import tyro

from vfejax.cli import options


@dataclass(frozen=True)
class Inner:
    """Options of a part."""

    step_size: float = 0.1
    """Length of a step."""


def _wide() -> Inner:
    return Inner(0.5)


@dataclass(frozen=True)
class Outer(options.RunOptions):
    """A command."""

    name: Annotated[str, tyro.conf.arg(metavar="WORD")] = "none"
    """A text of more than one line of source that goes on, after some words, in the next line of
    the source and ends there.
    """
    inner: Inner = field(default_factory=_wide)
    """How far it goes."""


def test_a_help_text_of_several_source_lines_is_one_paragraph(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # Wide enough that nothing is wrapped.
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as stop:
        options.parse(Outer, ["--help"], program="test")
    assert stop.value.code == 0
    rows = {row.strip("│ ") for row in said.getvalue().splitlines()}
    own = (
        "A text of more than one line of source that goes on, after some words, in the next line "
        "of the source and ends there. (default: none)"
    )
    base = (
        "Continue the run in --out from its newest checkpoint, with its own settings. (Only a few, "
        "such as --steps, may change.) (default: False)"
    )
    part = "Length of a step. (default: 0.5)"  # The default is that of the field, not of its class.
    option = "--name WORD"
    for text in (own, base, part, option):
        assert any(text in row for row in rows)
