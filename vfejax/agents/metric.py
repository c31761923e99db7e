"""Fisher metric of a whole population, frames included.

Turning frame i turns the belief that every neighbour sees, ``U_i^{-1} q_i``. How far it moves,
measured by the Fisher metric, is the information the population holds about that frame. With it
frames and means feel curvatures of the same order (the alignment weight), so one step size serves
both; in the plain left-invariant metric a frame's curvature is a squared signal-to-noise ratio,
easily 10^4.
"""

import jax
import jax.numpy as jnp

from vfejax.agents.pairwise import frame_field
from vfejax.agents.population import PopulationCoordinates, beliefs_and_priors
from vfejax.beliefs import coordinates as gaussian_coordinates
from vfejax.beliefs.coordinates import GaussianCoordinates
from vfejax.beliefs.gaussian import Gaussian
from vfejax.geometry.groups import Generators, as_group, body_jacobian
from vfejax.numerics import (
    as_floating,
    identity_like,
    matmul,
    matmul_tn,
    matvec,
    transpose,
    triangular_inverse,
    triangularize,
)
from vfejax.types import Array

__all__ = ["frame_information", "gauge_directions", "natural_direction"]


def gauge_directions(gaussian: Gaussian, phi: Array, generators: Generators) -> Array:
    """How each agent's belief changes when its frame turns, as whitened directions of belief space.

    With the common-frame belief ``m = U^{-1} mu``, ``A = U^{-1} L``: row a holds ``A^{-1} J_a m``
    and ``(C_a + C_a^T) / sqrt 2`` with ``C_a = A^{-1} J_a A``. Lengths and angles of rows are those
    of the Fisher metric; their Gram matrix is the frames' information.

    Args:
        gaussian: mean ``[..., k]``, chol ``[..., k, k]``.
        phi: frame coordinates ``[..., a]``.
        generators: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``, which means
            the general exponential.

    Returns:
        ``[..., a, k + k^2]``, per unit of the body coordinates ``U^{-1} dU = sum_a xi^a J_a``.

    >>> from vfejax.geometry import irreps
    >>> belief = Gaussian(jnp.array([0.0, 0.0, 2.0]), jnp.eye(3))
    >>> gauge_directions(belief, jnp.zeros(3), irreps.so3((1,)))[0, :3]  # about x: z goes to -y
    Array([ 0., -2.,  0.], dtype=float32)
    """
    group, phi = as_group(generators), as_floating(phi, "phi")
    basis, chol = jnp.asarray(group.generators, phi.dtype), jnp.tril(gaussian.chol)
    outward, inward, _ = frame_field(phi, group)
    inverse = matmul(triangular_inverse(chol), outward)
    turned = jnp.einsum("...ij,ajk->...aik", inverse, basis, precision="highest")
    mean, factor = matvec(inward, gaussian.mean), matmul(inward, chol)
    shift = jnp.einsum("...aik,...k->...ai", turned, mean, precision="highest")
    change = jnp.einsum("...aik,...kl->...ail", turned, factor, precision="highest")
    change = (change + transpose(change)) / jnp.sqrt(jnp.asarray(2.0, phi.dtype))
    return jnp.concatenate([shift, jnp.reshape(change, (*shift.shape[:-1], -1))], axis=-1)


def frame_information(belief: GaussianCoordinates, phi: Array, generators: Generators) -> Array:
    """Fisher information of each agent's frame, in body coordinates ``U^{-1} dU = sum_a xi^a J_a``.

    With the common-frame belief ``m = U^{-1} mu``, ``A = U^{-1} L``: ``G_ab = v_a . v_b + tr(C_a
    C_b) / 2`` where ``v_a = A^{-1} J_a m`` and ``C_a = A^{-1} J_a A + transpose``.

    Args:
        belief: coordinates ``[..., k]`` and ``[..., k, k]``.
        phi: frame coordinates ``[..., a]``.
        generators: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``, which means
            the general exponential.

    Returns:
        ``[..., a, a]``, positive semi-definite; singular where a rotation leaves the belief
        unchanged.

    >>> from vfejax.geometry import irreps
    >>> belief = GaussianCoordinates(jnp.array([0.0, 0.0, 2.0]), jnp.zeros((3, 3)))
    >>> information = jax.jit(frame_information)(belief, jnp.zeros(3), irreps.so3((1,)))
    >>> information  # none about the mean itself
    Array([[4., 0., 0.],
           [0., 4., 0.],
           [0., 0., 0.]], dtype=float32)
    """
    root = gauge_directions(gaussian_coordinates.constrain(belief), phi, generators)
    return matmul(root, transpose(root))


def _per_measure(gradient: PopulationCoordinates, measure: Array) -> PopulationCoordinates:
    """The gradient divided by the measure; 0 where the measure is 0 (or too small to divide by)."""
    nowhere = measure < jnp.finfo(measure.dtype).tiny
    density = jnp.where(nowhere, 0.0, 1.0 / jnp.where(nowhere, 1.0, measure))
    return jax.tree.map(
        lambda g: g * jnp.reshape(density, density.shape + (1,) * (g.ndim - density.ndim)), gradient
    )


def natural_direction(
    coordinates: PopulationCoordinates,
    gradient: PopulationCoordinates,
    generators: Generators,
    *,
    damping: float | Array = 1.0,
    measure: Array | None = None,
) -> PopulationCoordinates:
    """Steepest ascent of a population in the Fisher metric on beliefs, priors and frames.

    The frames' metric is solved in square-root form: the rows that make up the information are
    reduced orthogonally, and their Gram matrix, whose condition number is a squared signal-to-noise
    ratio, is not formed.

    Args:
        coordinates: where the metric is taken.
        gradient: derivative of an energy with respect to the coordinates.
        generators: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``, which means
            the general exponential.
        damping: multiple of the left-invariant metric added to the frames' information, positive,
            in nats per radian squared. It decides the step where the belief says nothing about its
            frame (a mean at the origin with an isotropic covariance).
        measure: weight of each agent at each point of the base manifold ``[n, *grid]``, support
            times quadrature weight; 1 by default. The metric of a field is the integral of the
            metrics at its points, so directions do not depend on how fine the grid is. Where the
            measure is 0 nothing moves.

    Returns:
        A direction with the shapes of ``coordinates``.

    >>> from vfejax.geometry import irreps
    >>> belief = GaussianCoordinates(jnp.array([[0.0, 0.0, 3.0]]), jnp.zeros((1, 3, 3)))
    >>> here = PopulationCoordinates(belief, belief, jnp.zeros((1, 3)))
    >>> gradient = here._replace(phi=jnp.array([[10.0, 0.0, 10.0]]))
    >>> jax.jit(natural_direction)(here, gradient, irreps.so3((1,))).phi.round(4)
    Array([[ 1.,  0., 10.]], dtype=float32)
    """
    if measure is not None:
        gradient = _per_measure(gradient, measure)
    belief = gaussian_coordinates.constrain(coordinates.belief)
    root = gauge_directions(belief, coordinates.phi, generators)
    jacobian = body_jacobian(coordinates.phi, generators)
    size = jnp.sqrt(jnp.asarray(damping, root.dtype))
    columns = jnp.concatenate([root, size * identity_like(jacobian)], axis=-1)
    # With the long axis last, which takes a tenth of the time of its transpose on a CPU.
    rows = transpose(matmul_tn(jacobian, columns))
    inverse = triangular_inverse(triangularize(rows))
    return PopulationCoordinates(
        *beliefs_and_priors(gaussian_coordinates.natural_direction, coordinates, gradient),
        matvec(transpose(inverse), matvec(inverse, gradient.phi)),
    )
