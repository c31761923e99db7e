"""The inertia of belief: kinetic energies whose masses are precisions of beliefs.

The kinetic energy of a population is, for means, covariances and frames,

    T = sum_i pi_i . M_i^-1 pi_i / 2 + tr(Pi_i Sigma_i Pi_i Sigma_i) / 2 + |J_i^-T p_i|^2 / (2 I)

with the mass M_i of :mod:`vfejax.agents.mass` and the body Jacobian J_i of frame i. The second term
is invariant under every linear map, the third is left-invariant with a moment of inertia I. T
depends on the position, so ``H = F + T`` does not separate: integrate it by
:mod:`vfejax.dynamics.implicit`. Priors do not move.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vfejax.agents.edges import Edges
from vfejax.agents.free_energy import Weights
from vfejax.agents.mass import mean_mass
from vfejax.agents.observation import Observations
from vfejax.agents.population import PopulationCoordinates, constrain
from vfejax.agents.supports import measure
from vfejax.beliefs import coordinates as gaussian_coordinates
from vfejax.beliefs.coordinates import GaussianCoordinates
from vfejax.geometry.groups import Generators, as_group
from vfejax.numerics import as_floating, cholesky, identity_like, matvec, triangular_inverse
from vfejax.types import Array

__all__ = [
    "covariance_kinetic_energy",
    "frame_kinetic_energy",
    "hold",
    "kinetic_energy",
    "mean_kinetic_energy",
]


def _where(here: Array | None, energy: Array) -> Array:
    """Energies per measure, 0 where the measure is 0 (or too small to divide by): nothing moves
    there.
    """
    if here is None:
        return energy
    nowhere = here < jnp.finfo(here.dtype).tiny
    return jnp.where(nowhere, 0.0, energy / jnp.where(nowhere, 1.0, here))


def mean_kinetic_energy(mass: Array, momentum: Array) -> Array:
    """``pi . M^{-1} pi / 2``.

    Args:
        mass: ``[..., k, k]``, symmetric positive definite; NaN where it is not.
        momentum: ``[..., k]``.

    Returns:
        ``[...]``, in nats for a time in the unit of the flow.

    >>> mean_kinetic_energy(4.0 * jnp.eye(2), jnp.array([2.0, 0.0])).tolist()
    0.5
    """
    whitened = matvec(triangular_inverse(cholesky(mass)), momentum)
    return 0.5 * jnp.sum(whitened * whitened, axis=-1)


def covariance_kinetic_energy(coordinates: GaussianCoordinates, momentum: Array) -> Array:
    """``tr(Pi Sigma Pi Sigma) / 2`` in log-Cholesky coordinates, invariant under every linear map.

    Pi is the symmetric momentum of Sigma, ``p . dW = tr(Pi dSigma)`` for coordinates W
    (:mod:`vfejax.beliefs.coordinates`). Hamilton's equation ``dSigma/dt = Sigma Pi Sigma`` makes it
    ``tr(Sigma^-1 dSigma Sigma^-1 dSigma) / 2`` of the velocity, which is the squared Fisher length.
    So the mass matrix in coordinates is twice the Fisher metric G, and

        T = p . (2 G)^{-1} p / 2 = p . G^{-1} p / 4

    with the natural direction ``G^{-1} p``. Directly: with ``Y = tril(L^T dT/dL) = 2 tril(L^T Pi
    L)`` it is ``sum_i Y_ii^2 / 8 + sum_{i>j} Y_ij^2 / 4``. Free motion runs along the geodesics
    ``Sigma(t) = exp(t Sigma_0 Pi_0) Sigma_0``, which never reach a singular covariance.

    Args:
        coordinates: of Gaussians; the mean plays no part.
        momentum: of ``factor``, ``[..., k, k]``; entries above the diagonal are ignored.

    Returns:
        ``[...]``, in nats for a time in the unit of the flow.

    >>> unit = GaussianCoordinates(jnp.zeros(1), jnp.zeros((1, 1)))
    >>> covariance_kinetic_energy(unit, jnp.array([[2.0]])).tolist()  # Pi = 1, Sigma = 1
    0.5
    """
    covector = GaussianCoordinates(jnp.zeros_like(coordinates.mean), momentum)
    direction = gaussian_coordinates.natural_direction(coordinates, covector).factor
    return 0.25 * jnp.sum(jnp.tril(momentum) * direction, axis=(-2, -1))


def frame_kinetic_energy(
    phi: Array, momentum: Array, generators: Generators, moment_of_inertia: float | Array = 1.0
) -> Array:
    """``|J(phi)^{-T} p|^2 / (2 I)``: that of a round body, the same wherever the frame has turned.

    ``J(phi)`` takes coordinate to body velocities (:func:`vfejax.geometry.groups.body_jacobian`),
    so the energy is ``I |omega|^2 / 2`` of the body velocity ``omega``.

    Args:
        phi: frame coordinates ``[..., a]``, in radians, inside the chart (below 2 pi for
            rotations).
        momentum: ``[..., a]``.
        generators: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``, which means
            the general exponential.
        moment_of_inertia: I, positive, in nats time^2 per squared radian; infinite freezes frames.

    Returns:
        ``[...]``, in nats.

    >>> from vfejax.geometry import irreps
    >>> turn = jnp.array([0.0, 0.0, 2.0])
    >>> frame_kinetic_energy(turn, turn, irreps.so3((1,)), 4.0).tolist()
    0.5
    """
    phi, momentum = as_floating(phi, "phi"), as_floating(momentum, "momentum")
    direction = as_group(generators).natural_direction(phi, momentum)
    inertia = jnp.asarray(moment_of_inertia, phi.dtype)
    return 0.5 * jnp.sum(momentum * direction, axis=-1) / inertia


def hold(coordinates: PopulationCoordinates, *groups: str) -> PopulationCoordinates:
    """The same coordinates, with no gradient in the named groups: an energy of them exerts no force
    there.

    Args:
        coordinates: of a population.
        groups: of ``"belief"``, ``"prior"``, ``"phi"``.

    Returns:
        Coordinates of the same values.

    >>> unit = GaussianCoordinates(jnp.ones((1, 1)), jnp.zeros((1, 1, 1)))
    >>> energy_fn = lambda x: jnp.sum(x.belief.mean * x.prior.mean)
    >>> here = PopulationCoordinates(unit, unit, jnp.zeros((1, 3)))
    >>> force = jax.grad(lambda x: energy_fn(hold(x, "prior")))(here)
    >>> force.belief.mean.tolist(), force.prior.mean.tolist()
    ([[1.0]], [[0.0]])
    """
    still = {name: jax.lax.stop_gradient(getattr(coordinates, name)) for name in groups}
    return coordinates._replace(**still)


def kinetic_energy(
    generators: Generators,
    *,
    moment_of_inertia: float | Array = 1.0,
    weights: Weights | tuple = Weights(),  # noqa: B008 (an immutable tuple)
    temperature: float | Array = 1.0,
    observations: Observations | None = None,
    supports: Array | None = None,
    quadrature: Array | None = None,
    edges: Edges | None = None,
    block_size: int | None = None,
) -> Callable[[PopulationCoordinates, PopulationCoordinates], Array]:
    """Kinetic energy of a population whose masses follow from what it knows.

    Its gradients are the velocities and the forces of inertia; none is written by hand. Where an
    agent has no support nothing of it moves. On a base manifold energies are integrals, so momenta
    are densities times the measure ``chi_i w``, as forces are.

    Args:
        generators: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``, which means
            the general exponential.
        moment_of_inertia: of the frames, in nats time^2 per squared radian; infinite freezes them.
        weights: lambda of each term, as in the free energy.
        temperature: tau of the attention, in nats, positive.
        observations: what the agents measured.
        supports: chi_i in [0, 1], ``[n, *grid]``; 1 by default.
        quadrature: weight of each point of the base manifold ``[*grid]``; 1 by default.
        edges: neighbour list; by default every agent listens to all others.
        block_size: receivers per block of pairs. It changes memory and speed, never the result.

    Returns:
        ``(coordinates, momentum) -> nats``, a scalar; both arguments are
        :class:`PopulationCoordinates` of one shape. The momentum of the priors plays no part, and
        no force acts on them.

    >>> from vfejax.geometry import irreps
    >>> unit = GaussianCoordinates(jnp.eye(3), jnp.zeros((3, 3, 3)))
    >>> here = PopulationCoordinates(unit, unit, jnp.zeros((3, 3)))
    >>> kinetic_fn = kinetic_energy(irreps.so3((1,)), moment_of_inertia=10.0)
    >>> still = jax.tree.map(jnp.zeros_like, here)
    >>> pushed = still._replace(belief=still.belief._replace(mean=jnp.eye(3)))
    >>> round(float(kinetic_fn(here, pushed)), 4)  # each mean has mass 1 + 1 + 1
    0.5
    """
    group = as_group(generators)

    def kinetic_fn(coordinates: PopulationCoordinates, momentum: PopulationCoordinates) -> Array:
        coordinates = hold(coordinates, "prior")
        population = constrain(coordinates)
        mass = mean_mass(
            population,
            group,
            weights=weights,
            temperature=temperature,
            observations=observations,
            supports=supports,
            quadrature=quadrature,
            edges=edges,
            block_size=block_size,
        )
        here = measure(population, supports, quadrature)
        if here is not None:
            nowhere = (here < jnp.finfo(here.dtype).tiny)[..., None]
            mass = jnp.where(nowhere[..., None], identity_like(mass), mass)
            pushed = jnp.where(nowhere, 0.0, momentum.belief.mean)
        else:
            pushed = momentum.belief.mean
        of_means = mean_kinetic_energy(mass, pushed)
        of_covariances = covariance_kinetic_energy(coordinates.belief, momentum.belief.factor)
        of_frames = frame_kinetic_energy(coordinates.phi, momentum.phi, group, moment_of_inertia)
        return jnp.sum(of_means) + jnp.sum(_where(here, of_covariances + of_frames))

    return kinetic_fn
