"""``--model koopman``: forecasts by powers of a linear map of observables, with intervals from
rows that it was not fitted on.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from vfejax.cli.filter import operator_choice
from vfejax.cli.filter.config import FilterConfig
from vfejax.cli.filter.estimates import Engine, Estimates, Measure
from vfejax.cli.filter.lifting import KoopmanModel, Lifting, forecasts, num_observables
from vfejax.cli.filter.model_file import ModelFile
from vfejax.cli.filter.operator_choice import Choice, Method, Split, errors
from vfejax.data.series import Series
from vfejax.errors import UserError
from vfejax.koopman.delays import half_widths

__all__ = ["KIND", "LOG_SCORE", "Forecaster", "build", "of_fields"]

KIND = "koopman"
LOG_SCORE = Measure("held-out score", 1, "raises")
_FEWEST = 20  # rows
_TINY = 1e-12  # least standard deviation of an error, in that of the series


class Forecaster(NamedTuple):
    """A model, the series it was made for, and how it does on the rows that were held out.

    Attributes:
        choice: the model, and how it was fitted; no method for one that was read from a file.
        split: of the rows.
        values: ``[t, o]``.
        lifted: observables of all rows ``[t, d]``, NaN where unknown.
        errors: of forecasts of held-out rows ``[h, p, o]``, in units of the model.
    """

    choice: Choice
    split: Split
    values: np.ndarray
    lifted: np.ndarray
    errors: np.ndarray

    @property
    def model(self) -> KoopmanModel:
        return self.choice.model

    def widths(self, interval: float, num_steps: int) -> np.ndarray:
        """Half the widths of intervals 1, 2, ... steps ahead ``[num_steps, o]``, in the data's
        units. Beyond a quarter of the held-out rows they grow as the model says.
        """
        known = self.errors.shape[1]
        found = half_widths(self.errors, interval)
        if num_steps > known:
            growth = np.sqrt(self._variances(num_steps))
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = growth[known:] / growth[known - 1]
            ratio = np.where(np.isnan(ratio), 1.0, ratio)  # no error at all
            found = np.concatenate([found, found[-1] * ratio])
        return self.model.scale * found[:num_steps]

    def _variances(self, num_steps: int) -> np.ndarray:
        """Of forecasts, when errors of one step are independent ``[num_steps, o]``."""
        held, (_, _, size) = self.split.held, self.errors.shape
        off = self.lifted[held:] - self.lifted[held - 1 : -1] @ self.model.operator.T
        off = off[~np.isnan(off[:, 0])]
        covariance = off.T @ off / max(len(off), 1)
        reach = np.eye(size, len(self.model.operator))
        found = np.empty((num_steps, size))
        with np.errstate(over="ignore", invalid="ignore"):
            for step in range(num_steps):
                found[step] = np.einsum("oi,ij,oj->o", reach, covariance, reach)
                reach = reach @ self.model.operator
            return np.cumsum(np.maximum(found, 0.0), axis=0)


def build(
    config: FilterConfig, given: ModelFile | None, series: Series
) -> tuple[Engine, Forecaster]:
    """Choose and fit a model, or take the one of a file, and test it on the last rows.

    Args:
        config: the command's options.
        given: the model file, if there is one.
        series: the data.

    Raises:
        UserError: when the rows are too few, or do not fit.
    """
    t = len(series.values)
    if t < _FEWEST:
        raise UserError(
            f"{config.file} has {t} rows, and koopman needs at least {_FEWEST}: some to fit, some "
            "to choose by, and some to test"
        )
    held = t - max(round(config.held_out * t), 4)
    split = Split(held - max(round(config.held_out * t), 4), held)
    if split.fit < 4:
        raise UserError(
            f"--held-out {config.held_out:g}: leaves {split.fit} of {t} rows to fit; take less"
        )
    choice = (
        operator_choice.choose(config, series.names, series.values, split)
        if given is None
        else Choice(of_fields(given.fields), Method("file", None, 0.0), 0)
    )
    model = choice.model
    lifted = model.lift(series.values)
    num_steps = max((t - held) // 4, 1)
    off = errors(model.operator, lifted, held, num_steps, series.values.shape[1])
    if np.all(np.isnan(off[:, 0]), axis=0).any():
        raise UserError(
            f"none of the last {t - held} rows, which are held out, can be forecast: missing "
            "entries are too many; fill them in, or lower --delays"
        )
    reach = np.all(np.any(~np.isnan(off), axis=0), axis=1)
    off = off[:, : int(np.argmin(reach)) or num_steps] if not reach.all() else off
    found = Forecaster(choice, split, series.values, lifted, off)
    engine = Engine(
        KIND,
        model,
        _no_update,
        lambda params: _score(found),
        lambda params, which, interval, horizon: _estimates(found, interval, horizon),
        partial(_document, names=series.names),
        measure=LOG_SCORE,
        num_blank={"predicted": _first_forecast(lifted)},
    )
    return engine, found


def _no_update(params: Any) -> Any:
    raise NotImplementedError  # --learn is refused


def _first_forecast(lifted: np.ndarray) -> int:
    known = ~np.isnan(lifted[:, 0])
    return int(np.argmax(known)) + 1 if known.any() else len(lifted)


def _score(found: Forecaster) -> float:
    """Log density of forecasts of held-out rows one step ahead, by normal errors of the size that
    those of the rows before them have, in nats.
    """
    size = found.errors.shape[2]
    before = errors(found.model.operator, found.lifted[: found.split.held], 1, 1, size)[:, 0]
    scale = np.sqrt(np.nanmean(before**2, axis=0)) + _TINY
    off = found.errors[:, 0] / scale
    density = -0.5 * off**2 - np.log(np.sqrt(2 * np.pi) * scale * found.model.scale)
    return float(np.nansum(density))


def _estimates(found: Forecaster, interval: float, horizon: int) -> Estimates:
    """Each row as the newest complete window before it forecasts it, and the rows to come."""
    model, lifted = found.model, found.lifted
    t, o = found.values.shape
    origins = np.where(~np.isnan(lifted[:, 0]), np.arange(t), -1)
    origins = np.maximum.accumulate(origins)
    origin = np.concatenate([[-1], origins, np.full(max(horizon - 1, 0), origins[-1])])
    origin = origin[: t + horizon]
    ahead = np.arange(t + horizon) - origin
    longest = int(ahead[origin >= 0].max())
    mean = np.full((t + horizon, o), np.nan)
    usual = (origin >= 0) & (ahead == 1)
    mean[usual] = model.series(lifted[origin[usual]] @ model.operator.T)
    for start in np.unique(origin[(origin >= 0) & (ahead > 1)]):
        rows = np.flatnonzero(origin == start)
        steps = forecasts(model.operator, lifted[start][None], int(ahead[rows[-1]]), o)[0]
        padded = np.pad(steps, ((0, 0), (0, lifted.shape[1] - o)))
        mean[rows] = model.series(padded)[ahead[rows] - 1]
    widths = found.widths(interval, longest)
    half = np.where(
        (origin >= 0)[:, None], widths[np.maximum(ahead, 1).clip(max=longest) - 1], np.nan
    )
    with np.errstate(over="ignore", invalid="ignore"):
        _check_growth(mean, half, origin, t)
    sizes = found.widths(0.6826894921, longest)[np.maximum(ahead[:t], 1).clip(max=longest) - 1]
    off = found.values - mean[:t]
    none = np.zeros((t + horizon, 0))
    return Estimates(
        mean=mean,
        lower=None,
        upper=None,
        new_lower=mean - half,
        new_upper=mean + half,
        state_names=(),
        state_mean=none,
        state_lower=none,
        state_upper=none,
        states=None,
        log_evidence=_score(found),
        residuals=off / np.maximum(sizes, _TINY * model.scale),
    )


def _check_growth(mean: np.ndarray, half: np.ndarray, origin: np.ndarray, num_rows: int) -> None:
    """Refuse forecasts of a map that grows until numbers are too large."""
    bad = ~np.isfinite(mean + half).all(axis=1) & (origin >= 0)
    if bad.any():
        row = int(np.argmax(bad))
        where = f"{row + 1 - num_rows} steps ahead" if row >= num_rows else f"of row {row}"
        raise UserError(
            f"the forecast {where} is too large to be a number: the map grows; lower --horizon, or "
            "--delays and --degree, or raise --ridge"
        )


def _document(model: KoopmanModel, names: tuple[str, ...]) -> dict[str, Any]:
    """The model as a file of ``--model`` has it."""
    fields = {name: np.asarray(value).tolist() for name, value in model._asdict().items()}
    counts = {name: int(fields[name]) for name in ("delays", "degree")}
    return {"model": KIND, "columns": list(names), **fields, **counts}


def of_fields(fields: dict[str, np.ndarray]) -> KoopmanModel:
    """The model in a file, checked.

    Args:
        fields: arrays by name.

    Raises:
        ValueError: naming the field whose values cannot be right.
    """
    _check(fields)
    return KoopmanModel(**fields)


def _check(fields: dict[str, np.ndarray]) -> None:
    """Raise ValueError, naming the field, unless the fields of a file are a model."""
    for name, most in (("delays", operator_choice.LARGEST), ("degree", 3)):
        value = float(fields[name])
        if not (value == int(value) and 1 <= value <= most):
            raise ValueError(f"'{name}' must be a whole number from 1 to {most}, got {value:g}")
    lifting = Lifting(int(fields["delays"]), int(fields["degree"]))
    wanted = num_observables(lifting, len(fields["mean"]))
    if len(fields["centre"]) != wanted:
        raise ValueError(
            f"'centre' has {len(fields['centre'])} entries, and {wanted} observables are those of "
            f"{len(fields['mean'])} series with 'delays' {lifting.delays} and 'degree' "
            f"{lifting.degree}"
        )
    if not np.all(fields["scale"] > 0):
        raise ValueError("'scale' must be positive")
