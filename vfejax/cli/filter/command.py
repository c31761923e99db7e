"""``vfejax filter``: hidden states behind noisy series are estimated, with intervals.

Without arguments: a boat whose velocity wanders is tracked through noisy fixes with gaps.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vfejax.cli import drawing
from vfejax.cli import session as sessions
from vfejax.cli.filter import estimates, koopman, model_file, models, online, synthetic_series
from vfejax.cli.filter import report as filter_report
from vfejax.cli.filter.config import LOCAL, FilterConfig, check_values, columns_of, parse
from vfejax.cli.filter.estimates import Engine
from vfejax.cli.filter.model_file import ModelFile
from vfejax.data.files import atomic_write
from vfejax.data.series import Series, load_series
from vfejax.errors import UserError
from vfejax.problems import oscillations
from vfejax.problems.moving_target import Target
from vfejax.problems.oscillations import Oscillations
from vfejax.runs import loop
from vfejax.types import PyTree

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Parse, estimate, and return the exit status."""
    config = parse(arguments)
    check_values(config)
    jax.config.update("jax_enable_x64", True)  # data are read in float64
    return online.run(config) if config.online else _filter(config)


def _read(config: FilterConfig, given: ModelFile | None) -> Series:
    assert config.file is not None
    columns = columns_of(config)
    if columns or given is None or given.columns is None:
        return load_series(config.file, columns, config.time)
    try:
        return load_series(config.file, given.columns, config.time)
    except UserError as error:
        if "--columns" not in str(error):
            raise
        raise UserError(
            f"--model {config.model}: is for the columns {', '.join(given.columns)}, and not all "
            f"of them are in {config.file}; name those to take instead with --columns"
        ) from None


def _filter(config: FilterConfig) -> int:
    """Read, learn where asked to, estimate, and write the run."""
    drawing.begin()
    given = models.given_file(config)
    inputs = {"FILE": config.file, "model": Path(config.model or "") if given else None}
    sessions.compare(config, inputs)
    config, target, truth = _defaults(config, models.kind_of(config, given))
    if target is not None:
        series = synthetic_series.series(target)
    else:
        series = _read(config, given) if truth is None else synthetic_series.oscillating(truth)
    engine = models.build(config, given, series, truth)
    if target is not None and config.learn:
        engine = engine._replace(params=synthetic_series.wrong(engine.params))
    impossible = _impossible(config, engine, series)
    with sessions.begin(config, "filter", inputs) as session:
        for note in (*impossible, *_guessed(config, engine, given)):
            session.note(note)
        if not config.learn:
            session = session._replace(config=dataclasses.replace(config, steps=0))
        outcome = session.advance(_program(config, engine), unit="iterations")
        params = outcome.state
        which = config.estimate or "smoothed"
        horizon = config.horizon or 0
        found = engine.estimates(params, which, config.interval, horizon)
        _check(engine.num_blank.get(which, 0), found)
        stamps = (*series.stamps, *estimates.future_stamps(series, horizon))
        run = session.run
        atomic_write(run.file("estimates.csv"), estimates.table(series, found, stamps))
        document = model_file.write(engine.document(params))
        atomic_write(run.file("model.toml"), document)
        session.say("drawing the pictures")
        report, summary = filter_report.build(
            filter_report.Result(config, series, engine, params, found, target, run, document)
        )
        return session.finish(outcome, report, summary, filter_report.summary_text)


def _defaults(
    config: FilterConfig, kind: str
) -> tuple[FilterConfig, Target | None, Oscillations | None]:
    """What depends on the model: options that were not given, and the embedded series."""
    if kind != koopman.KIND:
        known = dataclasses.replace(config, horizon=config.horizon or 0)
        return known, synthetic_series.draw(config) if config.file is None else None, None
    if config.learn or config.estimate not in (None, "predicted"):
        raise UserError(
            f"--model {config.model}: is of koopman, which forecasts and learns nothing more; "
            "leave out --learn and --estimate"
        )
    horizon = 24 if config.horizon is None else config.horizon
    known = dataclasses.replace(config, horizon=horizon, estimate="predicted")
    truth = None
    if config.file is None:
        truth = oscillations.simulate(np.random.default_rng(config.seed))
    return known, None, truth


def _program(config: FilterConfig, engine: Engine) -> loop.Program:
    """Learning as the loop runs it; without --learn it makes no step.

    Raises:
        UserError: when the log evidence is not finite at the start.
    """
    measure = engine.measure

    def observe(step: int, params: PyTree, infos: Any, memory: PyTree) -> loop.Observation:
        value = engine.evidence(params)
        if infos is None:
            if np.isnan(value) or (config.learn and np.isinf(value)):
                raise UserError(
                    f"the {measure.name} of the model is not finite; check its covariances, and "
                    "the data for values far from all others"
                )
            return loop.Observation({measure.column: measure.sign * value}, memory)
        rise = value - float(np.asarray(infos)[-1])
        settled = np.array(rise < config.tolerance)
        reason = _reason(config, engine, settled)
        return loop.Observation({measure.column: measure.sign * value}, settled, stop=reason)

    return loop.Program(
        init=lambda: engine.params,
        step=lambda params, _: engine.update(params),
        observe=observe,
        memory=np.array(False),
        watched=lambda infos: {measure.name: infos},
        advice="learn fewer --states, or from more rows",
        ended=lambda step, memory: _reason(config, engine, memory),
    )


def _reason(config: FilterConfig, engine: Engine, settled: np.ndarray) -> str:
    if not settled:
        return ""
    measure = engine.measure
    return (
        f"learning settled: an iteration {measure.improves} the {measure.name} by less than "
        f"{config.tolerance:g} nats (--tolerance)"
    )


def _impossible(config: FilterConfig, engine: Engine, series: Series) -> list[str]:
    """A remark about rows that no state of the model explains.

    Raises:
        UserError: with --learn, which cannot begin from there.
    """
    rows = engine.impossible(engine.params)
    if not len(rows):
        return []
    row = int(rows[0])
    values = ", ".join(f"{value:g}" for value in series.values[row])
    more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
    said = (
        f"line {series.lines[row]}, {series.time_name} {series.stamps[row]}{more}: no state of the "
        f"model allows the observation {values}"
    )
    if config.learn:
        raise UserError(f"{said}, so nothing can be learned from there; begin from another model")
    return [f"{said}; the log evidence is -inf, and estimates go on as if it were missing"]


def _guessed(config: FilterConfig, engine: Engine, given: ModelFile | None) -> list[str]:
    """A remark about scales that nobody gave and nobody learned."""
    both = config.noise_std is not None and config.drift_std is not None
    if engine.kind not in LOCAL or config.learn or both or given is not None:
        return []
    return ["noise and drift are estimated roughly, from differences of rows; --learn fits them"]


def _check(num_blank: int, found: estimates.Estimates) -> None:
    bad = ~np.all(np.isfinite(found.mean), axis=1)[num_blank:]
    if np.any(bad):
        raise UserError(
            f"the estimate of row {num_blank + int(np.argmax(bad))} is not finite; check the "
            "covariances of the model, and the data for values far from all others"
        )
