"""Several agents in one world.

A world of n agents is an :class:`~vfejax.problems.environments.Environment` whose states,
observations and actions have an axis of agents in front, and agents together are one ``Agent``
with that axis: by ``vmap`` where they are of one kind, one after the other where they are not.
:func:`~vfejax.problems.episodes.run_episode` then runs them as it runs one.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.inference.active_inference import Agent, Decision
from vfejax.inference.pomdp.model import POMDP
from vfejax.problems.environments import Environment
from vfejax.problems.grid_world import marks, move_targets
from vfejax.types import Array

__all__ = ["alike", "shared_grid", "shared_grid_model", "team"]


def alike(agent: Agent, num: int) -> Agent:
    """Agents of one kind, each with its own state, observation and key.

    Args:
        agent: the kind.
        num: how many, at least 1.

    Returns:
        An agent whose states, observations ``[num, m]`` and decisions have an axis in front.

    >>> from vfejax.inference.active_inference import agent, policy_planner
    >>> from vfejax.inference.policies import enumerate_policies
    >>> model = shared_grid_model("...")
    >>> pair = alike(agent(model, policy_planner(enumerate_policies(model, 1))), 2)
    >>> pair.init().prior[0].shape
    (2, 3)
    """
    if num < 1:
        raise ValueError(f"num must be at least 1, got {num}")

    def init() -> Any:
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *jnp.shape(x))), agent.init())

    def step(
        state: Any, observation: Array, key: Array, mask: Array | None = None
    ) -> tuple[Any, Decision]:
        keys = jax.random.split(key, num)
        if mask is None:
            return jax.vmap(agent.step)(state, observation, keys)
        return jax.vmap(agent.step)(state, observation, keys, mask)

    return Agent(init, step)


def team(agents: Sequence[Agent]) -> Agent:
    """Agents of different kinds: what is inside them comes as a tuple, what they do as one array.

    Args:
        agents: at least one; they have as many modalities and factors as the world has for each.

    Returns:
        An agent of observations ``[n, m]``, whose decisions have actions ``[n, f]``, free energies
        ``[n]``, and beliefs and plans as tuples.

    Raises:
        ValueError: when there is no agent, or by ``step`` when the world has another number.

    >>> from vfejax.inference.active_inference import agent, policy_planner, utility_planner
    >>> from vfejax.inference.policies import enumerate_policies
    >>> model = shared_grid_model("...")
    >>> every = enumerate_policies(model, 1)
    >>> pair = team([agent(model, policy_planner(every)), agent(model, utility_planner(every))])
    >>> len(pair.init())
    2
    """
    if not agents:
        raise ValueError("agents must have at least one")

    def init() -> tuple:
        return tuple(agent.init() for agent in agents)

    def step(
        state: tuple, observation: Array, key: Array, mask: Array | None = None
    ) -> tuple[tuple, Decision]:
        if len(observation) != len(agents):
            raise ValueError(
                f"observation must have a row for each of {len(agents)} agents, got "
                f"{len(observation)}"
            )
        keys = jax.random.split(key, len(agents))
        found = [
            agent.step(state[i], observation[i], keys[i], None if mask is None else mask[i])
            for i, agent in enumerate(agents)
        ]
        states, decisions = zip(*found, strict=True)
        plans: Any = tuple(d.plan for d in decisions)
        together = Decision(
            beliefs=tuple(d.beliefs for d in decisions),
            free_energy=jnp.stack([d.free_energy for d in decisions]),
            plan=plans,
            action=jnp.stack([d.action for d in decisions]),
        )
        return states, together

    return Agent(init, step)


def _geometry(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Targets of moves ``[s, 5]``, and distances between places in rows and columns ``[s, s]``."""
    cells = np.array([(row, column) for row, column, _ in marks(text, ". ")])
    if not len(cells):
        raise ValueError("the map must have a place that is no wall")
    return move_targets(cells), np.abs(cells[:, None] - cells[None]).sum(axis=-1)


