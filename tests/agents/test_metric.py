"""The Fisher metric with frames: information is a Hessian of KL, directions solve the metric,
fields integrate it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.agents import metric, population
from vfejax.agents.population import PopulationCoordinates
from vfejax.beliefs import coordinates as gaussian_coordinates
from vfejax.beliefs import gaussian
from vfejax.beliefs.coordinates import GaussianCoordinates
from vfejax.geometry import groups, irreps
from vfejax.geometry.transport import frames

GROUP = irreps.so3((1,))


def coordinates(rng, shape=(4,)):
    def one():
        return GaussianCoordinates(
            jnp.asarray(rng.standard_normal((*shape, 3))),
            jnp.asarray(0.3 * rng.standard_normal((*shape, 3, 3))),
        )

    return PopulationCoordinates(one(), one(), jnp.asarray(rng.uniform(-1, 1, (*shape, 3))))


@jax.jit
def turned_divergence(xi, belief, phi):
    """KL between the belief that neighbours see and the same after turning the frame by xi (body
    coordinates).
    """
    seen = gaussian.push_forward(gaussian_coordinates.constrain(belief), frames(-phi, GROUP))
    return gaussian.kl_divergence(gaussian.push_forward(seen, frames(-xi, GROUP)), seen)


def test_frame_information_is_the_hessian_of_kl(rng):
    position = coordinates(rng, (1,))
    belief, phi = jax.tree.map(lambda x: x[0], (position.belief, position.phi))
    hessian = jax.hessian(turned_divergence)(jnp.zeros(3), belief, phi)
    information = metric.frame_information(belief, phi, GROUP)
    # Two exact derivatives of sums of a few dozen terms of order one to ten.
    np.testing.assert_allclose(information, hessian, rtol=1e-10, atol=1e-10)


def natural(position, gradient, **options):
    return metric.natural_direction(position, gradient, GROUP, **options)


def test_frame_direction_solves_the_metric(rng):
    position, gradient = coordinates(rng), coordinates(rng)
    direction = natural(position, gradient, damping=0.7)
    information = np.asarray(metric.frame_information(position.belief, position.phi, GROUP))
    jacobian = np.asarray(groups.body_jacobian(position.phi, GROUP))
    tensor = np.swapaxes(jacobian, -1, -2) @ (information + 0.7 * np.eye(3)) @ jacobian
    np.testing.assert_allclose(
        np.einsum("nab,nb->na", tensor, direction.phi), gradient.phi, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("name", ["belief", "prior"])
def test_beliefs_and_priors_move_by_their_own_fisher_metric(rng, name):
    position, gradient = coordinates(rng), coordinates(rng)
    direction = getattr(natural(position, gradient), name)
    expected = gaussian_coordinates.natural_direction(
        getattr(position, name), getattr(gradient, name)
    )
    jax.tree.map(np.testing.assert_array_equal, direction, expected)


def test_measure_divides_the_gradient_and_freezes_what_is_nowhere(rng):
    position, gradient = coordinates(rng, (2, 3)), coordinates(rng, (2, 3))
    measure = jnp.asarray([[0.5, 0.0, 2.0], [1.0, 0.25, 0.0]])
    weighted = jax.tree.map(lambda g: g * measure.reshape(2, 3, *(1,) * (g.ndim - 2)), gradient)
    plain, fields = natural(position, gradient), natural(position, weighted, measure=measure)
    for ours, theirs in zip(jax.tree.leaves(fields), jax.tree.leaves(plain), strict=True):
        present = np.asarray(measure > 0)
        np.testing.assert_allclose(
            np.asarray(ours)[present], np.asarray(theirs)[present], rtol=1e-12
        )
        assert np.all(np.asarray(ours)[~present] == 0)


def test_damping_decides_where_the_belief_says_nothing():
    round_belief = GaussianCoordinates(jnp.zeros((1, 3)), jnp.zeros((1, 3, 3)))
    position = PopulationCoordinates(round_belief, round_belief, jnp.zeros((1, 3)))
    gradient = position._replace(phi=jnp.asarray([[1.0, -2.0, 3.0]]))
    np.testing.assert_allclose(
        natural(position, gradient, damping=2.0).phi, gradient.phi / 2.0, rtol=1e-12
    )


@pytest.mark.parametrize("radius", [0.1, 10.0])
def test_limit_step_shortens_each_agent_on_its_own(rng, radius):
    position, step = coordinates(rng), coordinates(rng)
    limited = population.limit_step(step, position, gaussian_radius=radius, frame_radius=radius)
    for part in ("belief", "prior"):
        before = gaussian_coordinates.fisher_length(getattr(position, part), getattr(step, part))
        after = gaussian_coordinates.fisher_length(getattr(position, part), getattr(limited, part))
        np.testing.assert_allclose(after, np.minimum(before, radius), rtol=1e-12)
    lengths = np.linalg.norm(step.phi, axis=-1)
    np.testing.assert_allclose(
        np.linalg.norm(limited.phi, axis=-1), np.minimum(lengths, radius), rtol=1e-12
    )


def test_fisher_length_is_the_root_of_twice_the_divergence(rng):
    position, step = coordinates(rng), coordinates(rng)
    small = jax.tree.map(lambda x: 1e-4 * x, step.belief)
    moved = jax.tree.map(jnp.add, position.belief, small)
    divergence = gaussian.kl_divergence(
        gaussian_coordinates.constrain(moved), gaussian_coordinates.constrain(position.belief)
    )
    length = gaussian_coordinates.fisher_length(position.belief, small)
    # The next order of the divergence is a relative 1e-4, the size of the step.
    np.testing.assert_allclose(length, np.sqrt(2 * divergence), rtol=2e-3)
