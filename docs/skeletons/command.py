"""Skeleton of a command: a particle slides down the double well (x^2 - 1)^2 / 4."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from vfejax.cli import limits, options
from vfejax.cli import session as sessions
from vfejax.cli.options import RunOptions
from vfejax.dynamics.gradient_flow import gradient_flow
from vfejax.runs import loop
from vfejax.runs.report import Report

__all__ = ["main"]


@dataclass(frozen=True)
class SlideConfig(RunOptions):
    """A particle slides down a double well."""

    out: Path = Path("runs/slide")
    """Run directory to create."""
    start: float = 0.1
    """Position at step 0."""
    step_size: float = 0.1
    """Length of a step."""


def main(arguments: Sequence[str]) -> int:
    """Parse, run, and return the exit status."""
    config = options.parse_run(SlideConfig, arguments, program="vfejax slide")
    limits.check_run(config)
    limits.check(config.step_size > 0, "step_size", config.step_size, "positive")
    flow = gradient_flow(lambda x: 0.25 * (x * x - 1.0) ** 2, optax.sgd(config.step_size))

    def observe(step: int, state: Any, infos: Any, memory: Any) -> loop.Observation:
        return loop.Observation({"position": float(state.position)})

    program = loop.Program(
        init=lambda: flow.init(jnp.asarray(config.start)),
        step=lambda state, _: flow.step(state),
        observe=observe,
        watched=lambda infos: {"energy": infos.energy},
        advice="try a smaller --step-size",
    )
    with sessions.begin(config, "slide") as session:
        outcome = session.advance(program)
        summary = {"position": float(np.asarray(outcome.state.position))}
        report = Report("A double well", rows=list(summary.items()))
        return session.finish(
            outcome, report, summary, lambda s: f"the particle is at {s['position']:.4f}"
        )
