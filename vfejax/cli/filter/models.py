"""The model that ``vfejax filter`` asks for, by name or from a file."""

from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from vfejax.cli.filter import (
    emissions,
    free,
    generalized,
    hidden_markov,
    koopman,
    koopman_report,
    local_models,
    model_file,
    paths,
)
from vfejax.cli.filter.config import LOCAL, FilterConfig, is_file
from vfejax.cli.filter.emissions import GaussianStates, Symbols
from vfejax.cli.filter.estimates import Engine
from vfejax.cli.filter.generalized import Smooth
from vfejax.cli.filter.lifting import KoopmanModel
from vfejax.cli.filter.linear import Data, engine
from vfejax.cli.filter.local_models import Times
from vfejax.cli.filter.model_file import ModelFile
from vfejax.data.series import Series, irregular_step
from vfejax.errors import UserError
from vfejax.inference.chains.linear_gaussian import LinearGaussian, check_model
from vfejax.inference.chains.local_models import LocalModel, linear_gaussian
from vfejax.problems.oscillations import Oscillations

_SMALLEST_SPREAD = 1e-100
HIDDEN = {"hmm": GaussianStates, "discrete-hmm": Symbols}

__all__ = ["build", "check_window", "file_model", "given_file", "kind_of", "times_of"]


def given_file(config: FilterConfig) -> ModelFile | None:
    """The model file of ``--model``, checked; None for a name.

    Raises:
        UserError: naming file and key.
    """
    if config.model is None or not is_file(config.model):
        return None
    path = Path(config.model)
    found = model_file.read(path)
    try:
        file_model(found)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return found


def file_model(
    found: ModelFile, dt: float = 1.0
) -> LocalModel | LinearGaussian | GaussianStates | Symbols | Smooth | KoopmanModel:
    """The parameters in a model file.

    Args:
        found: the file.
        dt: time between rows, for a model that needs it and does not say.

    Raises:
        ValueError: naming the field whose values cannot be right.
    """
    if found.kind == generalized.KIND:
        generalized.check(found.fields)
        return Smooth.of(found.fields, dt)
    if found.kind == koopman.KIND:
        return koopman.of_fields(found.fields)
    if found.kind in HIDDEN:
        states = HIDDEN[found.kind](**{k: jnp.asarray(v) for k, v in found.fields.items()})
        emissions.check(states)
        return states
    if found.kind not in LOCAL:
        model = LinearGaussian(**{k: jnp.asarray(v) for k, v in found.fields.items()})
        check_model(model)
        return model
    parameters = LocalModel(**{k: jnp.asarray(v) for k, v in found.fields.items()})
    n, o = len(parameters.initial_mean), len(parameters.noise_std)
    order = local_models.ORDERS[found.kind]
    if n != order * o:
        raise ValueError(
            f"'initial_mean' has {n} entries, and {found.kind} of {o} series needs {order * o}"
        )
    for name, least in (("noise_std", "positive"), ("drift_std", "at least 0")):
        values = found.fields[name]
        bad = values <= 0 if least == "positive" else values < 0
        if np.any(bad):
            i = int(np.argmax(bad))
            raise ValueError(f"'{name}' is {values[i]:g} at [{i}]; it must be {least}")
    check_model(linear_gaussian(parameters, jnp.asarray(1.0)))
    return parameters


def kind_of(config: FilterConfig, given: ModelFile | None) -> str:
    """Name of the model."""
    if given is not None:
        return given.kind
    return config.model or ("local-trend" if config.file is None else "local-level")


def times_of(config: FilterConfig, kind: str, series: Series) -> Times:
    """Times between rows, as the model needs them.

    Args:
        config: the command's options.
        kind: name of the model.
        series: the data.

    Raises:
        UserError: naming the line, when steps are not equal and the model needs that.
    """
    count = len(series.values) - 1
    if series.times is None or config.spacing == "equal":
        return Times(np.ones(count), 1.0)
    odd = irregular_step(series.times)
    steps = np.diff(series.times)
    usual = float(np.median(steps))
    if kind in LOCAL:
        return Times(np.full(count, usual) if odd is None else steps, usual)
    if odd is not None:
        raise UserError(
            f"{config.file} line {series.lines[odd]}: the time step to {series.stamps[odd]} is "
            f"{steps[odd - 1]:g}, and {usual:g} elsewhere; {kind} needs equal steps: take "
            "local-level or local-trend, or count rows with --spacing equal"
        )
    return Times(np.full(count, usual), usual)


