"""The world that ``vfejax plan`` asks for: a model, what its numbers mean, and what the goal is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfejax.cli.plan.config import PlanConfig
from vfejax.data.files import read_errors
from vfejax.errors import UserError
from vfejax.inference.pomdp.model import POMDP
from vfejax.problems import environments
from vfejax.problems.grid_world import EXAMPLE_MAP, GridMap, grid_world, read_map
from vfejax.runs.seeds import random_key

__all__ = ["Names", "Problem", "build"]


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
        goal: modality and value of the observation that agents should reach.
        names: what its numbers are called.
        layout: the map of a grid world, else None.
    """

    world: POMDP
    goal: tuple[int, int]
    names: Names
    layout: GridMap | None = None


def _given(config: PlanConfig, *names: str) -> dict[str, Any]:
    """The options of the world that were given, for the function that has their defaults."""
    return {n: getattr(config, n) for n in names if getattr(config, n) is not None}


def _numbered(name: str, count: int, first: int = 0) -> tuple[str, ...]:
    return tuple(f"{name} {i}" for i in range(first, first + count))


def _grid(config: PlanConfig) -> Problem:
    text = EXAMPLE_MAP
    if config.map is not None:
        with read_errors(config.map):
            text = config.map.read_text(encoding="utf-8-sig")
    try:
        layout = read_map(text)
        options = _given(config, "reward", "punishment", "validity", "slip")
        world = grid_world(text, **options, dtype=config.precision)
    except ValueError as error:
        raise UserError(f"--map {config.map}: {error}") from None
    cells = tuple(f"{row + 1}, {column + 1}" for row, column in layout.cells.tolist())
    goals = tuple(str(i + 1) for i in range(len(layout.goals)))
    moves = ("up", "right", "down", "left", "stay")
    return Problem(world, (1, 1), Names(moves, ("place", "reward at"), (cells, goals)), layout)


def _t_maze(config: PlanConfig) -> Problem:
    options = _given(config, "reward", "punishment", "validity")
    world = environments.t_maze(**options, dtype=config.precision)
    places, sides = ("centre", "left", "right", "cue"), ("left", "right")
    return Problem(world, (1, 1), Names(places, ("place", "reward"), (places, sides)))


def _bandit(config: PlanConfig) -> Problem:
    chances = config.chances or (0.1, 0.5, 0.9)
    options = _given(config, "reward")
    world = environments.bandit(jnp.asarray(chances, config.precision), **options)
    arms = ("none", *_numbered("arm", len(chances), 1))
    shifts = _numbered("shift", len(chances))
    return Problem(world, (0, 2), Names(arms, ("arm", "chances"), (arms, shifts)))


def _cue_chain(config: PlanConfig) -> Problem:
    cues, sides = config.cues or 2, config.sides or 2
    world = environments.cue_chain(cues, sides, **_given(config, "reward"))
    ends = _numbered("side", sides, 1)
    places = ("start", *_numbered("cue", cues, 1), *ends)
    names = Names(("wait", "go on", *ends), ("place", "reward"), (places, ends))
    return Problem(world, (1, 1), names)


def _random(config: PlanConfig) -> Problem:
    states, seen, controls = config.states or 8, config.observations or 8, config.controls or 3
    # Not the key of the episodes, which fold in their numbers.
    key = jax.random.split(random_key(config.seed))[0]
    world = environments.random_model(key, [states], [seen], [controls])
    best = int(jnp.argmax(world.C[0]))
    names = Names(_numbered("control", controls), ("state",), (_numbered("state", states),))
    return Problem(world, (0, best), names)


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
        UserError: for a map that cannot be read, naming row and column.
    """
    problem = _WORLDS[config.env](config)
    world = jax.tree.map(lambda x: x.astype(config.precision), problem.world)
    return problem._replace(world=world)
