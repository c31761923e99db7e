"""Populations of Gaussian agents and their unconstrained coordinates.

A population is a pytree with a leading agent axis, and grid axes behind it when agents are fields
over a base manifold.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.beliefs import coordinates as gaussian_coordinates
from vfejax.beliefs.coordinates import GaussianCoordinates, fisher_length
from vfejax.beliefs.gaussian import Gaussian
from vfejax.geometry.groups import Generators, Group, as_group
from vfejax.numerics import safe_norm
from vfejax.types import Array, PyTree

__all__ = [
    "Population",
    "PopulationCoordinates",
    "check_shapes",
    "constrain",
    "limit_step",
    "retract",
    "unconstrain",
]


class Population(NamedTuple):
    """Beliefs q_i, priors p_i and frame coordinates phi_i of n agents.

    ``belief`` and ``prior`` have mean ``[n, *grid, k]`` and chol ``[n, *grid, k, k]``; ``phi`` is
    ``[n, *grid, a]``.
    """

    belief: Gaussian
    prior: Gaussian
    phi: Array


class PopulationCoordinates(NamedTuple):
    """Twin of :class:`Population` in which every array is unconstrained; the position of every
    dynamics.
    """

    belief: GaussianCoordinates
    prior: GaussianCoordinates
    phi: Array


def constrain(coordinates: PopulationCoordinates) -> Population:
    """The population at these coordinates."""
    return Population(
        gaussian_coordinates.constrain(coordinates.belief),
        gaussian_coordinates.constrain(coordinates.prior),
        coordinates.phi,
    )


def unconstrain(population: Population) -> PopulationCoordinates:
    """Coordinates of a population, inverse of :func:`constrain`."""
    return PopulationCoordinates(
        gaussian_coordinates.unconstrain(population.belief),
        gaussian_coordinates.unconstrain(population.prior),
        population.phi,
    )


def _shorten(tree: PyTree, length: Array, radius: float) -> PyTree:
    factor = radius / jnp.maximum(length, radius)
    return jax.tree.map(
        lambda x: x * jnp.reshape(factor, factor.shape + (1,) * (x.ndim - factor.ndim)), tree
    )


def limit_step(
    step: PopulationCoordinates,
    coordinates: PopulationCoordinates,
    *,
    gaussian_radius: float,
    frame_radius: float,
) -> PopulationCoordinates:
    """Trust region of every agent on its own: long steps are shortened, short ones pass unchanged.

    While frames are still misaligned a covariance can feel a force of hundreds of nats; no
    first-order step of that length is meaningful.

    Args:
        step: proposed change of the coordinates.
        coordinates: where the step starts.
        gaussian_radius: longest Fisher length of one belief's or prior's step (0.3 changes it by
            about 0.05 nats of KL).
        frame_radius: longest step of one agent's frame coordinates, in radians.

    Returns:
        A step with the shapes of ``step``.
    """
    return PopulationCoordinates(
        _shorten(step.belief, fisher_length(coordinates.belief, step.belief), gaussian_radius),
        _shorten(step.prior, fisher_length(coordinates.prior, step.prior), gaussian_radius),
        _shorten(step.phi, safe_norm(step.phi), frame_radius),
    )


def retract(
    coordinates: PopulationCoordinates, step: PopulationCoordinates, group: Group
) -> PopulationCoordinates:
    """The population after a step; frame coordinates move by the group's own retraction.

    Args:
        coordinates: where the step starts.
        step: change of the coordinates, of the same shapes.
        group: of the frames; :func:`vfejax.geometry.irreps.so3` keeps them in the principal ball.

    Returns:
        New coordinates.
    """
    moved = jax.tree.map(lambda x, dx: (x + dx).astype(x.dtype), coordinates, step)
    return moved._replace(phi=group.retract(coordinates.phi, step.phi))


def check_shapes(population: Population, generators: Generators) -> None:
    """Raise ValueError, naming the array, unless all shapes of the population fit each other and
    the generators.
    """
    shape = population.belief.mean.shape
    num_generators, k, _ = as_group(generators).generators.shape
    if len(shape) < 2 or shape[-1] != k:
        raise ValueError(
            f"belief.mean must have shape [n, *grid, k] with k = {k} from the generators, got {shape}"
        )
    expected = {
        "belief.chol": (population.belief.chol, (*shape, k)),
        "prior.mean": (population.prior.mean, shape),
        "prior.chol": (population.prior.chol, (*shape, k)),
        "phi": (population.phi, (*shape[:-1], num_generators)),
    }
    for name, (array, want) in expected.items():
        if array.shape != want:
            raise ValueError(
                f"{name} must have shape {want} to fit belief.mean {shape}, got {array.shape}"
            )
