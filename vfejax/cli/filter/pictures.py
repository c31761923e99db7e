"""The pictures of ``vfejax filter``: the track, series with bands, learning, states, residuals."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vfejax.cli.drawing import sketched
from vfejax.cli.filter.config import FilterConfig
from vfejax.cli.filter.estimates import Estimates, Measure, half_width
from vfejax.cli.filter.residuals import autocorrelation
from vfejax.data.series import Series
from vfejax.problems.moving_target import Target
from vfejax.runs.report import Picture

__all__ = ["pictures"]

if TYPE_CHECKING:
    from vfejax.figures import series as figures
else:
    figures = sketched("vfejax.figures.series")

_MOST_SERIES = 6  # that a picture has room for


class _Axis(NamedTuple):
    times: np.ndarray
    name: str
    dates: bool


def _axis(series: Series, horizon: int) -> _Axis:
    count = len(series.values)
    times = np.arange(count + horizon, dtype=np.float64)
    if series.times is None or series.clock is None:
        return _Axis(times, series.time_name, False)
    step = float(np.median(np.diff(series.times)))
    known = np.concatenate([series.times, series.times[-1] + step * np.arange(1, horizon + 1)])
    if series.clock.days is None:
        return _Axis(known, series.time_name, False)
    return _Axis(np.array([series.clock.days(t) for t in known]), series.time_name, True)


def pictures(
    config: FilterConfig,
    series: Series,
    found: Estimates,
    target: Target | None,
    metrics: dict[str, np.ndarray],
    measure: Measure,
) -> Iterator[Picture]:
    """The pictures in the order of the report, drawn when they are asked for.

    Args:
        config: the command's options.
        series: the data.
        found: the estimates.
        target: the truth, of the embedded target.
        metrics: columns of ``metrics.csv``.
        measure: what learning improves.
    """
    axis = _axis(series, config.horizon or 0)
    if target is not None:
        yield _track(config, found, target)
    yield _bands(config, series, found, target, axis)
    if found.states is not None:
        yield _states(found, axis)
    if len(metrics["step"]) > 1:
        yield Picture(
            "learning",
            f"{measure.name.capitalize()} while parameters are learned",
            f"How far the {measure.name} was from where it ended; an iteration {measure.improves} "
            "it. A curve that is still high at its end has not settled: allow more --steps.",
            figures.evidence(metrics["step"], metrics[measure.column], measure.name, measure.sign),
        )
    yield _residuals(series, found, axis)


def _track(config: FilterConfig, found: Estimates, target: Target) -> Picture:
    assert found.lower is not None
    assert found.upper is not None
    count = len(target.times)
    std = (found.upper - found.lower)[:count] / (2 * half_width(config.interval))
    covs = std[:, :, None] ** 2 * np.eye(2)
    which = config.estimate or "smoothed"
    given = {
        "smoothed": "all fixes, earlier and later ones",
        "filtered": "the fixes up to its time",
        "predicted": "the fixes before its time",
    }
    alone = "only those before and after the gap say where the boat was"
    if which != "smoothed":
        alone = "the estimate goes on with the velocity that it knows"
    return Picture(
        "track",
        "The boat, its fixes, and where it was",
        f"The {which} estimate uses {given[which]}. Each ellipse contains the true place with a "
        f"probability of {100 * config.interval:g} %, if the scales of motion and noise are right. "
        f"They grow where fixes are missing: {alone}.",
        figures.track(
            target.observations, target.truth, found.mean[:count], covs, interval=config.interval
        ),
    )


def _bands(
    config: FilterConfig, series: Series, found: Estimates, target: Target | None, axis: _Axis
) -> Picture:
    names = series.names[:_MOST_SERIES]
    chosen = slice(0, len(names))
    observed = {name: series.values[:, j] for j, name in enumerate(names)}
    inner = None
    if found.lower is not None and found.upper is not None:
        inner = (found.lower[:, chosen], found.upper[:, chosen])
    which = config.estimate or "smoothed"
    ahead = (
        f" Right of the dashed line are {config.horizon} steps of forecast."
        if config.horizon
        else ""
    )
    left_out = len(series.names) - len(names)
    more = f" {left_out} more series are in estimates.csv." if left_out else ""
    band = (
        f"The dark band holds the series without its noise with a probability of "
        f"{100 * config.interval:g} %; the light one holds a new observation with that probability."
        if inner is not None
        else f"The band holds an observation with a probability of {100 * config.interval:g} %."
    )
    return Picture(
        "series",
        f"Series and {which} estimates",
        band + ahead + more + ("" if target is None else " Metres over seconds."),
        figures.series_bands(
            axis.times,
            observed,
            found.mean[:, chosen],
            inner,
            (found.new_lower[:, chosen], found.new_upper[:, chosen]),
            interval=config.interval,
            num_rows=len(series.values),
            truth=None if target is None else target.truth,
            xlabel=axis.name,
            dates=axis.dates,
        ),
    )


def _states(found: Estimates, axis: _Axis) -> Picture:
    assert found.states is not None
    count = len(found.states.path)
    return Picture(
        "states",
        "Which state, and how sure",
        "Above: the probability of each state at each time. Below: the most probable sequence of "
        "states (Viterbi), which may differ from the most probable state of each time.",
        figures.state_occupancy(
            axis.times[:count],
            found.states.probabilities[:count],
            found.states.path,
            xlabel=axis.name,
            dates=axis.dates,
        ),
    )


def _residuals(series: Series, found: Estimates, axis: _Axis) -> Picture:
    names = series.names[:_MOST_SERIES]
    values: dict[str, Any] = {name: found.residuals[:, j] for j, name in enumerate(names)}
    num_lags = min(20, len(series.values) - 1)
    return Picture(
        "residuals",
        "Does the model fit?",
        "Residuals are how far each observation was from its prediction by the rows before it, in "
        "standard deviations. If the model fits, 95 % lie in the grey band on the left, 19 of 20 "
        "autocorrelations in that of the middle, and quantiles follow the line on the right.",
        figures.residual_checks(
            axis.times[: len(series.values)],
            values,
            {name: autocorrelation(x, num_lags) for name, x in values.items()},
            xlabel=axis.name,
            dates=axis.dates,
        ),
    )
