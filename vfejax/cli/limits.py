"""Limits of options: a value outside them is one line that names the option and what it must be."""

import math
from collections.abc import Sequence
from typing import Any

from vfejax.cli.options import RunOptions, flag
from vfejax.errors import UserError
from vfejax.runs.seeds import LARGEST_SEED

__all__ = [
    "LARGEST_COUNT",
    "check",
    "check_counts",
    "check_numbers",
    "check_run",
    "check_seed",
]

LARGEST_COUNT = 2**31 - 1  # what a step counter on the device can hold


def check(condition: bool, name: str, value: Any, requirement: str) -> None:
    """Raise a UserError that names an option, unless a condition holds.

    Args:
        condition: what must hold.
        name: the option, as the field of the dataclass or as on the command line.
        value: what was given.
        requirement: what it must be, such as ``positive``.

    >>> check(False, "step_size", -1.0, "positive")
    Traceback (most recent call last):
    vfejax.errors.UserError: --step-size -1.0: must be positive
    """
    if not condition:
        raise UserError(f"{flag(name)} {_short(value)}: must be {requirement}")


def _short(value: Any) -> str:
    text = str(value) if not isinstance(value, int) or abs(value) < 10**40 else "(a huge number)"
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_counts(config: Any, names: Sequence[str], least: int, *, prefix: str = "") -> None:
    """Raise a UserError unless integers are large enough, and at most 2^31 - 1.

    Args:
        config: the options.
        names: fields to check.
        least: the smallest value allowed.
        prefix: the table that the options belong to, with its dot.

    >>> check_counts(RunOptions(steps=-1), ["steps"], 0)
    Traceback (most recent call last):
    vfejax.errors.UserError: --steps -1: must be at least 0 and at most 2147483647
    """
    for name in names:
        value = getattr(config, name)
        fits = least <= value <= LARGEST_COUNT
        check(fits, prefix + name, value, f"at least {least} and at most {LARGEST_COUNT}")


def check_numbers(config: Any, names: Sequence[str], *, positive: bool, prefix: str = "") -> None:
    """Raise a UserError unless numbers are finite and positive (or at least 0).

    A positive number must be one in float32 too, where what is below 1.2e-38 is 0.

    Args:
        config: the options.
        names: fields to check.
        positive: whether 0 is refused.
        prefix: the table that the options belong to, with its dot.

    >>> check_numbers(RunOptions(seed=0), ["seed"], positive=True)
    Traceback (most recent call last):
    vfejax.errors.UserError: --seed 0: must be positive and finite, from 1.2e-38 to 3.4e38
    """
    for name in names:
        value = getattr(config, name)
        if positive:
            fits = 1.2e-38 <= value <= 3.4e38
            check(fits, prefix + name, value, "positive and finite, from 1.2e-38 to 3.4e38")
        else:
            fits = math.isfinite(value) and 0 <= value <= 3.4e38
            check(fits, prefix + name, value, "at least 0 and at most 3.4e38")


def check_seed(seed: int) -> None:
    """Raise a UserError unless ``seed`` is at least 0 and below 2^63."""
    check(0 <= seed <= LARGEST_SEED, "seed", seed, f"at least 0 and at most {LARGEST_SEED}")


def check_run(config: RunOptions) -> None:
    """Raise a UserError for the first of the options that all runs share that is out of range."""
    check_seed(config.seed)
    check_counts(config, ["steps"], 0)
    check_counts(config, ["log_every", "checkpoint_every"], 1)
    _check_multiple(config, "checkpoint_every")


def _check_multiple(config: RunOptions, name: str) -> None:
    value = getattr(config, name)
    requirement = f"a multiple of --log-every {config.log_every}"
    check(value % config.log_every == 0, name, value, requirement)
