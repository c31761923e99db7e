"""Training loss against tokens and against time."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vfejax.figures.style import CURVES, new_figure, style_axes

__all__ = ["draw"]

TOKENS_PER_UPDATE = 12 * 64
SMOOTHED = 4  # chunks of 50 updates


def _curves(plan: Any, results: Any, arm: str, text: Any) -> tuple[np.ndarray, float] | None:
    """Mean training loss over the seeds by chunk of updates, and seconds of a run side by side with
    none; None where nothing is there.
    """
    rate = plan.rate(arm, text, results)
    jobs = [] if rate is None else [plan.job(arm, text, "final", rate, s) for s in plan.seeds]
    rows = [row for row in map(results.find, jobs) if row]
    if not rows:
        return None
    losses = np.mean([row["training"] for row in rows], axis=0)
    return losses, float(np.mean([row["seconds"] / row["lanes"] for row in rows]))


def draw(plan: Any, results: Any) -> Figure:
    """One row of panels for each text."""
    figure = new_figure(2.9 * len(plan.texts) + 0.6)
    axes = figure.subplots(len(plan.texts), 2, squeeze=False, sharey="row")
    for row, text in zip(axes, plan.texts, strict=True):
        for index, arm in enumerate(plan.arms):
            found = _curves(plan, results, arm, text)
            if found is None:
                continue
            losses, seconds = found
            smooth = np.convolve(losses, np.ones(SMOOTHED) / SMOOTHED, mode="valid")
            done = (np.arange(len(smooth)) + SMOOTHED) / len(losses)
            colour = CURVES[index % len(CURVES)]
            style = "-" if index < len(CURVES) else "--"
            tokens = done * plan.steps * TOKENS_PER_UPDATE / 1e6
            row[0].plot(tokens, smooth, style, color=colour, label=arm)
            row[1].plot(done * seconds / 60, smooth, style, color=colour)
        style_axes(row[0], xlabel="tokens (millions)", ylabel="loss (nats)", title=text.name)
        style_axes(row[1], xlabel="training time (minutes)", title="the same by time")
    if axes[0, 0].lines:
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure
