"""Grid worlds from text maps, as models of an agent and its world."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.inference.pomdp.model import POMDP
from vfejax.types import Array

__all__ = ["EXAMPLE_MAP", "GridMap", "grid_world", "marks", "move_targets", "read_map"]

EXAMPLE_MAP = """
#########
#1..S..2#
####.####
####C####
#########
"""
"""A reward behind one of two doors, and a cue on another way that tells which."""

_MOVES = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1), "stay": (0, 0)}


class GridMap(NamedTuple):
    """What a text map says.

    Attributes:
        cells: row and column of every place that is not a wall, ``[s, 2]``, row by row.
        start: the place of S.
        goals: the places of the digits, in their order.
        cues: the places of C.
        traps: the places of T.
    """

    cells: np.ndarray
    start: int
    goals: tuple[int, ...]
    cues: tuple[int, ...]
    traps: tuple[int, ...]


def marks(text: str, allowed: str) -> Iterator[tuple[int, int, str]]:
    """Row, column and mark of every place of a map that is not a wall, row by row.

    Args:
        text: the map.
        allowed: the marks that there may be beside walls.

    Raises:
        ValueError: for another mark; it names row and column, counted from 1.

    >>> list(marks("#.", "."))
    [(0, 1, '.')]
    """
    for row, line in enumerate(text.strip("\n").split("\n")):
        for column, mark in enumerate(line.rstrip("\r")):
            if mark == "#":
                continue
            if mark not in allowed:
                known = " ".join(c for c in "#" + allowed if c not in " 123456789")
                digits = " and 1 to 9" if "1" in allowed else ""
                raise ValueError(
                    f"map row {row + 1}, column {column + 1}: {mark!r} must be one of "
                    f"{known}{digits}"
                )
            yield row, column, mark


def move_targets(cells: np.ndarray) -> np.ndarray:
    """Where up, right, down, left and stay lead from each cell, ``[s, 5]``; walls stop a move.

    >>> move_targets(np.array([[0, 0], [0, 1]])).tolist()
    [[0, 1, 0, 0, 0], [1, 1, 1, 0, 1]]
    """
    place = {tuple(cell): i for i, cell in enumerate(cells.tolist())}
    return np.array(
        [
            [place.get((row + down, column + right), i) for down, right in _MOVES.values()]
            for i, (row, column) in enumerate(cells.tolist())
        ]
    )


def read_map(text: str) -> GridMap:
    """Read a map: ``#`` wall, ``.`` or space free, ``S`` start, ``C`` cue, ``T`` trap, ``1`` to
    ``9`` places where the reward may be.

    Rows that are shorter than others end in wall, as everything outside does.

    Raises:
        ValueError: for another character, no start or more than one, no goal, or a goal twice; it
            names row and column, counted from 1.

    >>> read_map("S.1").goals
    (2,)
    """
    cells: list[tuple[int, int]] = []
    found: dict[str, list[int]] = {"S": [], "C": [], "T": []}
    for row, column, mark in marks(text, ". SCT123456789"):
        if mark in found or mark.isdigit():
            found.setdefault(mark, []).append(len(cells))
        cells.append((row, column))
    goals = sorted(mark for mark in found if mark.isdigit())
    for mark in ["S", *goals]:
        if len(found[mark]) != 1:
            raise ValueError(f"the map must have one {mark}, got {len(found[mark])}")
    if not goals:
        raise ValueError("the map must have a place for the reward, 1 to 9")
    return GridMap(
        np.array(cells),
        found["S"][0],
        tuple(found[mark][0] for mark in goals),
        tuple(found["C"]),
        tuple(found["T"]),
    )


def _moves(grid: GridMap, slip: float) -> np.ndarray:
    """``p(next place | place, move)``."""
    targets = move_targets(grid.cells)
    final = [*grid.goals, *grid.traps]
    targets[final] = np.array(final)[:, None]
    moves = np.zeros((len(targets), len(targets), len(_MOVES)))
    for i, u in np.ndindex(targets.shape):
        moves[targets[i, u], i, u] += 1 - slip
        moves[i, i, u] += slip
    return moves


def _outcomes(grid: GridMap) -> np.ndarray:
    """``p(nothing, reward or punishment | place, goal with the reward)``."""
    outcomes = np.zeros((3, len(grid.cells), len(grid.goals)))
    outcomes[0] = 1
    outcomes[:, list(grid.traps)] = np.array([0.0, 0.0, 1.0])[:, None, None]
    for side in range(len(grid.goals)):
        for number, goal in enumerate(grid.goals):
            outcomes[:, goal, side] = (0, 1, 0) if number == side else (0, 0, 1)
    return outcomes


def _cues(grid: GridMap, validity: float) -> np.ndarray:
    """``p(nothing, or the number of a goal | place, goal with the reward)``."""
    sides = len(grid.goals)
    likelihood = np.zeros((sides + 1, len(grid.cells), sides))
    likelihood[0] = 1
    for side in range(sides):
        said = np.full(sides, (1 - validity) / (sides - 1) if sides > 1 else 0.0)
        said[side] = validity if sides > 1 else 1.0
        for cue in grid.cues:
            likelihood[:, cue, side] = [0.0, *said]
    return likelihood


def grid_world(
    text: str = EXAMPLE_MAP,
    *,
    reward: float = 3.0,
    punishment: float = 6.0,
    validity: float = 1.0,
    slip: float = 0.0,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> POMDP:
    """A walk on a text map: up, right, down, left or stay.

    Factor 0 is the place; the goals and traps cannot be left again, and walls stop a move. Factor 1
    is which goal has the reward. Modality 0 is the place, modality 1 nothing, reward or punishment
    (a trap, or a goal without the reward), modality 2 what a cue says: nothing, or the number of
    the goal.

    Args:
        text: a map, as :func:`read_map` reads it.
        reward: log preference for the reward at each step, in nats.
        punishment: minus the log preference for a trap.
        validity: probability that a cue tells the truth; else any other goal is named.
        slip: probability that a move is not made.
        dtype: of the arrays.

    Raises:
        ValueError: for a map that cannot be read, or a probability that is none.

    >>> grid_world().num_states
    (9, 2)
    """
    for name, value in (("validity", validity), ("slip", slip)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be a probability, got {value}")
    grid = read_map(text)
    num, sides = len(grid.cells), len(grid.goals)

    def array(x: np.ndarray) -> Array:
        return jax.device_put(np.asarray(x, dtype))  # which compiles nothing

    return POMDP(
        [array(np.eye(num)), array(_outcomes(grid)), array(_cues(grid, validity))],
        [array(_moves(grid, slip)), array(np.eye(sides)[..., None])],
        [
            array(np.zeros(num)),
            array(np.array([0.0, reward, -punishment])),
            array(np.zeros(sides + 1)),
        ],
        [array(np.eye(num)[grid.start]), array(np.full(sides, 1 / sides))],
        A_dependencies=[[0], [0, 1], [0, 1]],
    )
