"""Configuration of every command: a dataclass, a TOML file and flags, in rising priority."""

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from vfejax.errors import UserError
from vfejax.runs import directory as run_directory

__all__ = [
    "SESSION",
    "as_mapping",
    "check",
    "open_run",
    "parse",
    "parse_run",
    "read_toml",
    "settings",
]

Config = TypeVar("Config")

# Settings that say how to run rather than what to compute; a resumed run takes them from the
# command line.
SESSION = ("out", "config", "overwrite", "resume", "quiet")


def read_toml(path: Path) -> dict[str, Any]:
    """Parsed TOML file; a missing or malformed one is a UserError that names it."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--config {path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
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


def settings(config: Any) -> dict[str, Any]:
    """What a run's ``config.toml`` says: every setting except those of the session."""
    return {name: value for name, value in as_mapping(config).items() if name not in SESSION}


def _arguments(
    config_type: type, mapping: Mapping[str, Any], where: str, prefix: str = ""
) -> list[str]:
    """The flags that say what a TOML table says, so that one parser (tyro) checks types for
    both.
    """
    fields = {field.name: field for field in dataclasses.fields(config_type)}
    arguments: list[str] = []
    for key, value in mapping.items():
        name = key.replace("-", "_")
        if name not in fields:
            known = ", ".join(sorted(prefix + field for field in fields))
            raise UserError(f"{where}: unknown key '{prefix}{key}'; known keys: {known}")
        flag = f"--{prefix}{name.replace('_', '-')}"
        kind = fields[name].type
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping):
                raise UserError(f"{where}: '{prefix}{key}' must be a table")
            arguments += _arguments(kind, value, where, f"{prefix}{name.replace('_', '-')}.")
        elif isinstance(value, bool):
            if kind is not bool:
                raise UserError(f"{where}: '{prefix}{key}' must not be true or false")
            arguments.append(flag if value else f"--{prefix}no-{name.replace('_', '-')}")
        elif isinstance(value, list):
            arguments += [flag, *map(str, value)]
        elif isinstance(value, str | int | float):
            arguments += [flag, str(value)]
        else:
            raise UserError(f"{where}: '{prefix}{key}' has a value of a kind no option takes")
    return arguments


def parse(
    config_type: type[Config],
    arguments: Sequence[str],
    *,
    program: str,
    base: Mapping[str, Any] | None = None,
) -> Config:
    """Configuration from flags over a TOML mapping over the dataclass' defaults.

    Args:
        config_type: frozen dataclass; its docstrings are the help texts.
        arguments: command-line flags.
        program: name shown by ``--help``.
        base: parsed TOML, whose unknown keys are errors.

    Raises:
        UserError: for an unknown key. For a bad flag or value tyro prints what is wrong and exits
            with status 2.
    """
    default = None
    if base:
        flags = _arguments(config_type, base, "configuration")
        default = tyro.cli(config_type, args=flags, prog=f"{program} (configuration file)")
    return tyro.cli(config_type, args=list(arguments), prog=program, default=default)


def parse_run(config_type: type[Config], arguments: Sequence[str], *, program: str) -> Config:
    """Configuration of a command that makes a run: as :func:`parse`, with ``--config``, and with
    ``--resume`` the run's own settings.

    ``config_type`` has the fields of ``SESSION``, and ``steps``: the only setting that a resumed
    run may change.

    Raises:
        UserError: for a setting that a resumed run cannot change, naming it, and as :func:`parse`.
    """
    flags = parse(config_type, arguments, program=program)
    if not flags.resume:
        base = read_toml(flags.config) if flags.config else {}
        for name in ("config", "resume"):
            if name in base:
                raise UserError(
                    f"--config {flags.config}: '{name}' is not a setting; give --{name} on the command line"
                )
        return parse(config_type, arguments, program=program, base=base)
    session = {name: getattr(flags, name) for name in SESSION}
    stored = run_directory.read_config(flags.out)
    original = parse(config_type, [], program=program, base=stored)
    wanted = dataclasses.replace(
        parse(config_type, arguments, program=program, base=stored), **session
    )
    fixed = dataclasses.replace(original, **session, steps=wanted.steps)
    for name, value in vars(fixed).items():
        if getattr(wanted, name) != value:
            raise UserError(
                f"--resume continues with the run's own settings; --{name.replace('_', '-')} was {value} (only --steps may change)"
            )
    return wanted


def open_run(config: Any) -> run_directory.RunDirectory:
    """The run that a resumed command goes on with, or a new one; held by this process."""
    if config.resume:
        return run_directory.open_existing(config.out)
    return run_directory.create(config.out, settings(config), overwrite=config.overwrite)


def check(condition: bool, flag: str, value: Any, requirement: str) -> None:
    """Raise a UserError naming ``flag`` unless ``condition`` holds."""
    if not condition:
        raise UserError(f"--{flag} {value}: must be {requirement}")
