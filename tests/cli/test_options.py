"""Configuration: flags over TOML over defaults, one parser for both."""

import io
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import tomli_w

from vfejax.cli.options import as_mapping, parse, read_toml
from vfejax.errors import UserError


@dataclass(frozen=True)
class Inner:
    gain: float = 1.0
    """Gain."""
    far_limit: float = float("inf")
    """Limit."""


@dataclass(frozen=True)
class Config:
    """A command."""

    steps: int = 5
    """Steps."""
    step_size: float = 0.5
    """Step size."""
    loud: bool = False
    """Loud."""
    spins: tuple[int, ...] = (1, 2)
    """Spins."""
    kind: Literal["a", "b"] = "a"
    """Kind."""
    path: Path | None = None
    """Path."""
    inner: Inner = field(default_factory=Inner)
    """Inner."""


def _parse(arguments="", base=None):
    return parse(Config, arguments.split(), program="test", base=base)


def test_defaults():
    assert _parse() == Config()


def test_toml_wins_over_defaults_and_flags_over_toml():
    base = {"steps": 7, "spins": [3], "inner": {"gain": 2.0}, "kind": "b"}
    found = _parse("--steps 9 --inner.far-limit 4", base)
    assert found == Config(steps=9, spins=(3,), kind="b", inner=Inner(gain=2.0, far_limit=4.0))


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(
            steps=-3,
            step_size=1e-30,
            loud=True,
            spins=(),
            kind="b",
            path=Path("a b/c"),
            inner=Inner(-0.1, 3.0),
        ),
    ],
    ids=["defaults", "every field"],
)
def test_what_a_run_writes_down_parses_to_the_same_configuration(config):
    written = tomli_w.dumps(as_mapping(config))
    assert _parse("", tomllib.loads(written)) == config


def test_mapping_holds_plain_values_and_leaves_out_none():
    mapping = as_mapping(Config(path=None))
    assert "path" not in mapping
    assert mapping["spins"] == [1, 2]
    assert as_mapping(Config(path=Path("x")))["path"] == "x"


def test_true_in_toml_can_be_undone_by_a_flag():
    assert _parse("", {"loud": True}).loud is True
    assert _parse("--no-loud", {"loud": True}).loud is False
    assert _parse("", {"loud": False}).loud is False


@pytest.mark.parametrize(
    ("base", "pieces"),
    [
        ({"stepz": 3}, ("'stepz'", "steps", "step_size")),
        ({"inner": {"pain": 1}}, ("'inner.pain'", "inner.gain", "inner.far_limit")),
        ({"inner": 3}, ("'inner'", "table")),
        ({"steps": True}, ("'steps'", "integer", "true")),
        ({"step-size": 1.0, "step_size": 2.0}, ("'step_size'", "twice")),
        ({"steps": {"a": 1}}, ("'steps'",)),
    ],
    ids=["unknown", "unknown nested", "no table", "boolean", "twice", "table"],
)
def test_bad_toml_keys_and_kinds_are_named(base, pieces):
    with pytest.raises(UserError) as caught:
        _parse("", base)
    assert all(piece in str(caught.value) for piece in pieces)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ({"steps": "many"}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"step_size": "big"}, "step_size"),
        ({"spins": ["x"]}, "spins[0]"),
        ({"spins": ["1", "--loud"]}, "spins[0]"),
        ({"spins": 3}, "spins"),
        ({"path": ["x", "--loud"]}, "path"),
        ({"path": "a\0b"}, "path"),
        ({"kind": "c"}, "kind"),
        ({"inner": {"gain": "x"}}, "inner.gain"),
        ({"steps": [1, 2]}, "steps"),
        ({"loud": "yes"}, "loud"),
        ({"loud": 1}, "loud"),
        ({"kind": True}, "kind"),
    ],
    ids=str,
)
def test_toml_values_of_the_wrong_type_are_named(base, name, capsys):
    with pytest.raises(UserError) as caught:
        _parse("", base)
    assert str(caught.value).startswith(f"configuration: '{name}")
    assert "must be" in str(caught.value)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "piece"),
    [
        ("--stepz 3", "--stepz"),
        ("--steps x", "--steps"),
        ("--kind c", "--kind"),
        ("--spins 1 foo", "--spins"),
        ("--inner.gain x", "--inner.gain"),
        ("--steps", "--steps"),
    ],
)
def test_bad_flags_are_named_in_one_line(arguments, piece, capsys):
    with pytest.raises(UserError) as caught:
        _parse(arguments)
    message = str(caught.value)
    assert piece in message
    assert message.endswith("test --help explains every option")
    assert not set(message) & set("\n│─╭╰")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--stepz 3", "Unrecognized options: --stepz, 3 (did you mean --steps?); "),
        ("--kind -b", "Missing value for argument '--kind'. Expected 1 values. (a value "),
    ],
)
def test_a_terminal_of_ascii_is_told_the_same(arguments, message, monkeypatch):
    with pytest.raises(UserError) as caught:
        _parse(arguments)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    with pytest.raises(UserError) as plain:
        _parse(arguments)
    assert str(plain.value) == str(caught.value)
    assert str(plain.value).startswith(message)


def test_a_mistyped_flag_is_told_the_likely_one():
    with pytest.raises(UserError, match=r"--stepz.*did you mean --steps\?"):
        _parse("--stepz 3")


@pytest.mark.parametrize(("value", "end"), [("aa", ". (did you mean a?)"), ("zz", "')")])
def test_a_mistyped_choice_is_told_the_likely_one(value, end):
    with pytest.raises(UserError) as caught:
        _parse(f"--kind {value}")
    said, _, rest = str(caught.value).partition("; ")
    assert f"'{value}'" in said
    assert said.endswith(end)
    assert rest == "test --help explains every option"


def test_a_value_that_looks_like_a_flag_is_told_how_to_be_written():
    with pytest.raises(UserError, match=r"--kind.*--option=-value"):
        _parse("--kind -b")


def test_read_toml(tmp_path):
    path = tmp_path / "a.toml"
    path.write_bytes(b"\xef\xbb\xbfsteps = 3\n[inner]\ngain = inf\n")  # a byte order mark is fine
    assert read_toml(path) == {"steps": 3, "inner": {"gain": float("inf")}}


@pytest.mark.parametrize(
    ("content", "piece"),
    [
        (None, "no such file"),
        (b"steps = = 3", "not valid TOML"),
        (b"\xff\xfe\x00", "not valid TOML"),
    ],
    ids=["missing", "malformed", "not text"],
)
def test_a_file_that_cannot_be_used_is_named(content, piece, tmp_path):
    path = tmp_path / "a.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=piece) as caught:
        read_toml(path)
    assert str(path) in str(caught.value)


def test_a_folder_is_no_toml_file(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_toml(tmp_path)
