"""The world that ``vfejax plan`` asks for: a model, what its numbers mean, and what the goal is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.cli.plan.config import PlanConfig
from vfejax.data.files import read_errors
from vfejax.errors import UserError
from vfejax.inference.pomdp.model import POMDP
from vfejax.problems import environments
from vfejax.problems.grid_world import GridMap, grid_world, read_map
from vfejax.runs.seeds import random_key

__all__ = ["MAP", "Names", "Problem", "build"]

MAP = """
#########
#1..S..2#
##T...T##
####C####
#########
"""
"""Of the run without arguments: a cue, on another way, tells behind which door the reward is."""
_MOST_PLACES = 2000
_MOST_TRANSITIONS = 2**26


class Names(NamedTuple):
    """What the numbers of a world are called.

    Attributes:
        controls: those of factor 0, the only one that agents control.
        factors: each factor.
        states: the states of each factor.
    """

    controls: tuple[str, ...]
    factors: tuple[str, ...]
    states: tuple[tuple[str, ...], ...]


class Problem(NamedTuple):
    """A world and what is asked of agents.

    Attributes:
        world: how it behaves, and what agents prefer.
        model: what is known about it.
        goal: modality and value of the observation that agents should reach.
        names: what its numbers are called.
        layout: where the states of factor 0 are on a map; None where there is none.
    """

    world: POMDP
    model: POMDP
    goal: tuple[int, int]
    names: Names
    layout: GridMap | None = None


def _given(config: PlanConfig, *names: str) -> dict[str, Any]:
    """The options of the world that were given, for the function that has their defaults."""
    return {n: getattr(config, n) for n in names if getattr(config, n) is not None}


def _numbered(name: str, count: int, first: int = 0) -> tuple[str, ...]:
    return tuple(f"{name} {i}" for i in range(first, first + count))


def _read(path: Path | None) -> str:
    if path is None:
        return MAP
    with read_errors(path):
        return path.read_text(encoding="utf-8-sig")


def _grid(config: PlanConfig) -> Problem:
    text = _read(config.map)
    try:
        layout = read_map(text)
    except ValueError as error:
        raise UserError(f"--map {config.map}: {error}") from None
    if len(layout.cells) > _MOST_PLACES:
        raise UserError(
            f"--map {config.map}: has {len(layout.cells)} places, and can have {_MOST_PLACES}"
        )
    options = _given(config, "reward", "punishment", "validity", "slip")
    model = grid_world(text, **options, dtype=config.precision)
    cells = tuple(f"{row + 1}, {column + 1}" for row, column in layout.cells.tolist())
    goals = tuple(str(i + 1) for i in range(len(layout.goals)))
    moves = ("up", "right", "down", "left", "stay")
    names = Names(moves, ("place (row, column)", "reward at"), (cells, goals))
    return Problem(model, model, (1, 1), names, layout)


def _t_maze(config: PlanConfig) -> Problem:
    options = _given(config, "reward", "punishment", "validity")
    model = environments.t_maze(**options, dtype=config.precision)
    places, sides = ("centre", "left", "right", "cue"), ("left", "right")
    layout = GridMap(np.array([[0, 1], [0, 0], [0, 2], [1, 1]]), 0, (1, 2), (3,), ())
    return Problem(
        model, model, (1, 1), Names(places, ("place", "reward"), (places, sides)), layout
    )


def _bandit(config: PlanConfig) -> Problem:
    chances = config.chances or (0.1, 0.5, 0.9)
    options = _given(config, "reward")
    model = environments.bandit(jnp.asarray(chances, config.precision), **options)
    arms = ("none", *_numbered("arm", len(chances), 1))
    shifts = tuple(" ".join(f"{p:g}" for p in np.roll(chances, i)) for i in range(len(chances)))
    names = Names(arms, ("arm", "chances of the arms"), (arms, shifts))
    return Problem(model, model, (0, 2), names)


def _check_transitions(states: int, controls: int, options: str) -> None:
    """Refuse a table that no memory holds, before it is made."""
    number = states**2 * controls
    if number > _MOST_TRANSITIONS:
        raise UserError(
            f"{options}: the world would have {number} transitions, and can have "
            f"{_MOST_TRANSITIONS}; choose smaller ones"
        )


def _cue_chain(config: PlanConfig) -> Problem:
    cues, sides = config.cues or 2, config.sides or 2
    _check_transitions(1 + cues + sides, 2 + sides, f"--cues {cues}, --sides {sides}")
    model = environments.cue_chain(cues, sides, **_given(config, "reward"))
    ends = _numbered("side", sides, 1)
    places = ("start", *_numbered("cue", cues, 1), *ends)
    row = [[0, column] for column in range(cues + 1)]
    column = [[i, cues + 1] for i in range(sides)]
    goals = tuple(range(cues + 1, cues + 1 + sides))
    layout = GridMap(np.array([*row, *column]), 0, goals, tuple(range(1, cues + 1)), ())
    names = Names(("wait", "go on", *ends), ("place", "reward"), (places, ends))
    return Problem(model, model, (1, 1), names, layout)


def _random(config: PlanConfig) -> Problem:
    states, seen, controls = config.states or 8, config.observations or 8, config.controls or 3
    _check_transitions(states, controls, f"--states {states}, --controls {controls}")
    # Not the key of the episodes, which fold in their numbers.
    key = jax.random.split(random_key(config.seed))[0]
    model = environments.random_model(key, [states], [seen], [controls])
    best = int(jnp.argmax(model.C[0]))
    names = Names(_numbered("control", controls), ("state",), (_numbered("state", states),))
    return Problem(model, model, (0, best), names)


_WORLDS: dict[str, Callable[[PlanConfig], Problem]] = {
    "grid": _grid,
    "tmaze": _t_maze,
    "bandit": _bandit,
    "cue-chain": _cue_chain,
    "random": _random,
}


def build(config: PlanConfig) -> Problem:
    """The world of ``--env``, in the precision of the run.

    Raises:
        UserError: for a map that cannot be read, naming row and column, or a world that is too
            large.
    """
    problem = _WORLDS[config.env](config)
    model = jax.tree.map(lambda x: x.astype(config.precision), problem.model)
    world = model
    if config.fixed:
        world = model.replace(D=(model.D[0], jnp.zeros_like(model.D[1]).at[0].set(1.0)))
    return problem._replace(world=world, model=model)
