"""Configuration of every command: a dataclass, a TOML file and flags, in rising priority."""

import contextlib
import dataclasses
import difflib
import io
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import tyro

from vfejax.cli import help_texts
from vfejax.errors import UserError
from vfejax.runs import directory as run_directory
from vfejax.runs import inputs as run_inputs
from vfejax.runs import toml_values

__all__ = [
    "RunOptions",
    "as_mapping",
    "changes",
    "essentials",
    "flag",
    "parse",
    "parse_run",
    "read_toml",
    "restored",
    "settings",
    "stored",
]

Config = TypeVar("Config")
Run = TypeVar("Run", bound="RunOptions")


@dataclass(frozen=True)
class RunOptions:
    """What every command that makes a run can be told."""

    out: Path = Path("runs/run")
    """Run directory to create."""
    config: Path | None = None
    """TOML file with any of these settings; flags win over it."""
    overwrite: bool = False
    """Replace an earlier run in --out."""
    resume: bool = False
    """Continue the run in --out from its newest checkpoint, with its own settings. (Only a few,
    such as --steps, may change.)
    """
    quiet: bool = False
    """Print nothing but errors."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too, into the folder tensorboard of the run."""
    seed: int = 0
    """Seed of all that is random."""

    steps: int = 500
    """Number of steps."""
    log_every: int = 10
    """Steps between rows of metrics.csv; also the number of steps compiled into one call."""
    checkpoint_every: int = 100
    """Steps between checkpoints, a multiple of --log-every."""

    # Settings that say how to run rather than what to compute; a resumed run takes them from the
    # command line.
    SESSION: ClassVar[tuple[str, ...]] = (
        *("out", "config", "overwrite", "resume", "quiet", "tensorboard"),
    )
    # Settings that a resumed run may change.
    CHANGEABLE: ClassVar[tuple[str, ...]] = ("steps", "checkpoint_every")
    # Settings that name input files. A resumed run may give another path to the same content.
    INPUTS: ClassVar[tuple[str, ...]] = ()
    # By setting that chooses one of several tables of options: the tables' names by its value. Only
    # the chosen table is stored and read, so that no run depends on the options of others.
    CHOICES: ClassVar[Mapping[str, Mapping[str, str]]] = {}


def essentials(config: Run) -> Run:
    """The options that decide what is computed; those that say how to run are as by default, and
    input files are left out. Runs that differ in these alone share their compiled programs
    (:mod:`vfejax.cli.executable_cache`) when functions close over the essentials and no more.

    >>> essentials(RunOptions(steps=3, seed=4, quiet=True)) == essentials(RunOptions(seed=4))
    True
    """
    others = {*config.SESSION, *config.CHANGEABLE, *config.INPUTS}
    fields = [field for field in dataclasses.fields(config) if field.name in others]
    plain: dict[str, Any]
    plain = {x.name: None if isinstance(x.default, Path) else x.default for x in fields}
    return dataclasses.replace(config, **plain)


def flag(name: str) -> str:
    """A setting's name on the command line: ``inner.step_size`` is ``--inner.step-size``."""
    return "--" + name.replace("_", "-")


def read_toml(path: Path) -> dict[str, Any]:
    """Parsed TOML file; a missing or malformed one is a UserError that names it."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"--config {path}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"--config {path}: not valid TOML: it must be UTF-8 text") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"--config {path}: not valid TOML: {error}") from None
    except OSError as error:
        raise UserError(f"--config {path}: cannot read it: {error.strerror}") from None


def as_mapping(config: Any) -> dict[str, Any]:
    """Fully resolved configuration as plain TOML values; None is left out."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, tuple):
            return [plain(v) for v in value]
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if v is not None}
        return value

    return plain(dataclasses.asdict(config))


def _unused_tables(config_type: type, mapping: Mapping[str, Any]) -> set[str]:
    """Tables that a stored configuration did not choose."""
    unused: set[str] = set()
    for setting, tables in getattr(config_type, "CHOICES", {}).items():
        default = next(f.default for f in dataclasses.fields(config_type) if f.name == setting)
        chosen = tables.get(mapping.get(setting, default))
        unused |= set(tables.values()) - {chosen}
    return unused


