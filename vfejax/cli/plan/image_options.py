"""Options of ``vfejax plan --image``: their defaults and their limits."""

import dataclasses
import os
from typing import NamedTuple

from vfejax.cli.limits import LARGEST_COUNT, check, check_numbers
from vfejax.cli.options import RunOptions
from vfejax.cli.plan import query
from vfejax.cli.plan.config import PlanConfig

__all__ = ["Chosen", "check_image", "chosen"]

OWN = ("query", "budget", "k_min", "k_max", "patch", "weights")
_SHARED = ("image", "steps", "log_every", "checkpoint_every", "temperature", "precision", "seed")


class Chosen(NamedTuple):
    """The options of a picture, or what they are by default; see ``PlanConfig``."""

    budget: int | None
    k_min: int
    k_max: int
    patch: int
    weights: tuple[float, float, float]


def chosen(config: PlanConfig) -> Chosen:
    """The options as they are used.

    >>> chosen(PlanConfig()).k_max
    400
    """
    return Chosen(
        config.budget,
        64 if config.k_min is None else config.k_min,
        400 if config.k_max is None else config.k_max,
        28 if config.patch is None else config.patch,
        (1.0, 1.0, 5.0) if config.weights is None else config.weights,
    )


def check_image(config: PlanConfig) -> None:
    """Raise a UserError for options of a picture without one, for others with one, and for values
    out of their limits.
    """
    if config.image is None:
        for name in OWN:
            value = getattr(config, name)
            check(value is None, name, _said(value), "left out without --image")
        return
    kept = {*OWN, *_SHARED, *RunOptions.SESSION}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        fits = field.name in kept or value == field.default
        check(fits, field.name, _said(value), "left out with --image")
    check_numbers(config, ["temperature"], positive=True)
    file = query.file_of(config.query)
    requirement = (
        "a colour by its name or as #rrggbb, a region x,y,width,height in pixels, or a picture "
        "that exists"
    )
    check(file is None or os.path.exists(file), "query", config.query, requirement)
    options = chosen(config)
    limit = f"at least 0 and at most {LARGEST_COUNT}"
    for name in ("k_min", "k_max"):
        value = getattr(options, name)
        check(0 <= value <= LARGEST_COUNT, name, value, limit)
    fits = options.k_min <= options.k_max
    check(fits, "k_min", options.k_min, f"at most --k-max {options.k_max}")
    if options.budget is not None:
        check(0 <= options.budget <= LARGEST_COUNT, "budget", options.budget, limit)
    check(1 <= options.patch <= 4096, "patch", options.patch, "at least 1 and at most 4096")
    fits = all(abs(weight) <= 1e6 for weight in options.weights)
    check(fits, "weights", _said(options.weights), "three numbers from -1e6 to 1e6")


def _said(value: object) -> object:
    return " ".join(map(str, value)) if isinstance(value, tuple) else value