def shared_grid(text: str, num_agents: int = 2, *, sight: int = 2) -> Environment:
    """Agents on a text map of walls and free places, none of which holds two of them.

    They move one after the other, in an order that is drawn anew at every step; a move to a place
    that is taken is not made. Modality 0 is the own place, modality 1 the place of the nearest
    other one within sight (or, as the last value, nobody), modality 2 whether one stands beside.
    They start at different places, all equally probable.

    Args:
        text: a map of ``#``, ``.`` and spaces.
        num_agents: at least 2, and no more than there are places.
        sight: in rows plus columns; walls do not hide.

    Raises:
        ValueError: for another mark on the map, or a number of agents that is not possible.

    >>> world = shared_grid("...", 2)
    >>> _, seen = world.step(jnp.array([[0], [2]]), jnp.array([[1], [4]]), jax.random.key(0))
    >>> seen.tolist()  # the first came to the middle
    [[1, 2, 1], [2, 1, 1]]
    """
    targets, distance = (jnp.asarray(x) for x in _geometry(text))
    num = len(targets)
    if not 2 <= num_agents <= num:
        raise ValueError(f"num_agents must be 2 to {num}, the places of the map, got {num_agents}")
    apart = distance.max() + 1

    def observe(places: Array) -> Array:
        own = jnp.eye(num_agents, dtype=bool)
        far = jnp.where(own, apart, distance[places[:, None], places[None]])
        nearest = jnp.argmin(far, axis=1)
        reach = jnp.min(far, axis=1)
        other = jnp.where(reach <= sight, places[nearest], num)
        return jnp.stack([places, other, (reach == 1).astype(places.dtype)], axis=1)

    def init(key: Array) -> tuple[Array, Array]:
        places = jax.random.permutation(key, num)[:num_agents]
        return places[:, None], observe(places)

    def step(state: Array, action: Array, key: Array) -> tuple[Array, Array]:
        state, action = jnp.asarray(state), jnp.asarray(action)

        def move(places: Array, i: Array) -> tuple[Array, None]:
            target = targets[places[i], action[i, 0]].astype(places.dtype)
            taken = jnp.any((places == target) & (jnp.arange(num_agents) != i))
            return places.at[i].set(jnp.where(taken, places[i], target)), None

        places, _ = jax.lax.scan(move, state[:, 0], jax.random.permutation(key, num_agents))
        return places[:, None], observe(places)

    return Environment(init, step)


def shared_grid_model(
    text: str,
    *,
    sight: int = 2,
    reward: float = 3.0,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> POMDP:
    """What an agent of :func:`shared_grid` may believe about it: there is one other, and it strays.

    Factor 0 is the own place, factor 1 that of the other, which takes any move with the same
    probability. The place of the other stops a move as it is before both have moved.

    Args:
        text: a map of ``#``, ``.`` and spaces.
        sight: in rows plus columns.
        reward: log preference for standing beside the other, in nats.
        dtype: of the arrays.

    Raises:
        ValueError: for another mark on the map.

    >>> shared_grid_model("...").num_observations
    (3, 4, 2)
    """
    targets, distance = _geometry(text)
    num = len(targets)
    eye = np.eye(num)
    move = eye[targets].transpose(2, 0, 1)  # [s', s, u]
    own = np.repeat(move[:, :, None], num, axis=2)  # [s', s, other, u]
    for place, u in np.ndindex(targets.shape):
        other = targets[place, u]
        own[:, place, other, u] = eye[place]
    seen = np.zeros((num + 1, num, num))
    for place, other in np.ndindex(num, num):
        seen[other if distance[place, other] <= sight else num, place, other] = 1
    beside = (distance == 1).astype(float)

    def array(x: np.ndarray) -> Array:
        return jnp.asarray(x, dtype)

    return POMDP(
        [array(eye), array(seen), array(np.stack([1 - beside, beside]))],
        [array(own), array(move.mean(axis=2)[..., None])],
        [jnp.zeros(num, dtype), jnp.zeros(num + 1, dtype), jnp.array([0.0, reward], dtype)],
        [jnp.full(num, 1 / num, dtype)] * 2,
        A_dependencies=[[0], [0, 1], [0, 1]],
        B_dependencies=[[0, 1], [1]],
    )