def settings(config: Any) -> dict[str, Any]:
    """What a run's ``config.toml`` says: every setting except those of the session, and of a choice
    between tables only the chosen one.
    """
    mapping = as_mapping(config)
    left_out = {*getattr(config, "SESSION", ()), *_unused_tables(type(config), mapping)}
    found = {name: value for name, value in mapping.items() if name not in left_out}
    for name, value in found.items():
        if isinstance(value, str) and not _is_utf8(value):
            raise UserError(
                f"{flag(name)} {value!a}: is no UTF-8 text, so config.toml cannot hold it; "
                "rename the file"
            )
    return found


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse(
    config_type: type[Config],
    arguments: Sequence[str],
    *,
    program: str,
    base: Mapping[str, Any] | None = None,
    where: str = "configuration",
) -> Config:
    """Configuration from flags over a TOML mapping over the dataclass' defaults.

    Args:
        config_type: frozen dataclass; its docstrings are the help texts.
        arguments: command-line flags.
        program: name shown by ``--help``.
        base: parsed TOML, whose unknown keys are errors.
        where: what ``base`` was read from, for messages.

    Raises:
        UserError: for an unknown key, flag or value, naming it.
    """
    default = toml_values.build(config_type, base, where) if base else None
    return _parse(config_type, arguments, program, default)


def _parse(
    config_type: type[Config], arguments: Sequence[str], program: str, default: Config | None
) -> Config:
    said = io.StringIO()
    start: dict[str, Any] = {} if default is None else {"default": default}
    asked = default is None and not {"-h", "--help"}.isdisjoint(arguments)
    shown = help_texts.with_paragraphs(config_type) if asked else config_type
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(shown, args=list(arguments), prog=program, **start)
    except SystemExit as stop:
        if not stop.code:
            raise  # after --help
        raise UserError(_condensed(said.getvalue(), program)) from None


