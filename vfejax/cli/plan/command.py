"""``vfejax plan``: agents perceive, plan and act in a world, by their expected free energy.

Without arguments: a grid world in which looking for a cue first is right, and looking one step
ahead is not enough. With ``--image`` there is no world, but a picture whose patches are given
tokens.
"""

from collections.abc import Sequence
from typing import Any

import jax

from vfejax.cli import drawing
from vfejax.cli import session as sessions
from vfejax.cli.background import import_beside
from vfejax.cli.options import essentials
from vfejax.cli.plan import agents, episodes, references, size_limits
from vfejax.cli.plan import problem as plan_problem
from vfejax.cli.plan.config import PlanConfig, check_values, parse
from vfejax.cli.plan.episodes import Shown
from vfejax.cli.plan.image_options import check_image
from vfejax.data.files import atomic_write
from vfejax.data.population_arrays import save_npz
from vfejax.inference.pomdp.learning import Counts

__all__ = ["main"]

_LATER = ("vfejax.cli.plan.report", "matplotlib.backends.backend_agg", "orbax.checkpoint")
_OF_MOMENTS = ("controls", "action", "free_energy", "policy_entropy")


def main(arguments: Sequence[str]) -> int:
    """Parse, plan, and return the exit status."""
    config = parse(arguments)
    check_values(config)
    check_image(config)
    if config.precision == "float64":
        jax.config.update("jax_enable_x64", True)
    if config.image is not None:
        from vfejax.cli.plan import image

        return image.run(config)
    if config.realtime is not None:
        from vfejax.cli.plan import realtime

        return realtime.run(config)
    return _episodes(config)


def _episodes(config: PlanConfig) -> int:
    """Run all episodes, and write the run."""
    import_beside(*_LATER)
    drawing.begin()
    inputs = {"map": config.map}
    sessions.compare(config, inputs)
    problem = plan_problem.build(config)
    size_limits.check(config, problem)
    told = essentials(config)
    program = episodes.program(told, problem, agents.build(told, problem, config.planner))
    with sessions.begin(config, "plan", inputs) as session:
        references.begin(config, problem)
        outcome = session.advance(program, unit="episodes")
        from vfejax.cli.plan import pictures, report

        run, shown = session.run, outcome.memory
        session.say("comparing, and drawing the pictures")
        if outcome.step:
            save_npz(run.file("episode.npz"), _arrays(shown))
            if config.learn is not None:
                save_npz(run.file("learned.npz"), _counts(outcome.state))
            atomic_write(run.file("figures/episode.gif"), pictures.film(problem, shown))
        whole, summary = report.build(config, problem, shown, run)
        return session.finish(outcome, whole, summary, report.summary_text)


def _arrays(shown: Shown) -> dict[str, Any]:
    """The last episode: states and observations of all agents, and what went on in the first."""
    first = shown.first
    return {
        "states": shown.states,
        "observations": shown.observations,
        **{f"beliefs_{f}": q for f, q in enumerate(first.beliefs)},
        **{name: getattr(first, name) for name in _OF_MOMENTS},
        **first.terms,
    }


def _counts(counts: Counts) -> dict[str, Any]:
    """What has been counted, of each agent: ``A_0 [b, ...]`` and so on."""
    found: dict[str, Any] = {}
    for name, arrays in counts._asdict().items():
        listed = (arrays,) if name == "E" else arrays
        found |= {f"{name}_{i}": x for i, x in enumerate(listed or ()) if x is not None}
    return found
