"""The embedded series: the moving target and how far an estimate is from the truth, and the
oscillations of koopman.
"""

import numpy as np

from vfejax.cli.filter.config import FilterConfig
from vfejax.cli.filter.estimates import Engine, Estimates
from vfejax.data.series import Series
from vfejax.data.timestamps import NUMBERS
from vfejax.inference.chains.local_models import LocalModel
from vfejax.problems import moving_target
from vfejax.problems.moving_target import Accuracy, Target
from vfejax.problems.oscillations import Oscillations
from vfejax.types import PyTree

__all__ = ["accuracies", "draw", "oscillating", "series", "wrong"]


def draw(config: FilterConfig) -> Target:
    """The target of a seed."""
    return moving_target.simulate(np.random.default_rng(config.seed))


def series(target: Target) -> Series:
    """Its fixes, as a file would have them."""
    stamps = tuple(f"{time:g}" for time in target.times)
    lines = np.arange(2, 2 + len(stamps))
    return Series(("x", "y"), target.observations, target.times, stamps, "time", NUMBERS, lines)


def oscillating(found: Oscillations) -> Series:
    """Two series with a known spectrum, as a file would have them."""
    stamps = tuple(str(i) for i in range(len(found.observations)))
    lines = np.arange(2, 2 + len(stamps))
    return Series(("x", "y"), found.observations, None, stamps, "row", None, lines)


def wrong(params: PyTree) -> LocalModel:
    """Where learning begins: a wandering 10 times too strong and noise 3 times too small."""
    return params._replace(drift_std=10.0 * params.drift_std, noise_std=params.noise_std / 3.0)


def accuracies(
    config: FilterConfig, target: Target, engine: Engine, found: Estimates
) -> dict[str, Accuracy]:
    """Errors of the fixes, of the run, and of what is possible, by name.

    Args:
        config: the command's options.
        target: the truth.
        engine: the model, at the parameters that the run began with.
        found: the estimates of the run.
    """

    def of(params: PyTree) -> Accuracy:
        which = config.estimate or "smoothed"
        return _accuracy(target, engine.estimates(params, which, config.interval, 0))

    rows = {"fixes as they are": moving_target.raw_accuracy(target)}
    if config.learn:
        rows["before learning, scales wrong on purpose"] = of(engine.params)
    rows["this run"] = _accuracy(target, found)
    truth = target.model
    rows["best possible (exact posterior, true scales)"] = of(truth)
    return rows


def _accuracy(target: Target, found: Estimates) -> Accuracy:
    count = len(target.times)
    assert found.lower is not None
    assert found.upper is not None
    return moving_target.accuracy(
        target, found.mean[:count], found.lower[:count], found.upper[:count]
    )
