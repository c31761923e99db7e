"""Closed loops: an agent that filters and acts, or a control law, and a world that moves, as one
flow.

World, belief and action are one vector, and a step is Ozaki's: exact for linear worlds and models,
also where the loop is stiff. What comes from outside, noise of sensors and the prior of causes,
moves along its Taylor series within a step.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from vfejax.inference.generalized_filtering import Hyperparameters, Observation, Path
from vfejax.inference.generalized_filtering.active_filtering import (
    ActiveFilter,
    ActiveState,
    Response,
    move,
)
from vfejax.inference.generalized_filtering.generalized_coordinates import along_flow, shift
from vfejax.inference.generalized_filtering.local_linearization import ozaki_step
from vfejax.inference.generalized_filtering.path_beliefs import FilterInfo
from vfejax.inference.generalized_filtering.smooth_noise import check_order
from vfejax.numerics import matmul, matvec
from vfejax.types import Array

__all__ = [
    "Loop",
    "LoopInfo",
    "LoopState",
    "World",
    "closed_loop",
    "noise_paths",
    "run_feedback",
    "run_loop",
    "sense",
]


class World(NamedTuple):
    """A world that moves by ``dx/dt = motion_fn(x [n], a [k])`` and is sensed as ``sensor_fn(x) ->
    [o]``.
    """

    motion_fn: Callable[[Array, Array], Array]
    sensor_fn: Callable[[Array], Array]


class LoopState(NamedTuple):
    """The state of the world ``[n]`` and that of the agent."""

    world: Array
    agent: ActiveState


class LoopInfo(NamedTuple):
    """What was so when a step began.

    Attributes:
        state: of world and agent.
        sensed: the generalised observation ``[order, o]``.
        belief: energy and covariance of the agent's belief.
    """

    state: LoopState
    sensed: Array
    belief: FilterInfo


class Loop(NamedTuple):
    """An agent in a world as two pure functions.

    Attributes:
        init: ``init(state [n], parameters, hyper, action [k], path=None) -> state``, the first for
            the world, the others for the agent.
        step: ``step(state, outside) -> (state, info)``, where ``outside`` is an Observation: its
            ``sensed`` is what is added to the sensors, its ``prior`` the expectation of the causes.
    """

    init: Callable[..., LoopState]
    step: Callable[[LoopState, Observation], tuple[LoopState, LoopInfo]]


def sense(world: World, state: Array, action: Array, order: int) -> Array:
    """Exact derivatives in time of what is sensed, while the action is held.

    Args:
        world: what moves.
        state: of the world, ``[n]``.
        action: ``[k]``.
        order: number of derivatives, the value included.

    Returns:
        ``[order, o]``.

    >>> fall = World(lambda x, a: jnp.stack([x[1], a[0]]), lambda x: x[:1])
    >>> sense(fall, jnp.array([0.0, 1.0]), jnp.array([-10.0]), 3)[:, 0].tolist()
    [0.0, 1.0, -10.0]
    """
    return along_flow(world.sensor_fn, lambda x: world.motion_fn(x, action), state, order)


def closed_loop(world: World, agent: ActiveFilter, dt: float) -> Loop:
    """An agent and its world, integrated together.

    Args:
        world: what moves and is sensed.
        agent: of :func:`vfejax.inference.generalized_filtering.active_filtering.active_filter`.
        dt: length of a step.

    Raises:
        ValueError: when dt is not above 0, the state of the world is no vector, or what the world
            gives does not fit the model of the agent.

    Source: Friston, Daunizeau, Kilner and Kiebel, Biological Cybernetics 102 (2010) 227, equation
    (7). There the world has generalised states; here action is held while its sensations are
    differentiated.

    >>> from vfejax.inference.generalized_filtering import active_filtering, hierarchical_models
    >>> from vfejax.problems.mass_spring import goal_model, mass_spring
    >>> model, spring = goal_model(), mass_spring()
    >>> own = active_filtering.forward_model(spring.motion_fn, spring.sensor_fn, model.order)
    >>> agent = active_filtering.active_filter(model, own, 0.1)
    >>> hyper = hierarchical_models.zero_hyperparameters(model)
    >>> loop = closed_loop(spring, agent, 0.1)
    >>> state = loop.init(jnp.zeros(2), (None,), hyper, jnp.zeros(1))
    >>> goal = Observation(jnp.zeros((model.order, 2)), jnp.ones((1, 1)))
    >>> jax.jit(loop.step)(state, goal)[1].sensed.shape
    (2, 2)
    """
    if not dt > 0:
        raise ValueError(f"dt must be above 0, got {dt}")

    def init(
        state: Array,
        parameters: tuple,
        hyper: Hyperparameters,
        action: Array,
        path: Path | None = None,
    ) -> LoopState:
        if state.ndim != 1:
            raise ValueError(f"state must be [n], got shape {state.shape}")
        return LoopState(state, agent.init(parameters, hyper, action, path))

    def step(state: LoopState, outside: Observation) -> tuple[LoopState, LoopInfo]:
        x, a, order = state.world, state.agent.action, outside.sensed.shape[0]

        def sensed(x: Array, a: Array) -> Array:
            return sense(world, x, a, order)

        seen = outside._replace(sensed=sensed(x, a) + outside.sensed)
        response = agent.respond(state.agent, seen)
        jacobian = _jacobian(
            jax.jacfwd(world.motion_fn, (0, 1))(x, a), jax.jacfwd(sensed, (0, 1))(x, a), response
        )
        columns = [jnp.concatenate([world.motion_fn(x, a), response.flow])]
        moving = outside
        for _ in range(1, order):
            moving = jax.tree.map(shift, moving)
            driven = matvec(response.by_seen, ravel_pytree(moving)[0])
            columns.append(jnp.concatenate([jnp.zeros_like(x), driven]))
        moved = ozaki_step(jacobian, jnp.stack(columns, axis=-1), dt)
        after = LoopState(x + moved[: x.size], move(state.agent, moved[x.size :]))
        return after, LoopInfo(state, seen.sensed, response.info)

    return Loop(init, step)


def _jacobian(
    motion: tuple[Array, Array], sensed: tuple[Array, Array], response: Response
) -> Array:
    """Of world, path and action, from derivatives by state and action of what moves and is
    sensed."""
    (by_state, by_action), size = motion, sensed[0].shape[0] * sensed[0].shape[1]
    own = ((0, 0), (response.flow.size - by_action.shape[1], 0))  # path before action
    through_state, through_action = (
        matmul(response.by_seen[:, :size], by.reshape(size, -1)) for by in sensed
    )
    return jnp.block(
        [
            [by_state, jnp.pad(by_action, own)],
            [through_state, response.by_self + jnp.pad(through_action, own)],
        ]
    )


def run_loop(loop: Loop, state: LoopState, outside: Observation) -> tuple[LoopState, LoopInfo]:
    """Many steps, by a sequential scan.

    Args:
        loop: agent and world.
        state: at the start.
        outside: noise of sensors ``[t, order, o]`` and prior of causes ``[t, cause_order, m]``.

    Returns:
        The last state, and the infos of all steps.

    >>> run_loop(Loop(int, lambda state, y: (state + y, state)), 0, jnp.arange(3))[1].tolist()
    [0, 0, 1]
    """
    return jax.lax.scan(loop.step, state, outside)


def run_feedback(
    world: World, policy_fn: Callable[[Array], Array], state: Array, noise: Array, dt: float
) -> tuple[Array, Array]:
    """A world under a control law that acts on what is sensed at once: the baseline.

    Args:
        world: what moves and is sensed.
        policy_fn: ``(sensed [o]) -> action [k]``.
        state: of the world at the start, ``[n]``.
        noise: generalised noise of the sensors, ``[t, order, o]``.
        dt: length of a step.

    Returns:
        States and actions when the steps begin, ``[t, n]`` and ``[t, k]``.

    >>> fall = World(lambda x, a: a, lambda x: x)
    >>> states, _ = run_feedback(fall, lambda y: -y, jnp.ones(1), jnp.zeros((2, 1, 1)), 1.0)
    >>> [round(float(x), 4) for x in states[:, 0]]
    [1.0, 0.3679]
    """

    def flow(x: Array, z: Array) -> Array:
        return world.motion_fn(x, policy_fn(world.sensor_fn(x) + z))

    def step(x: Array, noise: Array) -> tuple[Array, tuple[Array, Array]]:
        by_state, by_noise = jax.jacfwd(flow, (0, 1))(x, noise[0])
        columns = [flow(x, noise[0]), *(matvec(by_noise, z) for z in noise[1:])]
        after = x + ozaki_step(by_state, jnp.stack(columns, axis=-1), dt)
        return after, (x, policy_fn(world.sensor_fn(x) + noise[0]))

    return jax.lax.scan(step, state, noise)[1]


def noise_paths(
    rng: np.random.Generator, num: int, dt: float, order: int, smoothness: float, num_outputs: int
) -> np.ndarray:
    """Smooth noise of variance 1 with its derivatives, every ``dt``: white noise behind the kernel
    ``exp(-t^2 / 2 s^2)``, and behind the derivatives of that.

    Args:
        rng: a generator of NumPy.
        num: number of times.
        dt: between them.
        order: number of derivatives, the value included.
        smoothness: s, in units of time: the autocorrelation is ``exp(-h^2 / 4 s^2)``.
        num_outputs: independent series.

    Returns:
        ``[num, order, num_outputs]``, float64.

    Raises:
        ValueError: when order or number are below 1, or dt or smoothness not above 0.

    >>> noise_paths(np.random.default_rng(0), 5, 0.1, 3, 0.5, 2).shape
    (5, 3, 2)
    """
    check_order(order)
    if num < 1:
        raise ValueError(f"num must be at least 1, got {num}")
    for name, length in (("dt", dt), ("smoothness", smoothness)):
        if not length > 0:
            raise ValueError(f"{name} must be above 0, got {length}")
    substeps = max(1, int(np.ceil(4.0 * dt / smoothness)))
    grid = dt / substeps
    reach = int(np.ceil(7.0 * smoothness / grid))
    offsets = grid * np.arange(-reach, reach + 1) / smoothness
    weight = np.exp(-(offsets**2) / 2) * np.sqrt(grid / (smoothness * np.sqrt(np.pi)))
    kernels = [
        (-1 / smoothness) ** j * np.polynomial.hermite_e.hermeval(offsets, np.eye(order)[j])
        for j in range(order)
    ]
    white = rng.standard_normal(((num - 1) * substeps + 2 * reach + 1, num_outputs))
    windows = np.lib.stride_tricks.sliding_window_view(white, len(offsets), axis=0)[::substeps]
    # A draw at time u weighs kernel(t - u): the window runs backwards in t - u.
    return np.einsum("tow,jw->tjo", windows, (np.array(kernels) * weight)[:, ::-1])