def build(
    config: FilterConfig,
    given: ModelFile | None,
    series: Series,
    truth: Oscillations | None = None,
) -> Engine:
    """The model of a series.

    Args:
        config: the command's options.
        given: the model file, if there is one.
        series: the data.
        truth: of the generated series of koopman.

    Raises:
        UserError: when the model does not fit the data.
    """
    kind = kind_of(config, given)
    names = series.names
    if given is not None and given.num_series != len(names):
        raise UserError(
            f"--model {config.model}: is for {given.num_series} series, and {config.file} has "
            f"{len(names)} ({', '.join(names)}); choose with --columns"
        )
    if given is None:
        _check_unit(series)
    times = times_of(config, kind, series)
    if kind == koopman.KIND:
        fitted, found = koopman.build(config, given, series)
        details = partial(koopman_report.details, config, found, series, times.future, truth)
        return fitted._replace(details=details)
    if kind in HIDDEN:
        return _hidden(config, kind, given, series)
    if kind == generalized.KIND:
        assert given is not None
        return _generalized(config, given, series, times)
    data = Data.of(series.values)
    if kind in LOCAL:
        parameters = (
            local_models.begin(config, kind, names, series.values, times)
            if given is None
            else file_model(given)
        )
        assert isinstance(parameters, LocalModel)
        return engine(local_models.chain(kind, parameters, names, times), data)
    start = (
        free.begin(config.states or 2, names, series.values, config.seed)
        if given is None
        else file_model(given)
    )
    assert isinstance(start, LinearGaussian)
    return engine(free.chain(start, names), data)


def _check_unit(series: Series) -> None:
    """Refuse a series that moves by so little that squares of it do not fit float64."""
    for name, column in zip(series.names, series.values.T, strict=True):
        spread = np.nanmax(column) - np.nanmin(column)
        if 0 < spread < _SMALLEST_SPREAD:
            raise UserError(
                f"column '{name}': its values differ by {spread:.3g} at most, too little for the "
                "squares of them; give it in a smaller unit"
            )


def check_window(config: FilterConfig, smooth: Smooth) -> None:
    """Refuse a model file whose windows have rows that float64 cannot tell apart.

    Raises:
        UserError: naming the file, with what to change.
    """
    try:
        generalized.check_window(smooth)
    except ValueError as error:
        raise UserError(f"{config.model}: {error}") from None


def _generalized(config: FilterConfig, given: ModelFile, series: Series, times: Times) -> Engine:
    smooth = file_model(given, times.future)
    assert isinstance(smooth, Smooth)
    check_window(config, smooth)
    timed = series.times is not None and config.spacing == "measured"
    if timed and not abs(smooth.dt - times.future) <= 1e-3 * smooth.dt:
        raise UserError(
            f"{config.file}: rows are {times.future:g} apart, and 'dt' in {config.model} is "
            f"{smooth.dt:g}; correct it, or count rows with --spacing equal"
        )
    if len(series.values) <= smooth.order:
        raise UserError(
            f"{config.file} has {len(series.values)} rows, and 'order' {smooth.order} in "
            f"{config.model} needs at least {smooth.order + 1}"
        )
    missing = np.argwhere(np.isnan(series.values))
    if len(missing):
        row, column = missing[0]
        raise UserError(
            f"{config.file} line {series.lines[row]}, column '{series.names[column]}': there is no "
            f"number, and {given.kind} needs every one; fill it in, or take lgssm, which does not"
        )
    return paths.engine(smooth, series.names, series.values)


def _hidden(config: FilterConfig, kind: str, given: ModelFile | None, series: Series) -> Engine:
    if given is None:
        start = emissions.begin(config.states or 2, series.names, series.values, config.seed)
        return hidden_markov.engine(kind, start, series.names, series.values)
    states = file_model(given)
    assert isinstance(states, GaussianStates | Symbols)
    if isinstance(states, Symbols):
        emissions.check_symbols(states, series)
    return hidden_markov.engine(kind, states, series.names, series.values)
