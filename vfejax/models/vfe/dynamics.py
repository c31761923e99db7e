"""Dynamics of the means of agents along the natural gradient of their free energies.

*Gradient flow* goes down it. *Hamiltonian dynamics* give the means a velocity u, with a mass in
units of their precision:

    u <- exp(-friction eta) u - eta Sigma dF/dmean / mass,    mean <- mean + eta u,

Stoermer-Verlet with velocities half a step behind the means. Inference shortens a step that is
longer than the trust radius r, and the velocity by the same share. So a velocity is at most
``r / eta`` as a Fisher length. An agent that comes from far arrives at its minimum with a kinetic
energy of at most ``mass (r / eta)^2 / 2``, and not with all the energy that it has lost.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from vfejax.types import Array, PyTree

__all__ = ["Dynamics", "gradient_flow", "hamiltonian"]


class Dynamics(NamedTuple):
    """How means move.

    Attributes:
        init: ``mean -> memory``, a pytree of arrays ``[b, n, heads, ...]``, or None.
        step: ``(memory, ascent, eta) -> (change of the mean, memory)`` for the natural gradient
            ``ascent`` of the energy. Both are multiplied by the share of the step that is made.
    """

    init: Callable[[Array], PyTree]
    step: Callable[[PyTree, Array, Array], tuple[Array, PyTree]]


def gradient_flow() -> Dynamics:
    """Down the natural gradient.

    >>> gradient_flow().step(None, jnp.ones(1), jnp.asarray(0.5))[0].tolist()
    [-0.5]
    """
    return Dynamics(lambda mean: None, lambda memory, ascent, eta: (-eta * ascent, None))


def hamiltonian(mass: float = 1.0, friction: float = 1.0) -> Dynamics:
    """With a velocity, which decays.

    Args:
        mass: in units of the precision.
        friction: rate of decay per unit of step size.

    >>> change, velocity = hamiltonian(2.0).step(jnp.zeros(1), jnp.ones(1), jnp.asarray(0.5))
    >>> change.tolist(), velocity.tolist()
    ([-0.125], [-0.25])
    """

    def step(velocity: Array, ascent: Array, eta: Array) -> tuple[Array, Array]:
        velocity = jnp.exp(-friction * eta) * velocity - eta / mass * ascent
        return eta * velocity, velocity

    return Dynamics(jnp.zeros_like, step)
