"""``vfejax plan``: agents perceive, plan and act in a world, by their expected free energy.

Without arguments: a grid world in which looking for a cue first is right, and looking one step
ahead is not enough.
"""

from collections.abc import Sequence

import jax

from vfejax.cli import session as sessions
from vfejax.cli.plan import episodes, report
from vfejax.cli.plan import problem as plan_problem
from vfejax.cli.plan.config import PlanConfig, check_values, parse

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Parse, plan, and return the exit status."""
    config = parse(arguments)
    check_values(config)
    if config.precision == "float64":
        jax.config.update("jax_enable_x64", True)
    return _episodes(config)


def _episodes(config: PlanConfig) -> int:
    """Run all episodes, and write the run."""
    inputs = {"map": config.map}
    sessions.compare(config, inputs)
    problem = plan_problem.build(config)
    program = episodes.program(config, problem)
    with sessions.begin(config, "plan", inputs) as session:
        outcome = session.advance(program, unit="episodes")
        shown, summary = report.build(config, session.run)
        return session.finish(outcome, shown, summary, report.summary_text)
