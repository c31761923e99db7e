"""A mass on a spring that a force moves, an agent that expects it at a goal, and two control laws.

    m dv/dt = -stiffness x - damping v + load + a,    y = (x, v) + z

The agent expects a critically damped approach, ``dv/dt = -w^2 (x - goal) - 2 w v``, and a static
goal. Where all errors are 0 it stands: at the goal, with ``a = stiffness goal - load``, whatever
load and mass are. Everything is linear, so that the whole approach is a matrix exponential.
"""

import jax.numpy as jnp
import numpy as np

from vfejax.inference.generalized_filtering import Level, Model
from vfejax.problems.closed_loop import World
from vfejax.types import Array, PyTree

__all__ = ["goal_model", "mass_spring", "regulator_gain", "tracking_gain"]


def mass_spring(
    mass: float | Array = 1.0,
    stiffness: float | Array = 1.0,
    damping: float | Array = 0.2,
    load: float | Array = 0.0,
) -> World:
    """The world: states and sensors are place and velocity, the action is a force.

    Args:
        mass: m.
        stiffness: of the spring, force per length.
        damping: force per velocity.
        load: constant force.

    >>> mass_spring(mass=2.0).motion_fn(jnp.array([1.0, 0.0]), jnp.array([0.0])).tolist()
    [0.0, -0.5]
    """

    def motion_fn(x: Array, a: Array) -> Array:
        force = load + a[0] - stiffness * x[0] - damping * x[1]
        return jnp.stack([x[1], force / mass])

    return World(motion_fn, lambda x: x)


def goal_model(
    *,
    frequency: float = 1.0,
    order: int = 2,
    smoothness: float = 0.5,
    sensor_precision: float = 1.0,
    motion_precision: float = 16.0,
    goal_precision: float = 1e4,
) -> Model:
    """What the agent expects: a critically damped approach to the cause, its goal.

    Its states are place and velocity and its parameters ``(None,)``. The goal is the prior of the
    cause.

    Args:
        frequency: w, of the approach, in radians per unit of time.
        order: number of derivatives.
        smoothness: s of all noise, in units of time.
        sensor_precision: of place and velocity.
        motion_precision: of the approach. The more it exceeds that of the sensors, the more the
            agent acts, and the less it explains what it senses.
        goal_precision: of the goal about its prior.

    >>> goal_model(order=3).levels[0].state_precision.shape
    (1, 2, 2)
    """

    def motion_fn(x: Array, v: Array, _: PyTree) -> Array:
        return jnp.stack([x[1], frequency**2 * (v[0] - x[0]) - 2 * frequency * x[1]])

    level = Level(
        motion_fn,
        lambda x, v, _: x,
        sensor_precision * np.eye(2)[None],
        motion_precision * np.eye(2)[None],
    )
    return Model((level,), goal_precision * np.eye(1), order, 1, smoothness)


def tracking_gain(frequency: float, mass: float, stiffness: float, damping: float) -> np.ndarray:
    """Gains K ``[2]`` of the force ``stiffness goal - K . (x - goal, v)`` under which the mass
    approaches as the agent expects: proportional and derivative control with known mass and spring.

    Args:
        frequency: w, of the approach.
        mass, stiffness, damping: of the world, as the designer takes them to be.

    >>> tracking_gain(1.0, 1.0, 1.0, 0.5).tolist()
    [0.0, 1.5]
    """
    return np.array([mass * frequency**2 - stiffness, 2 * mass * frequency - damping])


def regulator_gain(
    mass: float, stiffness: float, damping: float, place_cost: float, force_cost: float
) -> np.ndarray:
    """Gains K ``[2]`` of the linear quadratic regulator ``a = stiffness goal - K . (x - goal, v)``,
    least in ``integral of place_cost (x - goal)^2 + force_cost (a - stiffness goal)^2``.

    The Riccati equation of two states is solved in closed form.

    Args:
        mass, stiffness, damping: of the world, as the designer takes them to be.
        place_cost, force_cost: weights; only their ratio matters.

    >>> regulator_gain(1.0, 0.0, 0.0, 1.0, 1.0).round(4).tolist()  # 1, root 2
    [1.0, 1.4142]
    """
    spring = np.hypot(stiffness, np.sqrt(place_cost / force_cost)) - stiffness
    return np.array([spring, np.sqrt(damping**2 + 2 * mass * spring) - damping])
