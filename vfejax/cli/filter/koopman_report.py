"""The report of ``vfejax filter --model koopman``: eigenvalues, errors, pictures."""

from collections.abc import Iterator
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from vfejax.cli.drawing import sketched
from vfejax.cli.filter.config import FilterConfig
from vfejax.cli.filter.estimates import Details
from vfejax.cli.filter.koopman import Forecaster
from vfejax.cli.filter.operator_checks import SMALLEST, Mode, held_out_factor, losses, modes
from vfejax.data.series import Series
from vfejax.koopman import spectrum
from vfejax.koopman.streaming import Factor
from vfejax.problems.oscillations import Oscillations
from vfejax.runs.report import Picture

__all__ = ["details", "lines"]

if TYPE_CHECKING:
    from vfejax.figures import spectra
else:
    spectra = sketched("vfejax.figures.spectra")

_MOST_MODES = 12  # in the table on the terminal


def details(
    config: FilterConfig,
    found: Forecaster,
    series: Series,
    step: float,
    truth: Oscillations | None,
) -> Details:
    """What the report adds to that of other models.

    Args:
        config: the command's options.
        found: the model and its errors.
        series: the data.
        step: time between rows.
        truth: of the generated series.
    """
    factor = held_out_factor(found)
    pairs = spectrum.eig(found.model.operator)
    listed = modes(pairs, factor, step)
    unit = "rows" if series.clock is None else series.clock.unit
    summary = _summary(found, listed, unit, truth, step)
    heads = (*("eigenvalue", "modulus"), *(_of(name, unit) for name in ("period", "decay time")))
    rows = [
        (
            _complex(mode.eigenvalue),
            Decimal(f"{abs(mode.eigenvalue):.4f}"),
            "" if mode.period is None else _number(mode.period),
            _number(mode.decay),
            Decimal(f"{mode.residual:.3f}"),
            "spurious" if mode.spurious else "",
        )
        for mode in listed
    ]
    table = "\n".join(_loss_lines(summary["errors_in_standard_deviations"]))
    said = "Root mean square errors of forecasts of held-out rows, in standard deviations."
    return Details(
        summary,
        (*heads, "residual", ""),
        rows,
        [(said, table)],
        _notes(config, found, listed, unit),
        partial(_pictures, pairs, factor, truth),
    )


def _summary(
    found: Forecaster,
    listed: list[Mode],
    unit: str,
    truth: Oscillations | None,
    step: float,
) -> dict[str, Any]:
    method, lifting = found.choice.method, found.model.lifting
    t, split = len(found.values), found.split
    summary: dict[str, Any] = {
        "delays": lifting.delays,
        "degree": lifting.degree,
        "observables": len(found.model.operator),
        "operator": method.operator,
        "rank": method.rank,
        "ridge": method.ridge,
        "models_tried": found.choice.num_tried,
        "rows_fitted": 0 if method.operator == "file" else split.held,
        "rows_held_out": t - split.held,
        "unit_of_time": unit,
        "spectrum": [
            {
                "real": mode.eigenvalue.real,
                "imaginary": mode.eigenvalue.imag,
                "period": mode.period,
                "decay_time": mode.decay if np.isfinite(mode.decay) else None,
                "residual": mode.residual,
                "spurious": mode.spurious,
            }
            for mode in listed
        ],
        "errors_in_standard_deviations": {
            name: {str(p): value for p, value in row.items()} for name, row in losses(found).items()
        },
    }
    if truth is not None:
        scales = spectrum.time_scales(truth.eigenvalues, step)
        summary["true_spectrum"] = [
            {"period": float(1 / f), "decay_time": float(d)} for d, f in zip(*scales, strict=True)
        ]
    return summary