def _condensed(box: str, program: str) -> str:
    """The parser's message, which is a box of several lines, as one line. A terminal without
    box-drawing characters has a title and rules of dashes instead.
    """
    rows = [row.strip("│ ") for row in box.splitlines()]
    edges = [i for i, row in enumerate(rows) if re.match(r"[╭╰]|(─+|-{4,})$", row)]
    said = " ".join(rows[edges[0] + 1 : edges[1]] if len(edges) > 1 else rows).strip()
    similar = re.search(r"Perhaps you meant:[\s│]*(--[\w.-]+)", box)
    hint = f" (did you mean {similar[1]}?)" if similar else ""
    if "Missing value" in said:
        hint = " (a value that begins with '-' is written --option=-value)"
    if choice := re.search(r"invalid choice '([^']*)'.*Expected one of \((.*)\)", said):
        near = difflib.get_close_matches(choice[1], re.findall(r"'([^']*)'", choice[2]), 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
    said = said if hint else said.removesuffix(".")
    return f"{said}{hint}; {program} --help explains every option"


def parse_run(config_type: type[Run], arguments: Sequence[str], *, program: str) -> Run:
    """Configuration of a command that makes a run: as :func:`parse`, with ``--config``, and with
    ``--resume`` the run's own settings. Paths of input files become absolute.

    Args:
        config_type: a :class:`RunOptions`; its ``CHANGEABLE`` says what a resumed run may change.
        arguments: command-line flags.
        program: name shown by ``--help``.

    Raises:
        UserError: for a setting that a resumed run cannot change, naming it, and as :func:`parse`.
    """
    flags = parse(config_type, arguments, program=program)
    if flags.resume:
        return _resumed(config_type, arguments, flags, program)
    if not flags.config:
        return _absolute(flags)
    base = read_toml(flags.config)
    for name in ("config", "resume"):
        if name in base:
            raise UserError(
                f"--config {flags.config}: '{name}' is not a setting; give --{name} on the command "
                "line"
            )
    where = f"--config {flags.config}"
    return _absolute(parse(config_type, arguments, program=program, base=base, where=where))


def _resumed(config_type: type[Run], arguments: Sequence[str], flags: Run, program: str) -> Run:
    for name in ("config", "overwrite"):
        if getattr(flags, name):
            raise UserError(
                f"--{name}: cannot be given with --resume, which continues with the run's own "
                "settings; leave one of them out"
            )
    original = stored(config_type, flags.out, program=program)
    # Again over the run's settings: what the command line does not say is as it was.
    said = dataclasses.replace(original, **{n: getattr(flags, n) for n in config_type.SESSION})
    wanted = _absolute(_parse(config_type, arguments, program, said))
    may_change = set(config_type.CHANGEABLE)
    if run_inputs.is_recorded(flags.out):
        may_change |= set(config_type.INPUTS)
    for name, before, now in _differences(said, wanted):
        if name not in may_change:
            allowed = ", ".join(map(flag, config_type.CHANGEABLE))
            raise UserError(
                f"{flag(name)} {_said(now)}: --resume continues with the run's own settings; "
                f"{flag(name)} was {_said(before)} (only {allowed} may change)"
            )
    return wanted


def _absolute(config: Run) -> Run:
    paths = {name: getattr(config, name) for name in type(config).INPUTS}
    paths = {n: Path(os.path.abspath(p)) for n, p in paths.items() if isinstance(p, Path)}
    return dataclasses.replace(config, **paths)


def _said(value: Any) -> Any:
    """A value as it is given on the command line."""
    if value is None or value == ():
        return "not given"
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def _differences(before: Any, after: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Name, old and new value of every setting that differs, those of tables by ``table.name``."""
    found = []
    for entry in dataclasses.fields(before):
        old, new = getattr(before, entry.name), getattr(after, entry.name)
        if dataclasses.is_dataclass(old):
            found += _differences(old, new, f"{prefix}{entry.name}.")
        elif old != new:
            found.append((f"{prefix}{entry.name}", old, new))
    return found


def changes(before: RunOptions, after: RunOptions) -> list[str]:
    """What a resumed run does differently, in words."""
    return [
        f"{flag(name)} was {_said(old)}, is {_said(new)} now"
        for name, old, new in _differences(before, after)
        if name not in after.SESSION
    ]


def stored(
    config_type: type[Config],
    path: str | os.PathLike,
    *,
    program: str,
    check_values: Callable[[Config], None] | None = None,
) -> Config:
    """The configuration of a run, as its ``config.toml`` has it.

    Args:
        config_type: of the command that made the run.
        path: the run.
        program: that command, for messages.
        check_values: raises UserError for values out of range: the file may have been edited.

    Raises:
        UserError: naming the file, for anything in it that the command does not take.
    """
    mapping = run_directory.read_config(path)
    where = str(Path(path) / "config.toml")
    return restored(config_type, mapping, where, program=program, check_values=check_values)


def restored(
    config_type: type[Config],
    mapping: Mapping[str, Any],
    where: str,
    *,
    program: str,
    check_values: Callable[[Config], None] | None = None,
) -> Config:
    """The configuration that settings of a run, as they were written down, describe.

    Args:
        config_type: of the command that made the run.
        mapping: the settings.
        where: the file they stand in, for messages.
        program: that command, for messages.
        check_values: as in :func:`stored`.

    Raises:
        UserError: as :func:`stored`.
    """
    unused = _unused_tables(config_type, mapping)
    used = {name: value for name, value in mapping.items() if name not in unused}
    known = {entry.name for entry in dataclasses.fields(cast(Any, config_type))}
    strange = [name for name in used if name.replace("-", "_") not in known]
    if strange:
        raise UserError(
            f"{where}: unknown key '{strange[0]}', so the run was not made by {program}, or by "
            "another version of it; give a run of this command"
        )
    config = toml_values.build(config_type, used, where)
    if check_values is not None:
        try:
            check_values(config)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return config
