"""The Fisher metric with frames: information is a Hessian of KL, directions solve the metric,
fields integrate it.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.agents import metric
from vfejax.agents.population import PopulationCoordinates
from vfejax.beliefs import coordinates as gaussian_coordinates
from vfejax.beliefs import gaussian
from vfejax.beliefs.coordinates import GaussianCoordinates
from vfejax.geometry import groups, irreps
from vfejax.geometry.transport import frames

GROUP = irreps.so3((1,))
# Agents and points of a grid: one shape, so that one program serves most tests.
SHAPE = (100, 2)


def coordinates(rng, shape=SHAPE):
    def one():
        return GaussianCoordinates(
            rng.standard_normal((*shape, 3)), 0.3 * rng.standard_normal((*shape, 3, 3))
        )

    return PopulationCoordinates(one(), one(), rng.uniform(-1, 1, (*shape, 3)))


def single(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float32), tree)


def turned_divergence(xi, belief, phi):
    """KL between the belief that neighbours see and the same after turning the frame by xi (body
    coordinates).
    """
    seen = gaussian.push_forward(gaussian_coordinates.constrain(belief), frames(-phi, GROUP))
    return gaussian.kl_divergence(gaussian.push_forward(seen, frames(-xi, GROUP)), seen)


information_of = jax.jit(lambda belief, phi: metric.frame_information(belief, phi, GROUP))


def test_frame_information_is_the_hessian_of_kl(rng):
    position = coordinates(rng)
    belief, phi = jax.tree.map(lambda x: x[0, 0], (position.belief, position.phi))
    hessian = jax.jit(jax.jacfwd(jax.jacfwd(turned_divergence)))(np.zeros(3), belief, phi)
    information = information_of(position.belief, position.phi)[0, 0]
    # Two exact derivatives of sums of a few dozen terms of order one to ten.
    np.testing.assert_allclose(information, hessian, rtol=1e-10, atol=1e-10)


@jax.jit
def _natural(position, gradient, damping, measure):
    return metric.natural_direction(position, gradient, GROUP, damping=damping, measure=measure)


def natural(position, gradient, damping=1.0, measure=None):
    return _natural(position, gradient, damping, measure)


def test_frames_at_whole_radians_may_be_integers():
    """The generators of spin 2 are no whole numbers."""
    spin2 = irreps.so3((2,))
    belief = GaussianCoordinates(jnp.arange(5.0), jnp.zeros((5, 5)))
    for phi in (jnp.array([1, 0, 2]), jnp.array([1, 0, 2], jnp.int8)):
        actual = metric.frame_information(belief, phi, spin2)
        expected = metric.frame_information(belief, phi.astype(float), spin2)
        chex.assert_trees_all_close(actual, expected, rtol=0, atol=0)


def test_frame_direction_solves_the_metric(rng):
    position, gradient = coordinates(rng), coordinates(rng)
    direction = natural(position, gradient, damping=0.7)
    information = np.asarray(information_of(position.belief, position.phi))
    jacobian = np.asarray(jax.jit(groups.body_jacobian)(position.phi, GROUP))
    tensor = np.swapaxes(jacobian, -1, -2) @ (information + 0.7 * np.eye(3)) @ jacobian
    np.testing.assert_allclose(
        np.einsum("...ab,...b->...a", tensor, direction.phi), gradient.phi, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("name", ["belief", "prior"])
def test_beliefs_and_priors_move_by_their_own_fisher_metric(rng, name):
    position, gradient = coordinates(rng), coordinates(rng)
    direction = getattr(natural(position, gradient), name)
    expected = jax.jit(gaussian_coordinates.natural_direction)(
        getattr(position, name), getattr(gradient, name)
    )
    # The same few products, compiled in another program.
    chex.assert_trees_all_close(direction, expected, rtol=1e-14)


def test_measure_divides_the_gradient_and_freezes_what_is_nowhere(rng):
    position, gradient = coordinates(rng), coordinates(rng)
    measure = np.tile([[0.5, 0.0], [2.0, 0.25]], (50, 1))
    weighted = jax.tree.map(lambda g: g * measure.reshape(*SHAPE, *(1,) * (g.ndim - 2)), gradient)
    plain, fields = natural(position, gradient), natural(position, weighted, measure=measure)
    present = measure > 0
    expected = jax.tree.map(
        lambda x: np.where(present[(...,) + (None,) * (x.ndim - 2)], x, 0.0), plain
    )
    chex.assert_trees_all_close(fields, expected, rtol=1e-12, atol=0)


def test_damping_decides_where_the_belief_says_nothing():
    round_belief = GaussianCoordinates(np.zeros((*SHAPE, 3)), np.zeros((*SHAPE, 3, 3)))
    position = PopulationCoordinates(round_belief, round_belief, np.zeros((*SHAPE, 3)))
    gradient = position._replace(phi=np.broadcast_to([1.0, -2.0, 3.0], (*SHAPE, 3)))
    np.testing.assert_allclose(
        natural(position, gradient, damping=2.0).phi, gradient.phi / 2.0, rtol=1e-12
    )


@pytest.mark.parametrize("std", [1e-1, 1e-2, 1e-3, 1e-4])
def test_direction_is_accurate_at_any_signal_to_noise(std, rng):
    """A spin-1 belief says nothing about the rotation about its mean: the metric's condition number
    is the squared signal-to-noise ratio, up to 10^8, beyond single precision.
    """
    mean = rng.normal(size=(*SHAPE, 3))
    factor = np.broadcast_to(np.log(std) * np.eye(3), (*SHAPE, 3, 3))
    belief = GaussianCoordinates(mean, factor)
    position = PopulationCoordinates(belief, belief, rng.uniform(-1, 1, (*SHAPE, 3)))
    # A gradient along the mean asks for the undetermined direction.
    rounded = single((position, position._replace(phi=mean)))
    direction = np.asarray(natural(*rounded).phi, float)
    expected = np.asarray(natural(*jax.tree.map(lambda x: x.astype(float), rounded)).phi)
    error = np.linalg.norm(direction - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    # Rows of size 1 / std are rounded beside the damping's 1.
    assert np.max(error) < 100 * float(jnp.finfo(jnp.float32).eps) * (10 + 0.1 / std)


def test_direction_of_a_frame_without_effect_is_finite():
    group = irreps.so3((0,))
    belief = GaussianCoordinates(np.zeros((2, 1)), np.zeros((2, 1, 1)))
    position = PopulationCoordinates(belief, belief, np.zeros((2, 3)))
    direction = jax.jit(lambda x: metric.natural_direction(x, x, group))(position)
    np.testing.assert_array_equal(direction.phi, 0.0)


def test_measure_of_the_smallest_numbers(rng):
    """At the rim of a smooth support the measure underflows: nothing moves there, and nothing is
    NaN.
    """
    position, gradient = single((coordinates(rng, (4,)), coordinates(rng, (4,))))
    measure = np.array([1e-45, 1e-39, 0.0, np.nan], np.float32)
    direction = jax.device_get(natural(position, gradient, measure=measure))
    still = jax.tree.map(lambda x: x[:3], direction)
    chex.assert_trees_all_equal(still, jax.tree.map(np.zeros_like, still))
    assert all(np.any(np.isnan(x[3])) for x in jax.tree.leaves(direction))


def test_fisher_length_is_the_root_of_twice_the_divergence(rng):
    position, step = coordinates(rng), coordinates(rng)
    small = jax.tree.map(lambda x: 1e-4 * x, step.belief)
    moved = jax.tree.map(np.add, position.belief, small)

    @jax.jit
    def lengths(before, step, after):
        ends = gaussian_coordinates.constrain(after), gaussian_coordinates.constrain(before)
        return gaussian_coordinates.fisher_length(before, step), gaussian.kl_divergence(*ends)

    length, divergence = lengths(position.belief, small, moved)
    # The next order of the divergence is a relative 1e-4, the size of the step.
    np.testing.assert_allclose(length, np.sqrt(2 * divergence), rtol=2e-3)
