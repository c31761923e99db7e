"""Ever cheaper programs for one task, compiled ahead of time, and the choice among them.

What a program of the ladder takes is followed as ``load * seconds[rung] + deviation``: the median
of a quiet moment, times a factor that a busy machine raises for all rungs alike, and what the
system does to any cycle. Factor and deviation are smoothed as those of round trips on a network,
so that the load is known on rungs that are not running, too.

Source: Jacobson, Congestion avoidance and control, SIGCOMM (1988), appendix A: mean and mean
deviation, and four of the latter as the margin; the common factor of rungs is ours.
"""

import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.runs.fixed_rate import MONOTONIC, Clock
from vfejax.types import Array, PyTree

__all__ = ["Ladder", "Load", "Shedding", "compile_ladder", "expected", "follow", "reach", "settle"]

Step = Callable[[PyTree, PyTree, Array, Array | None], tuple[PyTree, PyTree]]

_REPEATS = 21  # calls that are timed
_RESOLUTION = 1e-6  # seconds, so that no call takes no time
_PATIENCE_LIMIT = 8  # the longest patience in units of the first


class Ladder(NamedTuple):
    """Compiled programs, the deepest first.

    Attributes:
        depths: what each is called in reports, falling.
        programs: ``program(carry, observation, mask) -> (carry, answer)``; other shapes or dtypes
            than those they were compiled for are refused, never compiled.
        seconds: what a call of each took, the median of some.
        carry: the state of the first cycle, and the random key.
        absent: observation and mask of a cycle to which nothing was observed.
    """

    depths: tuple[int, ...]
    programs: tuple[Callable[..., tuple[PyTree, PyTree]], ...]
    seconds: tuple[float, ...]
    carry: PyTree
    absent: tuple[PyTree, Array]


def compile_ladder(
    steps: Mapping[int, Step],
    state: PyTree,
    observation: PyTree,
    mask: Array | np.ndarray,
    key: Array,
    *,
    clock: Clock = MONOTONIC,
) -> Ladder:
    """Compile each step, and measure what it takes.

    Args:
        steps: by depth, in falling order, ``step(state, observation, key, mask) -> (state,
            answer)``: pure functions of one state.
        state: where the first cycle begins.
        observation: an example, whose shapes and dtypes are those of all observations.
        mask: an example of what says which parts of it are there, booleans.
        key: a random key, split in every cycle.
        clock: what tells the time.

    Raises:
        ValueError: when there is no step, depths do not fall, the mask is not boolean, or a step
            gives another state than it takes.

    >>> def step(state, observation, key, mask):
    ...     state = jnp.where(mask, 0.5 * (state + observation), state)
    ...     return state, state
    >>> zero, there = jnp.zeros(()), jnp.array(True)
    >>> ladder = compile_ladder({0: step}, zero, zero, there, jax.random.key(0))
    >>> float(ladder.programs[0](ladder.carry, jnp.ones(()), there)[1])
    0.5
    """
    depths = tuple(steps)
    if not depths or list(depths) != sorted(set(depths), reverse=True):
        raise ValueError(f"steps must have depths in falling order, got {list(depths)}")
    state, observation, shown = jax.tree.map(jnp.asarray, (state, observation, mask))
    if shown.dtype != jnp.bool_:
        raise ValueError(f"mask must be boolean, got {shown.dtype}")
    carry = (state, key)
    programs = []
    for depth, step in steps.items():
        _check_state(depth, step, carry, observation, shown)
        programs.append(jax.jit(_cycle(step)).lower(carry, observation, shown).compile())
    seconds = tuple(_median(program, carry, observation, shown, clock) for program in programs)
    absent = (observation, jnp.zeros_like(shown))
    return Ladder(depths, tuple(programs), seconds, carry, absent)


def _cycle(step: Step) -> Callable[..., tuple[PyTree, PyTree]]:
    """One call from Python in a cycle: the key travels with the state."""

    def cycle(carry: tuple[PyTree, Array], observation: PyTree, mask: Array) -> tuple:
        state, key = carry
        key, own = jax.random.split(key)
        state, answer = step(state, observation, own, mask)
        return (state, key), answer

    return cycle


def _check_state(depth: int, step: Step, carry: Any, observation: PyTree, mask: Array) -> None:
    def kind(tree: PyTree) -> tuple:
        leaves, structure = jax.tree.flatten(tree)
        return structure, [(x.shape, x.dtype) for x in leaves]

    state, key = carry
    after, _ = jax.eval_shape(step, state, observation, key, mask)
    if kind(after) != kind(state):
        raise ValueError(
            f"steps[{depth}] must give a state like the one it takes, {kind(state)}, got "
            f"{kind(after)}"
        )


def _median(
    program: Callable, carry: PyTree, observation: PyTree, mask: Array, clock: Clock
) -> float:
    """Seconds of a call, once it has run: the first call makes what all others use."""
    jax.block_until_ready(program(carry, observation, mask))
    taken: list[float] = []
    while len(taken) < _REPEATS and sum(taken) < 1.0:
        start = clock.now()
        carry, _ = jax.block_until_ready(program(carry, observation, mask))
        taken.append(clock.now() - start)
    return max(statistics.median(taken), _RESOLUTION)


