"""Several processes that make one run of a command: options, joining, and what must be the same in
all.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, ClassVar

from vfejax.cli import main, options
from vfejax.cli.limits import check, check_counts
from vfejax.cli.options import RunOptions
from vfejax.errors import UserError
from vfejax.runs import inputs as run_inputs
from vfejax.runs import process_group

__all__ = ["GroupOptions", "check_group", "joined"]

_ADDRESS = re.compile(r"(?:[^\s/:]+|\[[^\s/]+\]):([0-9]{1,5})")
_LARGEST_PORT = 65535
_PACKAGES = ("flax", "optax", "numpy")  # they decide what is computed, with vfejax and JAX


@dataclass(frozen=True)
class GroupOptions(RunOptions):
    """What a command can be told whose run several processes may make."""

    coordinator: str | None = None
    """HOST:PORT at which process 0 listens, for a run by several processes, on one machine or more.
    All are given the same options except --process, and see the same --out. A resumed run may have
    another number of processes.
    """
    processes: int | None = None
    """Number of processes of the run; its work is divided among the devices of all."""
    process: int | None = None
    """Number of this process, from 0. Process 0 writes the files of the run, and prints for all."""

    SESSION: ClassVar[tuple[str, ...]] = (
        *RunOptions.SESSION,
        *("coordinator", "processes", "process"),
    )


def check_group(config: GroupOptions) -> None:
    """Raise a UserError unless the options that join processes are all there and fit together."""
    values = {name: getattr(config, name) for name in ("coordinator", "processes", "process")}
    given = [options.flag(name) for name, value in values.items() if value is not None]
    missing = [options.flag(name) for name, value in values.items() if value is None]
    if config.coordinator is None or config.processes is None or config.process is None:
        if given:
            raise UserError(
                f"{' and '.join(given)}: given without {' and '.join(missing)}; give all three, or "
                "none for one process"
            )
        return
    found = _ADDRESS.fullmatch(config.coordinator)
    fits = found is not None and 0 < int(found[1]) <= _LARGEST_PORT
    check(fits, "coordinator", config.coordinator, "HOST:PORT, such as 10.0.0.1:4000 or [::1]:4000")
    check_counts(config, ["processes"], 1)
    numbers = f"at least 0 and below --processes {config.processes}"
    check(0 <= config.process < config.processes, "process", config.process, numbers)


@contextlib.contextmanager
def joined(
    config: GroupOptions, name: str, inputs_fn: Callable[[], run_inputs.Inputs] = dict
) -> Iterator[None]:
    """Within it this process is one of those that the options speak of, if they speak of any. Enter
    before anything touches a device.

    Args:
        config: the command's options.
        name: of the command.
        inputs_fn: gives what the run is computed from, by option. The content must be the same in
            all processes, wherever it lies.

    Raises:
        UserError: in every process, when they do not fit together.
    """
    if config.coordinator is None or config.processes is None or config.process is None:
        yield
        return
    group = process_group.Group(config.coordinator, config.processes, config.process)
    with process_group.joined(group, name, _alike(config, name) | _read_alike(inputs_fn)):
        try:
            yield
        except Exception as error:
            if reason := main.too_large(error, name):
                raise UserError(reason) from error  # which all of them are told
            raise


def _alike(config: GroupOptions, name: str) -> dict[str, Any]:
    """The settings that all processes must have the same, by their flags."""
    session = {name: getattr(config, name) for name in ("resume", "overwrite")}
    found: dict[str, Any] = {"command": name} | {package: version(package) for package in _PACKAGES}
    for setting, value in (options.settings(config) | session).items():
        if setting in config.INPUTS:
            continue
        table = value if isinstance(value, dict) else None
        inner = {f"{setting}.{key}": x for key, x in table.items()} if table else {setting: value}
        found |= {options.flag(key): x for key, x in inner.items()}
    return found


def _read_alike(inputs_fn: Callable[[], run_inputs.Inputs]) -> dict[str, str]:
    """What tells the inputs of one process from those of another. A process that cannot read its
    own joins the others all the same, so that they need not wait for it.
    """
    unread = "inputs that it cannot read:"
    try:
        return {unread: "none", **run_inputs.summaries(inputs_fn())}
    except UserError as error:
        return {unread: str(error)}
