"""Fisher metric of a whole population, frames included.

Turning frame i turns the belief that every neighbour sees, ``U_i^{-1} q_i``. How far it moves,
measured by the Fisher metric, is the information the population holds about that frame. With it
frames and means feel curvatures of the same order (the alignment weight), so one step size serves
both; in the plain left-invariant metric a frame's curvature is a squared signal-to-noise ratio,
easily 10^4.
"""

import jax
import jax.numpy as jnp

from vfejax.agents.population import PopulationCoordinates
from vfejax.beliefs import coordinates as gaussian_coordinates
from vfejax.beliefs.coordinates import GaussianCoordinates
from vfejax.geometry import groups
from vfejax.geometry.groups import Generators
from vfejax.geometry.transport import frames
from vfejax.numerics import cholesky, identity_like, matvec, transpose, triangular_inverse
from vfejax.types import Array

__all__ = ["frame_information", "natural_direction"]


def frame_information(
    belief: GaussianCoordinates,
    phi: Array,
    generators: Generators,
) -> Array:
    """Fisher information of each agent's frame, in body coordinates ``U^{-1} dU = sum_a xi^a J_a``.

    With the common-frame belief ``m = U^{-1} mu``, ``A = U^{-1} L``: ``G_ab = v_a . v_b + tr(C_a
    C_b) / 2`` where ``v_a = A^{-1} J_a m`` and ``C_a = A^{-1} J_a A + transpose``.

    Args:
        belief: coordinates ``[..., k]`` and ``[..., k, k]``.
        phi: frame coordinates ``[..., a]``.
        generators: Lie-algebra basis ``[a, k, k]``, or a group.

    Returns:
        ``[..., a, a]``, positive semi-definite; singular where a rotation leaves the belief
        unchanged.
    """
    group = groups.as_group(generators)
    basis = jnp.asarray(group.generators, phi.dtype)
    gaussian = gaussian_coordinates.constrain(belief)
    inward = frames(-phi, group)
    factor = jnp.matmul(inward, gaussian.chol, precision="highest")
    inverse = jnp.matmul(triangular_inverse(gaussian.chol), frames(phi, group), precision="highest")
    turned = jnp.einsum("...ij,ajk->...aik", inverse, basis, precision="highest")
    shift = jnp.einsum(
        "...aik,...k->...ai", turned, matvec(inward, gaussian.mean), precision="highest"
    )
    change = jnp.einsum("...aik,...kl->...ail", turned, factor, precision="highest")
    change = change + transpose(change)
    means = jnp.einsum("...ai,...bi->...ab", shift, shift, precision="highest")
    return means + 0.5 * jnp.einsum("...ail,...bil->...ab", change, change, precision="highest")


def natural_direction(
    coordinates: PopulationCoordinates,
    gradient: PopulationCoordinates,
    generators: Generators,
    *,
    damping: float = 1.0,
    measure: Array | None = None,
) -> PopulationCoordinates:
    """Natural gradient of a population with the Fisher metric on beliefs, priors and frames.

    Args:
        coordinates: where the metric is taken.
        gradient: derivative of an energy with respect to the coordinates.
        generators: Lie-algebra basis ``[a, k, k]``, or a group.
        damping: multiple of the left-invariant metric added to the frames' information; it decides
            the step where the belief says nothing about its frame (a mean at the origin with an
            isotropic covariance), in nats per radian squared.
        measure: weight of each agent at each point of the base manifold ``[n, *grid]``, support
            times quadrature weight; 1 by default. The metric of a field is the integral of the
            metrics at its points, so directions do not depend on how fine the grid is. Where the
            measure is 0 nothing moves.

    Returns:
        A direction with the shapes of ``coordinates``.
    """
    if measure is not None:
        density = jnp.where(measure > 0, 1.0 / jnp.where(measure > 0, measure, 1.0), 0.0)
        gradient = jax.tree.map(
            lambda g: g * jnp.reshape(density, density.shape + (1,) * (g.ndim - density.ndim)),
            gradient,
        )
    information = frame_information(coordinates.belief, coordinates.phi, generators)
    metric = information + damping * identity_like(information)
    jacobian = groups.body_jacobian(coordinates.phi, generators)
    metric = jnp.matmul(
        transpose(jacobian), jnp.matmul(metric, jacobian, precision="highest"), precision="highest"
    )
    inverse = triangular_inverse(cholesky(metric))
    return PopulationCoordinates(
        gaussian_coordinates.natural_direction(coordinates.belief, gradient.belief),
        gaussian_coordinates.natural_direction(coordinates.prior, gradient.prior),
        matvec(transpose(inverse), matvec(inverse, gradient.phi)),
    )
