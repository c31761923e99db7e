"""Populations of Gaussian agents and their unconstrained coordinates.

A population is a pytree with a leading agent axis, and grid axes behind it when agents are fields
over a base manifold.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from vfejax.beliefs import coordinates as gaussian_coordinates
from vfejax.beliefs.coordinates import GaussianCoordinates, fisher_length
from vfejax.beliefs.gaussian import Gaussian
from vfejax.geometry.groups import Generators, as_group
from vfejax.numerics import safe_norm
from vfejax.types import Array, PyTree

__all__ = [
    "Population",
    "PopulationCoordinates",
    "beliefs_and_priors",
    "check_array",
    "check_population",
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
    """The population at these coordinates.

    Raises:
        ValueError: for a population, which has no coordinates yet.

    >>> unit = Gaussian(jnp.zeros((2, 3)), jnp.tile(jnp.eye(3), (2, 1, 1)))
    >>> agents = Population(unit, unit, jnp.zeros((2, 3)))
    >>> constrain(unconstrain(agents)).belief.chol[0]
    Array([[1., 0., 0.],
           [0., 1., 0.],
           [0., 0., 1.]], dtype=float32)
    """
    if isinstance(coordinates, Population):
        raise ValueError("coordinates: got a Population; unconstrain(population) has coordinates")
    return Population(
        gaussian_coordinates.constrain(coordinates.belief),
        gaussian_coordinates.constrain(coordinates.prior),
        coordinates.phi,
    )


def unconstrain(population: Population) -> PopulationCoordinates:
    """Coordinates of a population, inverse of :func:`constrain`.

    >>> unit = Gaussian(jnp.zeros((2, 3)), jnp.tile(jnp.eye(3), (2, 1, 1)))
    >>> unconstrain(Population(unit, unit, jnp.zeros((2, 3)))).belief.factor[0, 0, 0]  # log 1
    Array(0., dtype=float32)
    """
    return PopulationCoordinates(
        gaussian_coordinates.unconstrain(population.belief),
        gaussian_coordinates.unconstrain(population.prior),
        population.phi,
    )


def _shorten(tree: PyTree, length: Array, radius: float | Array) -> PyTree:
    """Scale a step of each agent down to the radius. The comparisons leave a NaN a NaN, and the
    gradient of a step of length 0 finite.
    """
    short = length <= radius
    factor = jnp.where(short, 1.0, radius / jnp.where(short, 1.0, length))
    # A length that has overflowed has no direction either: not a step of 0.
    factor = jnp.where(length == jnp.inf, jnp.nan, factor)
    return jax.tree.map(
        lambda x: x * jnp.reshape(factor, factor.shape + (1,) * (x.ndim - factor.ndim)), tree
    )


def beliefs_and_priors(
    function: Callable[..., PyTree], *populations: Population | PopulationCoordinates
) -> tuple[PyTree, PyTree]:
    """A function of Gaussians, of the beliefs and of the priors: one stack of both goes through it,
    so it is compiled once and not twice.

    Args:
        function: takes Gaussians (or their coordinates), one for each population.
        populations: populations or their coordinates, with the same shapes.

    Returns:
        What the function gives for the beliefs, and for the priors.

    >>> one = Gaussian(jnp.ones((2, 3)), jnp.tile(jnp.eye(3), (2, 1, 1)))
    >>> zero = one._replace(mean=jnp.zeros((2, 3)))
    >>> beliefs_and_priors(lambda q: q.mean.sum(), Population(one, zero, jnp.zeros((2, 3))))
    (Array(6., dtype=float32), Array(0., dtype=float32))
    """
    stacked = [jax.tree.map(lambda *x: jnp.stack(x), p.belief, p.prior) for p in populations]
    both = jax.vmap(function)(*stacked)
    belief, prior = (jax.tree.map(lambda x, i=i: x[i], both) for i in range(2))
    return belief, prior


def limit_step(
    step: PopulationCoordinates,
    coordinates: PopulationCoordinates,
    *,
    gaussian_radius: float | Array,
    frame_radius: float | Array,
) -> PopulationCoordinates:
    """Trust region of every agent on its own: long steps are shortened, short ones pass unchanged.

    While frames are still misaligned a covariance can feel a force of hundreds of nats; no
    first-order step of that length is meaningful.

    Args:
        step: proposed change of the coordinates.
        coordinates: where the step starts.
        gaussian_radius: longest Fisher length of one belief's or prior's step (0.3 changes it by
            about 0.05 nats of KL); 0 lets none through.
        frame_radius: longest step of one agent's frame coordinates, in radians.

    Returns:
        A step with the shapes of ``step``; NaN where a length overflows.

    >>> unit = Gaussian(jnp.zeros((2, 3)), jnp.tile(jnp.eye(3), (2, 1, 1)))
    >>> rest = unconstrain(Population(unit, unit, jnp.zeros((2, 3))))
    >>> step = rest._replace(phi=jnp.array([[0.0, 3.0, 4.0], [0.0, 0.1, 0.0]]))
    >>> limit_step(step, rest, gaussian_radius=0.3, frame_radius=0.5).phi.round(3)
    Array([[0. , 0.3, 0.4],
           [0. , 0.1, 0. ]], dtype=float32)
    """

    def shorten(step: GaussianCoordinates, here: GaussianCoordinates) -> GaussianCoordinates:
        return _shorten(step, fisher_length(here, step), gaussian_radius)

    belief, prior = beliefs_and_priors(shorten, step, coordinates)
    return PopulationCoordinates(
        belief, prior, _shorten(step.phi, safe_norm(step.phi), frame_radius)
    )


def retract(
    coordinates: PopulationCoordinates, step: PopulationCoordinates, generators: Generators
) -> PopulationCoordinates:
    """The population after a step; frame coordinates move by the group's own retraction.

    Args:
        coordinates: where the step starts.
        step: change of the coordinates, of the same shapes.
        generators: a :class:`vfejax.geometry.groups.Group`; :func:`vfejax.geometry.irreps.so3`
            keeps frames in the principal ball. Plain generators mean a general group, whose
            retraction is the sum.

    Returns:
        New coordinates.

    >>> from vfejax.geometry import irreps
    >>> unit = Gaussian(jnp.zeros((2, 3)), jnp.tile(jnp.eye(3), (2, 1, 1)))
    >>> here = unconstrain(Population(unit, unit, jnp.array([[0.0, 0, 3], [0.0, 0, 1]])))
    >>> step = jax.tree.map(jnp.ones_like, here)._replace(phi=jnp.array([[0.0, 0, 1]] * 2))
    >>> retract(here, step, irreps.so3((1,))).phi[:, 2].round(3)  # 4 radians are 4 - 2 pi
    Array([-2.283,  2.   ], dtype=float32)
    """
    moved = jax.tree.map(lambda x, dx: (x + dx).astype(x.dtype), coordinates, step)
    return moved._replace(phi=as_group(generators).retract(coordinates.phi, step.phi))


def check_array(name: str, array: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> None:
    """Refuse an array that does not fit a population.

    Args:
        name: what an error calls the array.
        array: any array.
        shape: the shape it must have.
        dtype: the dtype it must have, that of the beliefs' means.

    Raises:
        ValueError: naming the array, what it is and what it must be.

    >>> check_array("quadrature", jnp.ones(3), (4,), jnp.float32)
    Traceback (most recent call last):
        ...
    ValueError: quadrature must have shape (4,) to fit the population, got (3,)
    """
    if jnp.shape(array) != shape:
        raise ValueError(
            f"{name} must have shape {shape} to fit the population, got {jnp.shape(array)}"
        )
    if jnp.result_type(array) != dtype:
        raise ValueError(
            f"{name} must have dtype {jnp.dtype(dtype)} to fit the population, got "
            f"{jnp.result_type(array)}"
        )


def check_population(population: Population, generators: Generators) -> None:
    """Refuse a population whose arrays do not fit each other and the group.

    Args:
        population: n agents, as points or as fields.
        generators: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``.

    Raises:
        ValueError: naming the array whose shape or dtype does not fit; for beliefs that are not
            real floating numbers; for coordinates in the place of the population; for arrays on a
            mesh whose axes are not of type Auto, where every sum over pairs would have to say how
            it is divided.

    >>> from vfejax.geometry import irreps
    >>> unit = Gaussian(jnp.zeros((2, 3)), jnp.tile(jnp.eye(3), (2, 1, 1)))
    >>> check_population(Population(unit, unit, jnp.zeros((2, 1))), irreps.so3((1,)))
    Traceback (most recent call last):
        ...
    ValueError: phi must have shape (2, 3) to fit the population, got (2, 1)
    """
    if isinstance(population, PopulationCoordinates):
        raise ValueError("population: got coordinates; constrain(coordinates) is a population")
    axes = jax.typeof(population.belief.mean).sharding.mesh.axis_types
    if any(kind == AxisType.Explicit for kind in axes):
        raise ValueError(
            "population: its mesh must have axes of type Auto; make_mesh(shape, names, axis_types="
            "(AxisType.Auto,) * len(shape)) makes them"
        )
    num_generators, k, _ = as_group(generators).generators.shape
    shape = jnp.shape(population.belief.mean)
    dtype = jnp.result_type(population.belief.mean)
    if len(shape) < 2 or shape[-1] != k:
        raise ValueError(
            f"belief.mean must have shape [n, *grid, k] with k = {k} from the generators, got "
            f"{shape}"
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"belief.mean must be real floating numbers, got {dtype}")
    check_array("belief.chol", population.belief.chol, (*shape, k), dtype)
    check_array("prior.mean", population.prior.mean, shape, dtype)
    check_array("prior.chol", population.prior.chol, (*shape, k), dtype)
    check_array("phi", population.phi, (*shape[:-1], num_generators), dtype)
