"""Training loss against tokens and against time."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vfejax.figures.style import CURVES, new_figure, style_axes

__all__ = ["draw"]

TOKENS_PER_UPDATE = 12 * 64
SMOOTHED = 4  # chunks of 50 updates


def _curve(plan: Any, results: Any, arm: str, text: Any) -> np.ndarray | None:
    """Mean training loss over the seeds by chunk of updates; None where nothing is there."""
    rate = plan.rate(arm, text, results)
    jobs = [] if rate is None else [plan.job(arm, text, "final", rate, s) for s in plan.seeds]
    rows = [row for row in map(results.find, jobs) if row]
    return np.mean([row["training"] for row in rows], axis=0) if rows else None


def draw(plan: Any, results: Any, paces: Mapping[str, float]) -> Figure:
    """One row of panels for each text: by tokens, and by time where ``paces`` has the seconds of an
    arm's update. Losses above that of a uniform guess are beyond the panels.
    """
    figure = new_figure(2.9 * len(plan.texts) + 0.6)
    axes = figure.subplots(len(plan.texts), 2, squeeze=False, sharey="row")
    for row, text in zip(axes, plan.texts, strict=True):
        for index, arm in enumerate(plan.arms):
            losses = _curve(plan, results, arm, text)
            if losses is None:
                continue
            smooth = np.convolve(losses, np.ones(SMOOTHED) / SMOOTHED, mode="valid")
            done = (np.arange(len(smooth)) + SMOOTHED) / len(losses)
            colour = CURVES[index % len(CURVES)]
            style = "-" if index < len(CURVES) else "--"
            tokens = done * plan.steps * TOKENS_PER_UPDATE / 1e6
            row[0].plot(tokens, smooth, style, color=colour, label=arm)
            if arm in paces:
                minutes = done * plan.steps * paces[arm] / 60
                row[1].plot(minutes, smooth, style, color=colour)
        style_axes(row[0], xlabel="tokens (millions)", ylabel="loss (nats)", title=text.name)
        style_axes(row[1], xlabel="training time (minutes)", title="the same by time")
        lowest = [np.nanmin(line.get_ydata()) for line in row[0].lines]
        if lowest:
            row[0].set_ylim(min(lowest) - 0.1, np.log(text.corpus.vocabulary.size))
    shown = {line.get_label(): line for line in (line for row in axes for line in row[0].lines)}
    if shown:
        names = [arm for arm in plan.arms if arm in shown]
        lines = [shown[arm] for arm in names]
        figure.legend(lines, names, loc="outside lower center", ncols=5, frameon=False)
    return figure
