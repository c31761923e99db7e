"""Where the observations of a real-time agent come from, and where its actions go: a world of the
package, or the lines of standard input and output.
"""

import sys
import threading
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.cli.input_lines import lines
from vfejax.cli.plan.config import PlanConfig
from vfejax.cli.plan.problem import Problem
from vfejax.errors import UserError
from vfejax.inference.anytime import Choice
from vfejax.problems.environments import process
from vfejax.runs.fixed_rate import MONOTONIC
from vfejax.runs.mailbox import Mailbox
from vfejax.runs.real_time import Reading
from vfejax.types import Array

__all__ = ["Lines", "Observed", "World", "parse_line"]

_SWITCH_INTERVAL = 2e-4  # seconds


class Observed(NamedTuple):
    """What a real-time agent is told.

    Attributes:
        seen: integers, one for each modality, ``[m]``.
        begins: whether a new episode has begun, in which the agent knows nothing yet.
    """

    seen: Array | np.ndarray
    begins: Array | np.ndarray


class World:
    """The world of ``--env``, which moves once in a cycle, while the agent waits for the next tick.

    After ``--length`` observations an episode is over, and the next one begins.

    Args:
        config: the length.
        problem: the world, and its goal.
        key: a random key.

    Attributes:
        episodes: how many have begun.
        successes: in how many of them the goal was observed.
    """

    def __init__(self, config: PlanConfig, problem: Problem, key: Array) -> None:
        world, length = process(problem.world), config.length

        def advance(carry: tuple[Array, Array, Array], action: Array) -> tuple:
            state, key, place = carry
            key, first, moved = jax.random.split(key, 3)
            begins = place == 0
            begun, went = world.init(first), world.step(state, action, moved)
            state, seen = (jnp.where(begins, a, b) for a, b in zip(begun, went, strict=True))
            return (state, key, (place + 1) % length), Observed(seen, begins)

        state, _ = jax.eval_shape(world.init, key)
        carry = jnp.zeros(state.shape, state.dtype), key, jnp.zeros((), jnp.int32)
        action = jnp.zeros(len(problem.world.B), int)
        self._advance = jax.jit(advance).lower(carry, action).compile()
        self._mask = jnp.ones(len(problem.world.A), bool)
        self._goal = problem.goal
        self._reached = False
        self.episodes = self.successes = 0
        self._carry, self._observed = self._advance(carry, action)

    @property
    def example(self) -> tuple[Observed, Array]:
        """An observation and its mask."""
        return self._observed, self._mask

    def sense(self) -> Reading:
        """The observation that followed the last action."""
        modality, value = self._goal
        if np.asarray(self._observed.begins):
            self.episodes, self._reached = self.episodes + 1, False
        if not self._reached and np.asarray(self._observed.seen)[modality] == value:
            self.successes, self._reached = self.successes + 1, True
        return Reading(self._observed, self._mask, MONOTONIC.now())

    def act(self, choice: Choice) -> None:
        """Begin to move; nothing waits for it before the next tick."""
        self._carry, self._observed = self._advance(self._carry, choice.action)


class Lines:
    """Lines of standard input, of which the newest counts; a line of standard output for each
    action.

    Args:
        problem: how many observations and controls there are.
        stopped: whether to read no more.

    Attributes:
        read: how many lines were observations.
        skipped: how many could not be read.
        mailbox: holds the newest.
    """

    def __init__(self, problem: Problem, stopped: Callable[[], bool]) -> None:
        try:
            self._descriptor = sys.stdin.fileno()
        except (AttributeError, OSError, ValueError):
            raise UserError("--sensor stdin: standard input is closed; give it lines") from None
        self.read = self.skipped = 0
        self.mailbox: Mailbox[Reading] = Mailbox()
        self._sizes = problem.world.num_observations
        self._controls = problem.world.num_controls
        self._stopped = stopped
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._receive, name="stdin", daemon=True)
        self._cycle = 0

    def __enter__(self) -> "Lines":
        free = [f for f, controls in enumerate(self._controls) if controls > 1]
        names = ["action"] if len(free) < 2 else [f"action_{f}" for f in free]
        print(",".join(["cycle", *names, "free_energy"]), flush=True)
        self._free = free or [0]
        # A thread that reads a flood of lines would hold up the loop for 5 ms at a time.
        self._switch_interval = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_INTERVAL)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        sys.setswitchinterval(self._switch_interval)

    @property
    def example(self) -> tuple[Observed, np.ndarray]:
        """An observation and its mask."""
        return parse_line(" ".join("-" for _ in self._sizes), self._sizes)

    def sense(self) -> Reading | None:
        """What came since the last cycle.

        Raises:
            StopIteration: at the end of standard input.
        """
        return self.mailbox.take()

    def act(self, choice: Choice) -> None:
        """Print the controls of the factors that have any choice."""
        action = np.asarray(choice.action)
        free_energy = float(choice.free_energy)
        cells = [str(self._cycle), *(str(action[f]) for f in self._free), f"{free_energy:.6g}"]
        print(",".join(cells), flush=True)
        self._cycle += 1

    def _receive(self) -> None:
        found = lines(self._descriptor, lambda: self._stopped() or self._ended.is_set())
        for number, line in enumerate(found, 1):
            came = MONOTONIC.now()
            try:
                text = "" if line is None else line.decode("ascii", "replace").strip()
                if text:
                    self.mailbox.put(Reading(*parse_line(text, self._sizes), came))
                    self.read += 1
                elif line is None:
                    raise ValueError("is longer than 1 MiB")
            except ValueError as error:
                self.skipped += 1
                said = f"vfejax plan: line {number}: {error}; skipped"
                print(said, file=sys.stderr, flush=True)
        self.mailbox.close()


def parse_line(text: str, sizes: tuple[int, ...]) -> tuple[Observed, np.ndarray]:
    """Observation and mask from an integer for each modality, separated by commas or spaces.

    Args:
        text: the line; ``-`` stands for what is missing.
        sizes: number of values of each modality.

    Raises:
        ValueError: naming what does not fit.

    >>> observed, mask = parse_line("3, -", (4, 2))
    >>> observed.seen.tolist(), mask.tolist()
    ([3, 0], [True, False])
    """
    cells = text.replace(",", " ").split()
    if len(cells) != len(sizes):
        raise ValueError(f"has {len(cells)} values where there are {len(sizes)} modalities")
    seen = np.zeros(len(sizes), np.int32)
    mask = np.array([cell != "-" for cell in cells])
    for m, (cell, size) in enumerate(zip(cells, sizes, strict=True)):
        if not mask[m]:
            continue
        if not (cell.isascii() and cell.isdigit() and len(cell) < 10 and int(cell) < size):
            raise ValueError(f"'{cell[:20]}' is no observation of modality {m}, 0 to {size - 1}")
        seen[m] = int(cell)
    return Observed(seen, np.zeros((), bool)), mask
