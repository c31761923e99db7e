"""Worlds and agents of gymnasium: an extra that pip installs.

:func:`as_gymnasium` makes an ``Env`` of a world of this library, for other people's agents;
:func:`act_in` lets an agent of this library act in an ``Env`` with discrete observations and
actions. Both are loops of the host. Neither compiles anything: pass functions that are, as
``Environment(*map(jax.jit, process(model)))`` and ``agent._replace(step=jax.jit(agent.step))``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.errors import UserError
from vfejax.inference.active_inference import Agent
from vfejax.inference.pomdp.model import POMDP
from vfejax.problems.environments import Environment
from vfejax.types import Array

__all__ = ["GymnasiumEpisode", "act_in", "as_gymnasium"]


def _library() -> Any:
    try:
        import gymnasium
    except ImportError as error:
        raise UserError(
            "worlds of gymnasium need the library gymnasium; "
            "install it with pip install 'vfejax[gymnasium]'"
        ) from error
    return gymnasium


class _Codec(NamedTuple):
    """Values of a space as rows of integers that count from 0."""

    sizes: tuple[int, ...]
    encode: Callable[[Any], np.ndarray]
    decode: Callable[[np.ndarray], Any]


def _codec(space: Any, name: str) -> _Codec:
    spaces = _library().spaces
    if isinstance(space, spaces.Discrete):
        first, dtype = int(space.start), space.dtype.type
        return _Codec(
            (int(space.n),),
            lambda value: np.array([int(value) - first]),
            lambda row: dtype(row[0] + first),
        )
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return _Codec(
            tuple(int(n) for n in space.nvec),
            lambda value: np.asarray(value, int) - space.start,
            lambda row: (np.asarray(row) + space.start).astype(space.dtype),
        )
    if isinstance(space, spaces.Tuple):
        parts = [_codec(part, f"{name}[{i}]") for i, part in enumerate(space.spaces)]
        if all(len(part.sizes) == 1 for part in parts):
            return _Codec(
                tuple(part.sizes[0] for part in parts),
                lambda value: np.concatenate(
                    [part.encode(v) for part, v in zip(parts, value, strict=True)]
                ),
                lambda row: tuple(part.decode(row[i : i + 1]) for i, part in enumerate(parts)),
            )
    raise ValueError(f"{name} must be Discrete, MultiDiscrete or a Tuple of Discrete, got {space}")


def _space(sizes: tuple[int, ...]) -> Any:
    spaces = _library().spaces
    return spaces.Discrete(sizes[0]) if len(sizes) == 1 else spaces.MultiDiscrete(sizes)


def _controlled(model: POMDP) -> list[int]:
    """The factors whose control has more than one value."""
    return [f for f, size in enumerate(model.num_controls) if size > 1]


def _reward(model: POMDP, observation: np.ndarray, step: int) -> float:
    """``sum_m C_m[o_m]`` in nats, of the observation after so many steps, from 1."""
    rows = [c if c.ndim == 1 else c[min(step, len(c)) - 1] for c in model.C]
    return float(sum(float(row[o]) for row, o in zip(rows, observation, strict=True)))


def as_gymnasium(world: Environment, model: POMDP, num_steps: int) -> Any:
    """A ``gymnasium.Env`` that behaves as the world and pays what the model prefers.

    Observations are the modalities and actions the controls of the factors that have more than one:
    ``Discrete`` where there is one of them, else ``MultiDiscrete``. The reward of an observation is
    its log preference, ``sum_m C_m[o_m]`` in nats. Episodes are truncated after ``num_steps``
    actions and never terminated. Equal seeds of ``reset`` give equal episodes, and ``info`` says
    which state the world is in.

    Args:
        world: what happens.
        model: sizes of observations and controls, and the preferences C.
        num_steps: actions of an episode, at least 1.

    Raises:
        UserError: when gymnasium is not installed.
        ValueError: when nothing is controlled, or ``num_steps`` is below 1.

    >>> from vfejax.problems.environments import process, t_maze
    >>> maze = t_maze()
    >>> env = as_gymnasium(process(maze), maze, num_steps=3)
    >>> env.action_space, env.observation_space
    (Discrete(4), MultiDiscrete([4 3 3]))
    >>> env.reset(seed=0)[0].tolist()  # in the centre
    [0, 0, 0]
    """
    library = _library()
    base: Any = library.Env
    controlled = _controlled(model)
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if not controlled:
        raise ValueError("the model must have a factor with more than one control")
    actions = _codec(_space(tuple(model.num_controls[f] for f in controlled)), "action_space")
    seen = _codec(_space(model.num_observations), "observation_space")

    class World(base):
        """The world as gymnasium has it."""

        metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

        def __init__(self) -> None:
            self.action_space = _space(actions.sizes)
            self.observation_space = _space(seen.sizes)
            self._state: Array | None = None

        def _draw(self) -> Array:
            return jax.random.key(int(self.np_random.integers(2**31)))

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            self._taken = 0
            self._state, observation = world.init(self._draw())
            return seen.decode(np.asarray(observation)), {"state": np.asarray(self._state)}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            if self._state is None:
                raise library.error.ResetNeeded("call reset() before the first step()")
            if not self.action_space.contains(action):
                raise ValueError(f"action must be in {self.action_space}, got {action}")
            controls = np.zeros(len(model.B), np.int32)
            controls[controlled] = actions.encode(action)
            self._state, observation = world.step(self._state, jnp.asarray(controls), self._draw())
            self._taken += 1
            row = np.asarray(observation)
            pay = _reward(model, row, self._taken)
            info = {"state": np.asarray(self._state)}
            return seen.decode(row), pay, False, self._taken >= num_steps, info

    return World()


class GymnasiumEpisode(NamedTuple):
    """What happened in an ``Env``.

    Attributes:
        observations: integers that count from 0, ``[t + 1, m]``, the first one before any action.
        actions: the control of each factor, integers ``[t, f]``.
        rewards: ``[t]``.
        terminated: whether the episode came to an end of its own.
        truncated: whether it was cut off, by the ``Env`` or by ``num_steps``.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool
    truncated: bool


