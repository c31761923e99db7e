"""The mountain car: an engine too weak for the hill, so that the car must first swing back.

    dx/dt = v,    dv/dt = -H'(x) - friction v + max_force tanh(a),    y = (x, v) + z

The valley lies at x = -1/2 and the goal at x = 1, behind a slope of 1 at x = 0. There an engine of
less than half of that force cannot take a car that starts at rest in the valley. The agent expects
its energy to approach that of the goal, and itself to come to rest near the goal: that is all it
takes.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.inference.generalized_filtering import Level, Model
from vfejax.problems.closed_loop import World
from vfejax.types import Array, PyTree

__all__ = ["GOAL", "VALLEY", "height", "mountain_car", "pumping", "swing_model"]

VALLEY, GOAL = -0.5, 1.0


def height(x: Array) -> Array:
    """The landscape H, energy per mass; 0 at x = 0.

    ``x^2 + x`` left of 0, ``x / sqrt(1 + 5 x^2) + x^5 / 80`` right of it.

    Args:
        x: places, of any shape.

    Source: Friston, Daunizeau and Kiebel, Reinforcement learning or active inference?, PLoS ONE 4
    (2009) e6421; the slopes are theirs.

    >>> [round(float(h), 4) for h in height(jnp.array([-0.5, 0.0, 1.0]))]
    [-0.25, 0.0, 0.4207]
    """
    right = x / jnp.sqrt(1 + 5 * x**2) + x**5 / 80
    return jnp.where(x < 0, x**2 + x, right)


def mountain_car(
    *, friction: float | Array = 0.125, max_force: float | Array = 0.25, load: float | Array = 0.0
) -> World:
    """The world: states and sensors are place and velocity; an action is squashed to a force.

    Args:
        friction: force per velocity and mass.
        max_force: of the engine, per mass.
        load: constant force per mass, such as wind.

    >>> mountain_car().motion_fn(jnp.array([VALLEY, 0.0]), jnp.zeros(1)).tolist()
    [0.0, 0.0]
    """

    def motion_fn(x: Array, a: Array) -> Array:
        force = max_force * jnp.tanh(a[0]) + load - friction * x[1]
        return jnp.stack([x[1], force - jax.grad(height)(x[0])])

    return World(motion_fn, lambda x: x)


def _expected_force(x: Array, gain: float, frequency: float) -> Array:
    """Acceleration that the agent expects: of a pumped swing, and of an approach near the goal."""
    place, velocity = x
    lack = height(jnp.asarray(GOAL, x.dtype)) - height(place) - velocity**2 / 2
    swing = gain * lack * velocity - jax.grad(height)(place)
    approach = frequency**2 * (GOAL - place) - 2 * frequency * velocity
    near = jax.nn.sigmoid((place - 0.7) / 0.05)
    return near * approach + (1 - near) * swing


def swing_model(
    *,
    gain: float = 1.0,
    frequency: float = 1.0,
    order: int = 2,
    smoothness: float = 0.5,
    sensor_precision: float = 1.0,
    motion_precision: float = 16.0,
) -> Model:
    """What the agent expects: ``dv/dt = -H'(x) + gain (H(goal) - E) v`` with the energy ``E = H +
    v^2 / 2``, and near the goal a critically damped approach. Its parameters are ``(None,)``.

    Args:
        gain: how fast the energy approaches that of the goal.
        frequency: of the approach near the goal.
        order: number of derivatives.
        smoothness: s of all noise, in units of time.
        sensor_precision: of place and velocity.
        motion_precision: of what is expected.

    Source: pumping of energy by Astrom and Furuta, Swinging up a pendulum by energy control,
    Automatica 36 (2000) 287.

    >>> swing_model().cause_precision.shape
    (0, 0)
    """

    def motion_fn(x: Array, _: Array, __: PyTree) -> Array:
        return jnp.stack([x[1], _expected_force(x, gain, frequency)])

    level = Level(
        motion_fn,
        lambda x, v, _: x,
        sensor_precision * np.eye(2)[None],
        motion_precision * np.eye(2)[None],
    )
    return Model((level,), np.zeros((0, 0)), order, 1, smoothness)


def pumping(sensed: Array) -> Array:
    """The action of the baseline: all force in the direction of the motion until the top is
    reached, and then towards the goal against the velocity.

    Args:
        sensed: place and velocity ``[2]``.

    >>> pumping(jnp.array([VALLEY, -0.1])).tolist()
    [-5.0]
    """
    place, velocity = sensed
    onward = jnp.where(velocity >= 0, 1.0, velocity)  # NaN stays
    swing = 5.0 * jnp.where(velocity < 0, -1.0, onward)
    approach = 4.0 * (GOAL - place) - 8.0 * velocity + 0.5
    return jnp.where(place < 0.7, swing, approach).astype(sensed.dtype)[None]