def _notes(config: FilterConfig, found: Forecaster, listed: list[Mode], unit: str) -> list[str]:
    t, held = len(found.values), found.split.held
    fitted = found.choice.method.operator != "file"
    reach = found.errors.shape[1]
    notes = [
        f"The last {t - held} of {t} rows were not used to {'fit or choose' if fitted else 'fit'}: "
        "residuals, errors and intervals come from them. An interval p steps ahead is as wide as "
        f"{100 * config.interval:g} % of the errors of such forecasts need; beyond {reach} steps "
        "it grows as the model says."
    ]
    if any(mode.spurious for mode in listed):
        notes.append(
            "A mode is called spurious where its residual is as large as its eigenvalue: the rows "
            "do not tell it from one that is over within a step."
        )
    growing = [mode for mode in listed if abs(mode.eigenvalue) > 1 + 1e-9]
    if growing:
        time = min(-mode.decay for mode in growing)
        notes.append(
            f"{len(growing)} modes grow, the fastest by e in {time:.4g} {unit}: do not trust "
            "forecasts over times as long as that."
        )
    return notes


def _of(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name


def _complex(value: complex) -> str:
    if value.imag == 0:
        return f"{value.real:.4f}"
    return f"{value.real:.4f} ± {value.imag:.4f}i"


def _number(value: float) -> Decimal | str:
    return Decimal(f"{value:.4g}") if np.isfinite(value) else "never"


def _loss_lines(rows: dict[str, dict[str, float]]) -> list[str]:
    steps = list(next(iter(rows.values())))
    lines = [f"{'steps ahead':<16}" + "".join(f"{p:>10}" for p in steps)]
    for name, row in rows.items():
        lines.append(f"{name:<16}" + "".join(f"{row[p]:>10.4g}" for p in steps if p in row))
    return lines


def lines(summary: dict[str, Any]) -> list[str]:
    """The tables for a terminal.

    Args:
        summary: of the run.
    """
    unit = summary["unit_of_time"]
    rank = "" if summary["rank"] is None else f" of rank {summary['rank']}"
    tried = summary["models_tried"]
    chosen = f", the best of {tried} models" if tried > 1 else ""
    found = [
        f"{summary['observables']} observables ({summary['delays']} rows, degree "
        f"{summary['degree']}), {summary['operator']}{rank}{chosen}; {summary['rows_held_out']} "
        "rows held out",
        f"{'eigenvalue':<20}{_of('period', unit):>16}{_of('decay time', unit):>20}{'residual':>10}",
    ]
    for mode in summary["spectrum"][:_MOST_MODES]:
        value = _complex(complex(mode["real"], mode["imaginary"]))
        period = "-" if mode["period"] is None else f"{mode['period']:.4g}"
        decay = "never" if mode["decay_time"] is None else f"{mode['decay_time']:.4g}"
        mark = "  spurious" if mode["spurious"] else ""
        found.append(f"{value:<20}{period:>16}{decay:>20}{mode['residual']:>10.3f}{mark}")
    more = len(summary["spectrum"]) - _MOST_MODES
    if more > 0:
        found.append(f"{more} more in summary.json")
    for mode in summary.get("true_spectrum", ()):
        found.append(f"{'truth':<20}{mode['period']:>16.4g}{mode['decay_time']:>20.4g}")
    found.append("errors of forecasts of held-out rows, in standard deviations")
    return [*found, *_loss_lines(summary["errors_in_standard_deviations"])]


def _pictures(
    pairs: spectrum.Spectrum, factor: Factor, truth: Oscillations | None
) -> Iterator[Picture]:
    kept = np.abs(pairs.values) > SMALLEST
    true = None
    if truth is not None:
        true = np.concatenate([truth.eigenvalues, np.conj(truth.eigenvalues)])
    yield Picture(
        "spectrum",
        "Eigenvalues of the map",
        "Each eigenvalue is a mode. Its angle is the change of phase in a step, and its modulus "
        "the factor by which the amplitude changes; on the unit circle it does not decay. The "
        "paler an eigenvalue, the larger its residual on held-out rows.",
        spectra.spectrum(
            pairs.values[kept],
            spectrum.residuals(factor, pairs.values[kept], pairs.functions[:, kept]),
            true=true,
        ),
    )
