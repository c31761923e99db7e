"""Active generalised filtering: belief and action descend one free energy.

The generalised observation depends on action, ``y~ = y~(a)``, while F does not know of it:

    d mu~/dt = D mu~ - rate M dF/dmu~                       perception
    d a/dt   = -action_rate N (dy~/da)^T dF/dy~             action

``dF/dy~ = Pi~ e~_y`` is the precise error of the lowest level, so action is a reflex arc: it makes
what is sensed agree with what is expected. A model whose flow is a wish (a pull to a goal, a
gait) is fulfilled by it, and a constant load is held against, for action is an integral of errors.

``dy~/da`` is the forward model, all that the agent knows about the effect of its actions. A force
reaches an observed velocity by its first derivative, so a reflex needs two derivatives at least. An
agent that believes its senses far more than its wishes (``Pi_z`` many times ``Pi_w``) finds that it
does not move, explains it, and acts slowly or not steadily.

A step is Ozaki's (:mod:`vfejax.inference.generalized_filtering.local_linearization`). Alone, the
filter expects that what it senses follows its action as the forward model says; in a loop with a
world (:mod:`vfejax.problems.closed_loop`) both are one flow.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from vfejax.inference.generalized_filtering.filters import MetricFn, identity_metric
from vfejax.inference.generalized_filtering.generalized_coordinates import (
    advance,
    along_flow,
    shift,
    shift_matrix,
)
from vfejax.inference.generalized_filtering.hierarchical_models import (
    Hyperparameters,
    Model,
    Observation,
    Path,
    observation,
    rest,
)
from vfejax.inference.generalized_filtering.local_linearization import ozaki_step
from vfejax.inference.generalized_filtering.path_beliefs import (
    Expansion,
    FilterInfo,
    FilterState,
    describe,
)
from vfejax.inference.generalized_filtering.path_energy import residuals
from vfejax.numerics import as_floating, matmul, matmul_nt, matmul_tn, matvec
from vfejax.types import Array

__all__ = [
    "ActiveFilter",
    "ActiveState",
    "ForwardFn",
    "Response",
    "active_filter",
    "forward_model",
    "move",
]


class ForwardFn(Protocol):
    """What an action does to the generalised observation: ``(path, action [k]) -> dy~/da
    [order, o, k]``."""

    def __call__(self, path: Path, action: Array, /) -> Array: ...


class ActiveState(NamedTuple):
    """What the agent believes, and what it does, ``action [k]``."""

    belief: FilterState
    action: Array


class Response(NamedTuple):
    """The flow of the flat path and the action, and how it changes.

    Attributes:
        flow: ``[n + k]``, path first.
        by_self: its derivative by path and action, ``[n + k, n + k]``, with metric and forward
            model held.
        by_seen: its derivative by the flat observation, ``[n + k, order o + cause_order m]``.
        forward: ``dy~/da`` of the flat observation, ``[order o + cause_order m, k]``.
        info: energy and covariance of the belief.
    """

    flow: Array
    by_self: Array
    by_seen: Array
    forward: Array
    info: FilterInfo


class ActiveFilter(NamedTuple):
    """An agent that filters and acts, as three pure functions.

    Attributes:
        init: ``init(parameters, hyper, action [k], path=None) -> ActiveState``.
        step: ``step(state, observation) -> (ActiveState, FilterInfo)``: after it, belief and
            action are those of the time of the observation. The info is that of the beginning.
        respond: ``respond(state, observation) -> Response``: for those who integrate the agent
            together with its world.
    """

    init: Callable[..., ActiveState]
    step: Callable[[ActiveState, Observation], tuple[ActiveState, FilterInfo]]
    respond: Callable[[ActiveState, Observation], Response]


def forward_model(
    motion_fn: Callable[[Array, Array], Array],
    sensor_fn: Callable[[Array], Array],
    order: int,
    state_fn: Callable[[Path], Array] = lambda path: path.states[0][0],
) -> ForwardFn:
    """The forward model of an agent that knows how things move and what it senses of them.

    Derivatives of ``sensor_fn(x(t))`` with ``dx/dt = motion_fn(x, a)`` and a held, differentiated
    by a, where the agent believes that it is.

    Args:
        motion_fn: ``(state [n], action [k]) -> [n]``.
        sensor_fn: ``(state [n]) -> [o]``.
        order: number of derivatives, the value included.
        state_fn: from the believed path to the state; by default the states of the lowest level.

    Returns:
        ``dy~/da``.

    >>> path = Path((jnp.zeros((2, 2)),), (jnp.zeros((1, 0)),))
    >>> mass = forward_model(lambda x, a: jnp.stack([x[1], a[0] / 2]), lambda x: x, 2)
    >>> mass(path, jnp.zeros(1))[..., 0].tolist()  # a force of 1 on a mass of 2
    [[0.0, 0.0], [0.0, 0.5]]
    """

    def forward_fn(path: Path, action: Array, /) -> Array:
        def sensed(a: Array) -> Array:
            return along_flow(sensor_fn, lambda x: motion_fn(x, a), state_fn(path), order)

        return jax.jacfwd(sensed)(action)

    return forward_fn


def move(state: ActiveState, distance: Array) -> ActiveState:
    """The state after its flat path and its action have moved.

    Args:
        state: before.
        distance: ``[n + k]``, path first.

    >>> belief = FilterState(Path((jnp.zeros((1, 1)),), (jnp.zeros((1, 0)),)), (), None)
    >>> move(ActiveState(belief, jnp.zeros(1)), jnp.array([1.0, 2.0])).action.tolist()
    [2.0]
    """
    flat, unravel = ravel_pytree(state.belief.path)
    belief = state.belief._replace(path=unravel(flat + distance[: flat.size]))
    return ActiveState(belief, state.action + distance[flat.size :])


def active_filter(
    model: Model,
    forward_fn: ForwardFn,
    dt: float,
    *,
    rate: ArrayLike = 1.0,
    action_rate: ArrayLike = 1.0,
    metric_fn: MetricFn = identity_metric,
    action_metric_fn: MetricFn = identity_metric,
) -> ActiveFilter:
    """An agent that fulfils the expectations of its model.

    Args:
        model: what it expects: its motion is what it wants to happen.
        forward_fn: ``dy~/da``, as of :func:`forward_model`.
        dt: time between observations.
        rate: of perception; per unit of time with
            :func:`vfejax.inference.generalized_filtering.natural_metric`.
        action_rate: of action.
        metric_fn: from the curvature of F by the path to the metric of its descent.
        action_metric_fn: the same for action. With ``natural_metric`` errors that action can reach
            shrink at ``action_rate`` per unit of time; every action must have an effect then.

    Returns:
        ``init``, ``step`` and ``respond``.

    Raises:
        ValueError: when dt is not above 0, the action is no vector, or the shapes of observation or
            forward model do not fit the model.

    Source: Friston, Daunizeau, Kilner and Kiebel, Action and behavior: a free-energy formulation,
    Biological Cybernetics 102 (2010) 227, equations (6) and (7). Ours differs by the metrics.

    >>> from vfejax.inference.generalized_filtering import natural_metric
    >>> from vfejax.inference.generalized_filtering import observation, zero_hyperparameters
    >>> from vfejax.problems.mass_spring import goal_model, mass_spring
    >>> model, world = goal_model(), mass_spring()
    >>> forward_fn = forward_model(world.motion_fn, world.sensor_fn, model.order)
    >>> agent = active_filter(model, forward_fn, 0.1, metric_fn=natural_metric)
    >>> state = agent.init((None,), zero_hyperparameters(model), jnp.zeros(1))
    >>> goal = observation(model, jnp.zeros((model.order, 2)), jnp.ones((1, 1)))
    >>> state, info = jax.jit(agent.step)(state, goal)
    >>> bool(state.action[0] > 0)  # towards the goal
    True
    """
    if not dt > 0:
        raise ValueError(f"dt must be above 0, got {dt}")

    def init(
        parameters: tuple, hyper: Hyperparameters, action: Array, path: Path | None = None
    ) -> ActiveState:
        action = as_floating(action, "action")
        if action.ndim != 1:
            raise ValueError(f"action must be [k], got shape {action.shape}")
        path = rest(model, hyper.output[0].dtype) if path is None else path
        return ActiveState(FilterState(path, parameters, hyper), action)

    def respond(state: ActiveState, seen: Observation) -> Response:
        belief, seen = state.belief, observation(model, seen.sensed, seen.prior)
        forward = _forward(forward_fn(belief.path, state.action), seen, state.action)
        value, by_path, by_seen = _errors(model, belief, seen)
        by_action = matmul(by_seen, forward)
        curvature = matmul_tn(by_path, by_path)
        metric = metric_fn(curvature)
        action_metric = action_metric_fn(matmul_tn(by_action, by_action))
        speed, action_speed = (jnp.asarray(r, value.dtype) for r in (rate, action_rate))
        # F is half the square of the errors: dF/dmu~ = by_path^T value, and action descends
        # by_action^T value.
        descent = jnp.concatenate(
            [speed * matmul_nt(metric, by_path), action_speed * matmul_nt(action_metric, by_action)]
        )
        num_actions = state.action.size
        drift, motion = _own_motion(belief.path, num_actions)
        expansion = Expansion(matvec(by_path.T, value), curvature, matmul_tn(by_path, by_seen))
        return Response(
            flow=drift - matvec(descent, value),
            by_self=motion - jnp.pad(matmul(descent, by_path), ((0, 0), (0, num_actions))),
            by_seen=-matmul(descent, by_seen),
            forward=forward,
            info=describe(model, belief, seen, expansion),
        )

    def step(state: ActiveState, seen: Observation) -> tuple[ActiveState, FilterInfo]:
        length = jnp.asarray(dt, state.action.dtype)
        moving = jax.tree.map(lambda y: advance(y, -length), seen)
        response = respond(state, moving)
        derivatives = _derivatives(response, moving, model.order)
        # What is sensed follows the action as the forward model says.
        own_effect = matmul(response.by_seen, response.forward)
        path_size = response.flow.size - state.action.size
        jacobian = response.by_self + jnp.pad(own_effect, ((0, 0), (path_size, 0)))
        return move(state, ozaki_step(jacobian, derivatives, length)), response.info

    return ActiveFilter(init, step, respond)


def _own_motion(path: Path, num_actions: int) -> tuple[Array, Array]:
    """``D mu~`` of the flat path and its derivative, with zeros for the action: it has no motion of
    its own.
    """
    drift = ravel_pytree(jax.tree.map(shift, path))[0]
    motion = shift_matrix(jax.tree.leaves(path))
    return jnp.pad(drift, (0, num_actions)), jnp.pad(motion, (0, num_actions))


def _derivatives(response: Response, seen: Observation, order: int) -> Array:
    """The flow and its derivatives in time as the observation moves, ``[n + k, order]``."""
    columns = [response.flow]
    for _ in range(1, order):
        seen = jax.tree.map(shift, seen)
        columns.append(matvec(response.by_seen, ravel_pytree(seen)[0]))
    return jnp.stack(columns, axis=-1)


def _forward(forward: Array, seen: Observation, action: Array) -> Array:
    """``dy~/da`` of the flat observation; no action changes the prior."""
    wanted = *seen.sensed.shape, action.size
    if forward.shape != wanted:
        raise ValueError(f"forward_fn must give {list(wanted)}, got {list(forward.shape)}")
    return jnp.pad(forward.reshape(-1, action.size), ((0, seen.prior.size), (0, 0)))


def _errors(model: Model, belief: FilterState, seen: Observation) -> tuple[Array, Array, Array]:
    """Whitened errors ``[r]``, and their Jacobians by the flat path and the flat observation."""
    flat, unravel = ravel_pytree(belief.path)
    flat_seen, unravel_seen = ravel_pytree(seen)

    def errors(z: Array) -> Array:
        path, now = unravel(z[: flat.size]), unravel_seen(z[flat.size :])
        return residuals(model, path, now, belief.parameters, belief.hyper)

    z = jnp.concatenate([flat, flat_seen])
    jacobian = jax.jacfwd(errors)(z)
    return errors(z), jacobian[:, : flat.size], jacobian[:, flat.size :]
