"""Options of ``vfejax filter``: their meaning, their defaults, their limits."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from vfejax.cli import options as configuration
from vfejax.cli.limits import LARGEST_COUNT, check, check_numbers, check_run
from vfejax.cli.options import RunOptions
from vfejax.errors import UserError

__all__ = ["LOCAL", "MODELS", "FilterConfig", "check_values", "columns_of", "is_file", "parse"]

MODELS = {
    "local-level": "each series is a level that wanders, seen with noise",
    "local-trend": "each series is a level whose slope wanders (constant velocity), with noise",
    "lgssm": "a linear Gaussian state space model whose every matrix is learned",
    "hmm": "a hidden Markov model: one Gaussian per state",
    "koopman": "a linear map of the newest rows and their products, which forecasts by its powers",
}
"""What each model says, by its name. Those of ``LOCAL`` follow time stamps that are not evenly
spaced, and need no learning.
"""
LOCAL = ("local-level", "local-trend")
_LARGEST_HORIZON = 1_000_000


@dataclass(frozen=True)
class FilterConfig(RunOptions):
    """Estimate the hidden states behind noisy series, with intervals.

    FILE is a CSV with a header, one row per time; empty cells are missing. Without a file it tracks
    the embedded moving target, whose truth is known. With --online it reads lines from standard
    input and answers each at once; it writes no run directory then.
    """

    CHANGEABLE: ClassVar[tuple[str, ...]] = ("steps", "checkpoint_every")
    INPUTS: ClassVar[tuple[str, ...]] = ("file",)

    file: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="FILE.csv")] = None
    """CSV of the series; without one, the embedded moving target."""
    out: Path = Path("runs/filter")
    """Run directory to create."""
    seed: int = 0
    """Seed of the embedded target, and of the starts of --learn for lgssm and hmm."""

    model: str | None = None
    """local-level (each series is a random walk), local-trend (its slope is a random walk), lgssm
    (linear Gaussian state space), hmm (hidden Markov, Gaussian emissions) or koopman (a linear map
    of the newest rows forecasts, with its eigenvalues and held-out errors); or a TOML file with the
    parameters, such as model.toml of an earlier run, or a linear model in continuous time with
    smooth noise, model = "generalized". By default local-level for a file, local-trend for the
    embedded target.
    """
    states: int | None = None
    """Number of states of lgssm (size of the state) and hmm; 2 by default."""
    delays: int | None = None
    """Number of newest rows from which koopman forecasts. This option, --degree, --operator, --rank
    and --ridge are chosen on held-out rows where they are not given.
    """
    degree: int | None = None
    """Largest degree of the monomials of these rows that koopman maps; 1 is the rows themselves."""
    operator: Literal["ridge", "reduced-rank", "total-least-squares"] | None = None
    """How koopman fits its map; total-least-squares is for series with measurement noise."""
    rank: int | None = None
    """Rank of the map of koopman: two for every oscillation and one for every decay. Not with
    ridge.
    """
    ridge: float | None = None
    """Penalty on the map of koopman, as a share of the variance of a series; 0 for none."""
    held_out: float = 0.2
    """Share of the rows, the last ones, on which koopman measures errors and intervals; as many
    before them choose the model.
    """
    noise_std: float | None = None
    """Standard deviation of the observation noise of the local models, in the data's unit;
    estimated from the data by default.
    """
    drift_std: float | None = None
    """Standard deviation of the random walk of the level (local-level) or of the slope
    (local-trend), in the data's unit (per time) per root of time; estimated from the data by
    default.
    """
    columns: str | None = None
    """Columns to read, separated by commas; all but the time by default."""
    time: str | None = None
    """Column with the time: numbers, or ISO dates. By default a column called time, t, date,
    datetime or timestamp; without one, rows are one step apart.
    """
    spacing: Literal["measured", "equal"] = "measured"
    """Whether steps are as long as the time stamps say, or all equal."""

    estimate: Literal["smoothed", "filtered", "predicted"] | None = None
    """Estimates given all rows (smoothed), those up to each one (filtered), or those before it
    (predicted). Smoothed by default, filtered with --online, predicted with koopman.
    """
    interval: float = 0.95
    """Probability of the intervals."""
    horizon: int | None = None
    """Number of steps to predict after the last row; 0 by default, 24 with koopman."""

    learn: bool = False
    """Learn the parameters by expectation maximisation. For a generalized model: learn those
    parameters that have a prior in the file, and the scales of the precisions, by dynamic
    expectation maximisation.
    """
    steps: int = 500
    """Largest number of iterations of --learn."""
    tolerance: float = 1e-3
    """--learn ends when an iteration raises the log evidence, or lowers the free energy, by less
    than this, in nats.
    """
    log_every: int = 5
    """Iterations between rows of metrics.csv."""
    checkpoint_every: int = 50
    """Iterations between checkpoints, a multiple of --log-every."""

    online: bool = False
    """Read lines from standard input and print an estimate after each. A line that cannot be read
    is reported and skipped. Ends with the input, or with Ctrl-C.
    """
    warm_up: int = 20
    """With --online and a local model without --noise-std and --drift-std: number of lines that are
    read before the first estimate, to set them.
    """


def parse(arguments: Sequence[str]) -> FilterConfig:
    """Flags over the configuration file (or, with --resume, over the run's own configuration) over
    the defaults.
    """
    config = configuration.parse_run(FilterConfig, arguments, program="vfejax filter")
    if config.model is not None and is_file(config.model):
        return dataclasses.replace(config, model=os.path.abspath(config.model))
    return config


def is_file(model: str) -> bool:
    """Whether ``--model`` is the path of a file rather than a name.

    >>> is_file("local-level"), is_file("runs/filter/model.toml")
    (False, True)
    """
    return model.endswith(".toml") or os.sep in model


def columns_of(config: FilterConfig) -> tuple[str, ...]:
    """The names in ``--columns``.

    >>> columns_of(FilterConfig(columns="x, y"))
    ('x', 'y')
    """
    given = (config.columns or "").split(",")
    return tuple(name.strip() for name in given if name.strip())


def check_values(config: FilterConfig) -> None:
    """Raise a UserError that names the option and its limits for the first value that is out of
    them.
    """
    check_run(config)
    model = config.model
    known = model is None or model in MODELS or is_file(model)
    check(known, "model", model, f"one of {', '.join(MODELS)}, or a file that ends in .toml")
    check(0 < config.interval < 1, "interval", config.interval, "between 0 and 1")
    limit = f"at least 0 and at most {_LARGEST_HORIZON}"
    horizon = config.horizon or 0
    check(0 <= horizon <= _LARGEST_HORIZON, "horizon", horizon, limit)
    check_numbers(config, ["tolerance"], positive=False)
    for name in ("noise_std", "drift_std"):
        if getattr(config, name) is not None:
            check_numbers(config, [name], positive=True)
            local = model is None or model in LOCAL
            check(local, name, getattr(config, name), f"left out with --model {model}")
    if config.columns is not None:
        check(bool(columns_of(config)), "columns", repr(config.columns), "names of columns")
    _check_states(config)
    _check_koopman(config)
    _check_data(config)
    if config.online:
        _check_online(config)


def _check_states(config: FilterConfig) -> None:
    if config.states is None:
        return
    check(1 <= config.states <= 100, "states", config.states, "at least 1 and at most 100")
    needs = config.model in ("lgssm", "hmm")
    check(needs, "states", config.states, "left out without --model lgssm or hmm")


def _check_koopman(config: FilterConfig) -> None:
    given = config.model is not None and is_file(config.model)
    if config.model != "koopman":
        for name in ("delays", "degree", "operator", "rank", "ridge"):
            value = getattr(config, name)
            check(value is None, name, value, "left out without --model koopman")
        usual = config.held_out == FilterConfig.held_out or given
        check(usual, "held_out", config.held_out, "left out without --model koopman")
    check(0 < config.held_out < 0.5, "held_out", config.held_out, "between 0 and 0.5")
    limits = {"delays": (1, 1000), "degree": (1, 3), "rank": (1, 1000)}
    for name, (least, most) in limits.items():
        value = getattr(config, name)
        fits = value is None or least <= value <= most
        check(fits, name, value, f"at least {least} and at most {most}")
    if config.ridge is not None:
        check_numbers(config, ["ridge"], positive=False)
        fits = config.operator != "total-least-squares"
        check(fits, "ridge", config.ridge, "left out with --operator total-least-squares")
    if config.rank is not None:
        fits = config.operator != "ridge"
        check(fits, "rank", config.rank, "left out with --operator ridge, whose map has full rank")
    if config.operator == "total-least-squares":
        fits = config.degree in (None, 1)
        requirement = "1 with --operator total-least-squares: noise on products is not equal"
        check(fits, "degree", config.degree, requirement)
    if config.model == "koopman":
        _check_koopman_run(config)


def _check_koopman_run(config: FilterConfig) -> None:
    """Refuse what has no meaning for a map that is fitted in one go and forecasts."""
    requirement = "left out with --model koopman, which is always fitted"
    check(not config.learn, "learn", config.learn, requirement)
    fits = config.estimate in (None, "predicted")
    check(fits, "estimate", config.estimate, "predicted with --model koopman, which forecasts")
    requirement = "another one with --online: koopman needs every row before it forecasts"
    check(not config.online, "model", config.model, requirement)


def _check_data(config: FilterConfig) -> None:
    """Refuse what has no meaning for the embedded target, and models that nothing is known of."""
    if config.file is None and not config.online:
        for name in ("columns", "time"):
            value = getattr(config, name)
            check(value is None, name, value, "left out without a file")
        fits = config.model in (None, "local-trend", "koopman")
        requirement = "left out without a file: the embedded target has its own"
        check(fits, "model", config.model, requirement)
    if config.model in ("lgssm", "hmm") and not config.online:
        requirement = "given with --learn, or as a file with its parameters"
        check(config.learn, "model", config.model, requirement)


def _check_online(config: FilterConfig) -> None:
    if config.file is not None:
        raise UserError(f"--online reads standard input; leave out {config.file}, or --online")
    for name in ("learn", "resume", "tensorboard"):
        if getattr(config, name):
            raise UserError(f"--{name}: cannot be given with --online; leave one of them out")
    check(not config.horizon, "horizon", config.horizon, "left out with --online")
    fits = config.estimate != "smoothed"
    requirement = "filtered or predicted with --online, which knows no later rows"
    check(fits, "estimate", config.estimate, requirement)
    fits = config.model not in ("lgssm", "hmm")
    requirement = (
        "a file of its parameters with --online; learn one from earlier rows with "
        f"'vfejax filter FILE.csv --model {config.model} --learn', and give --model "
        "runs/filter/model.toml"
    )
    check(fits, "model", config.model, requirement)
    limit = f"at least 3 and at most {LARGEST_COUNT}"
    check(3 <= config.warm_up <= LARGEST_COUNT, "warm_up", config.warm_up, limit)