def act_in(env: Any, agent: Agent, model: POMDP, key: Array, num_steps: int) -> GymnasiumEpisode:
    """One episode of an agent in a ``gymnasium.Env``.

    The components of an observation are the modalities of the agent's model, in their order; its
    controls with more than one value are the components of an action.

    Args:
        env: with spaces ``Discrete``, ``MultiDiscrete`` or ``Tuple`` of ``Discrete``.
        agent: whose step may be compiled.
        model: the one that the agent was made from.
        key: a random key, of the world's seed and the agent's choices.
        num_steps: actions, at most.

    Raises:
        UserError: when gymnasium is not installed.
        ValueError: when the spaces are of another kind or do not fit the model, or ``num_steps`` is
            below 1.

    >>> from vfejax.inference.active_inference import agent, sophisticated_planner
    >>> from vfejax.problems.environments import process, t_maze
    >>> maze = t_maze()
    >>> env = as_gymnasium(process(maze), maze, num_steps=2)
    >>> seeker = agent(maze, sophisticated_planner(2), temperature=0)
    >>> compiled = seeker._replace(step=jax.jit(seeker.step))
    >>> act_in(env, compiled, maze, jax.random.key(0), 2).rewards.tolist()  # cue, then reward
    [0.0, 3.0]
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    seen = _codec(env.observation_space, "observation_space")
    taken = _codec(env.action_space, "action_space")
    controlled = _controlled(model)
    for name, found, wanted in (
        ("observation_space", seen.sizes, model.num_observations),
        ("action_space", taken.sizes, tuple(model.num_controls[f] for f in controlled)),
    ):
        if found != wanted:
            raise ValueError(f"{name} must have sizes {wanted} as the model, got {found}")
    first, key = jax.random.split(key)
    seed = int(jax.random.randint(first, (), 0, 2**31 - 1))
    rows = [seen.encode(env.reset(seed=seed)[0])]
    actions: list[np.ndarray] = []
    rewards: list[float] = []
    state, terminated, truncated = agent.init(), False, False
    while len(actions) < num_steps and not (terminated or truncated):
        key, own = jax.random.split(key)
        state, decision = agent.step(state, jnp.asarray(rows[-1], jnp.int32), own)
        actions.append(np.asarray(decision.action))
        chosen = taken.decode(actions[-1][controlled])
        observation, reward, terminated, truncated, _ = env.step(chosen)
        rows.append(seen.encode(observation))
        rewards.append(float(reward))
    cut = bool(truncated) or not terminated
    return GymnasiumEpisode(
        np.array(rows), np.array(actions), np.array(rewards), bool(terminated), cut
    )