class Shedding(NamedTuple):
    """When depth is given up, and when it is taken back.

    Attributes:
        shed: share of the time until the deadline that a rung may be expected to take.
        restore: share that a deeper rung may be expected to take before it is taken back.
        trifle: share that depth may always take beyond what the last rung takes: where the system
            itself makes cycles late, giving up so little would not help.
        patience: cycles in a row for which depth must fit before it is taken back. It doubles, up
            to eightfold, whenever that depth is given up again before so many cycles have passed.
    """

    shed: float = 0.8
    restore: float = 0.6
    trifle: float = 0.05
    patience: int = 60


class Load(NamedTuple):
    """What is known about how busy the machine is.

    Attributes:
        rung: the deepest that may run now, 0 for the first.
        factor: by which a call takes longer than when the ladder was compiled.
        deviation: mean absolute error of that, in seconds.
        calm: cycles in a row for which there was time for a deeper rung.
        goal: the deepest rung for which there was time in all of them.
        held: cycles since this rung was taken back.
        patience: cycles that count as calm enough now.
    """

    rung: int = 0
    factor: float = 1.0
    deviation: float = 0.0
    calm: int = 0
    goal: int = 0
    held: int = 0
    patience: int = 0


def expected(seconds: tuple[float, ...], load: Load, rung: int) -> float:
    """Seconds within which a rung will almost surely be done.

    Args:
        seconds: of the ladder.
        load: what is known.
        rung: 0 for the deepest.

    >>> expected((0.01, 0.001), Load(factor=2.0, deviation=0.001), 1)
    0.006
    """
    return load.factor * seconds[rung] + 4.0 * load.deviation


def follow(seconds: tuple[float, ...], load: Load, rung: int, taken: float) -> Load:
    """What is known after a call of a rung that took so many seconds.

    A call counts as no more than twice what was expected: one pause of the system changes little,
    and a lasting load is known after a few cycles, as the expectation then doubles in each.

    Args:
        seconds: of the ladder.
        load: what was known.
        rung: that was called.
        taken: seconds.

    >>> follow((0.01, 0.001), Load(), 1, 0.002).factor
    1.125
    """
    taken = min(taken, 2 * expected(seconds, load, rung))
    error = abs(taken - load.factor * seconds[rung])
    return load._replace(
        factor=load.factor + (taken / seconds[rung] - load.factor) / 8,
        deviation=load.deviation + (error - load.deviation) / 4,
    )


def settle(seconds: tuple[float, ...], load: Load, left: float, shedding: Shedding) -> Load:
    """Give up depth that a cycle has no time for, or take some back after a calm while.

    Args:
        seconds: of the ladder.
        load: what is known.
        left: seconds of a cycle, from its beginning to its deadline.
        shedding: the limits.

    >>> busy = settle((0.01, 0.001), Load(factor=2.0), 0.016, Shedding())
    >>> busy.rung, settle((0.01, 0.001), busy._replace(factor=0.9), 0.016, Shedding()).calm
    (1, 1)
    """
    patience = max(load.patience, shedding.patience)
    below = reach(seconds, load, left, shedding)
    if below > load.rung:
        limit = _PATIENCE_LIMIT * shedding.patience
        soon = 0 < load.held < patience
        patience = min(2 * patience, limit) if soon else shedding.patience
        return load._replace(rung=below, calm=0, held=0, patience=patience)
    held = load.held + (load.held > 0)
    fit = _deepest(seconds, load._replace(rung=0), left, shedding.restore, shedding.trifle)
    if fit >= load.rung:
        return load._replace(calm=0, held=held, patience=patience)
    goal = max(fit, load.goal) if load.calm else fit
    if load.calm + 1 < patience:
        return load._replace(calm=load.calm + 1, goal=goal, held=held, patience=patience)
    return load._replace(rung=goal, calm=0, held=1, patience=patience)


def reach(seconds: tuple[float, ...], load: Load, left: float, shedding: Shedding) -> int:
    """The deepest rung, no deeper than the load allows, that the time left is enough for; the last
    one where none is.

    Args:
        seconds: of the ladder.
        load: what is known.
        left: seconds until the deadline.
        shedding: the limits.

    >>> reach((0.01, 0.001), Load(), 0.002, Shedding())
    1
    """
    return _deepest(seconds, load, left, shedding.shed, shedding.trifle)


def _deepest(
    seconds: tuple[float, ...], load: Load, left: float, share: float, trifle: float
) -> int:
    """The first rung, from that of the load on, that fits; the last one where none does."""
    for rung in range(load.rung, len(seconds)):
        more = load.factor * (seconds[rung] - seconds[-1])
        if expected(seconds, load, rung) <= share * left or more <= trifle * left:
            return rung
    return len(seconds) - 1
