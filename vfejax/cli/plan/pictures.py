"""The pictures of ``vfejax plan``: walks, beliefs, choices, expectations, success; and the film."""

import io
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from vfejax.cli.plan.config import PlanConfig
from vfejax.cli.plan.episodes import TERMS, Shown
from vfejax.cli.plan.problem import Problem
from vfejax.cli.plan.references import Fare
from vfejax.figures import choices, frames, grid_worlds
from vfejax.figures.frames import Bars, Ground
from vfejax.figures.grid_worlds import Mark, Walk
from vfejax.figures.png import figure_pixels
from vfejax.figures.style import plain
from vfejax.problems.grid_world import GridMap
from vfejax.runs.report import Picture

__all__ = ["film", "pictures"]

_FRAMES_PER_SECOND = 2
_DPI = 100


def _marks(layout: GridMap) -> dict[int, Mark]:
    return {
        layout.start: Mark("S", "start"),
        **{place: Mark("T", "trap") for place in layout.traps},
        **{place: Mark("C", "cue") for place in layout.cues},
        **{place: Mark(str(i + 1), "goal") for i, place in enumerate(layout.goals)},
    }


def _walk(layout: GridMap, states: np.ndarray) -> Walk:
    """Where agents went, from states ``[b, t, f]``: all of them, and the first."""
    places = states[:, :, 0]
    visits = np.bincount(places.ravel(), minlength=len(layout.cells)) / len(places)
    return Walk(visits, places[0], layout.goals[states[0, 0, 1]])


def pictures(
    config: PlanConfig,
    problem: Problem,
    shown: Shown,
    metrics: dict[str, np.ndarray],
    greedy: np.ndarray,
    fares: Mapping[str, Fare],
) -> Iterator[Picture]:
    """The pictures in the order of the report, drawn when they are asked for.

    Args:
        config: the command's options.
        problem: the world.
        shown: the last episode.
        metrics: columns of ``metrics.csv``.
        greedy: states of a greedy agent in the last episode, ``[b, t, f]``.
        fares: how this run, and others, fared.
    """
    if problem.layout is not None:
        yield _walks(config, problem.layout, shown, greedy)
    first, names = shown.first, problem.names
    terms = {plain(n): first.terms[n] for n in TERMS}
    if config.learn is None:
        del terms["parameter information gain"]
    yield Picture(
        "beliefs",
        "What the first agent believes",
        "The last episode: probabilities of every hidden state after each observation. Frames are "
        "the truth.",
        choices.beliefs(
            dict(zip(names.factors, first.beliefs, strict=True)), names.states, shown.states[0]
        ),
    )
    yield Picture(
        "choices",
        "What the first agent chooses",
        "Probabilities of the next action, summed over all policies that begin with it. Where "
        "several actions are equally good they share the probability.",
        choices.choices(first.controls, names.controls, first.action, first.policy_entropy),
    )
    yield Picture(
        "expectations",
        "What the first agent expects",
        "Terms of the expected free energy of the step that was chosen: utility, and information "
        "about hidden states and, for agents that learn, about parameters. Risk and ambiguity "
        "are another decomposition of the same expected free energy.",
        choices.expectations(terms, first.free_energy),
    )
    yield _success(metrics, fares)


def _walks(config: PlanConfig, layout: GridMap, shown: Shown, greedy: np.ndarray) -> Picture:
    ahead = "one step" if config.horizon == 1 else f"{config.horizon} steps"
    mine = f"This run: {config.planner}, {ahead} ahead"
    panels = {mine: _walk(layout, np.asarray(shown.states))}
    if config.planner != "greedy":
        panels["A greedy agent, one step ahead"] = _walk(layout, greedy)
    return Picture(
        "walks",
        "Where agents went",
        "The last episode: how often agents were at each place (blue), and the way of the first "
        "one. S is the start, C a cue that tells where the reward is, T a trap; numbers are places "
        "where the reward may be, and it was at the filled one.",
        grid_worlds.walks(layout.cells, _marks(layout), panels),
    )


def _success(metrics: dict[str, np.ndarray], fares: Mapping[str, Fare]) -> Picture:
    others = {name: fare for name, fare in fares.items() if name != "this run"}
    panels = {
        "episodes with the goal (%)": 100 * metrics["success_rate"][1:],
        "reward (nats)": metrics["reward"][1:],
        "actions to the goal": metrics["steps_to_goal"][1:],
    }
    levels = {
        "episodes with the goal (%)": {n: 100 * f.success for n, f in others.items()},
        "reward (nats)": {n: f.reward for n, f in others.items()},
        "actions to the goal": {n: f.steps for n, f in others.items()},
    }
    return Picture(
        "success",
        "How agents fared",
        "Means over agents and logged episodes. Dashed: a greedy agent in the same worlds, and "
        "what the best policy of the belief MDP can expect.",
        choices.success(metrics["step"][1:], panels, levels),
    )


def film(problem: Problem, shown: Shown) -> bytes:
    """The last episode of the first agent, as an animated GIF."""
    first, names, layout = shown.first, problem.names, problem.layout
    bars = dict(zip(names.factors, zip(first.beliefs, names.states, strict=True), strict=True))
    ground = None
    if layout is not None:
        hidden = first.beliefs[1]
        filled = {place: hidden[:, i] for i, place in enumerate(layout.goals)}
        where = first.beliefs[0]
        ground = Ground(layout.cells, _marks(layout), shown.states[0, :, 0], where, filled)
        del bars[names.factors[0]]
    panels = {name: Bars(values, labels) for name, (values, labels) in bars.items()}
    panels["next action"] = Bars(first.controls, names.controls, first.action)
    return _gif(frames.frames(panels, ground))


def _gif(pages: Iterable[Figure]) -> bytes:
    first, *others = (Image.fromarray(figure_pixels(page, dpi=_DPI)) for page in pages)
    buffer, moment = io.BytesIO(), 1000 // _FRAMES_PER_SECOND
    first.save(buffer, "gif", save_all=True, append_images=others, duration=moment, loop=0)
    return buffer.getvalue()
