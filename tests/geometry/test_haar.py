"""Averages over rotations: characters, known numbers of invariants, and the moments of samples."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.geometry import haar, irreps
from vfejax.geometry.transport import frames

invariant_projector = jax.jit(haar.invariant_projector)


def number_of_invariants(spins):
    """How often spin 0 occurs in a tensor product, by the addition of spins."""
    times = {0: 1}
    for spin in spins:
        new = {}
        for other, count in times.items():
            for total in range(abs(spin - other), spin + other + 1):
                new[total] = new.get(total, 0) + count
        times = new
    return times.get(0, 0)


@pytest.mark.parametrize(
    "spins",
    [
        (1, 1, 1),
        *(pytest.param(s, marks=pytest.mark.slow) for s in ((1, 2), (1, 1, 2), (1,) * 4, (2,) * 3)),
    ],
    ids=str,
)
def test_the_average_projects_onto_as_many_invariants_as_characters_say(spins):
    groups = tuple(irreps.so3((spin,)) for spin in spins)
    projector = invariant_projector(groups, haar.so3_quadrature(sum(spins)))
    chex.assert_trees_all_close(projector, projector.T, rtol=0, atol=1e-13)
    chex.assert_trees_all_close(projector @ projector, projector, rtol=0, atol=1e-13)
    chex.assert_trees_all_close(
        jnp.trace(projector), float(number_of_invariants(spins)), rtol=0, atol=1e-12
    )


def test_the_invariant_of_two_vectors_is_their_scalar_product():
    vector = irreps.so3((1,))
    projector = invariant_projector((vector, vector), haar.so3_quadrature(2))
    product = np.eye(3).ravel() / np.sqrt(3)
    chex.assert_trees_all_close(projector, np.outer(product, product), rtol=0, atol=1e-14)


@pytest.mark.parametrize("max_spin", [0, 1, 2, 5])
def test_quadrature_is_exact_up_to_its_spin(max_spin):
    phi, weights = haar.so3_quadrature(max_spin)
    assert len(phi) == (max_spin + 1) ** 2 * (max_spin // 2 + 1)
    assert np.all(weights > 0)
    angle = np.linalg.norm(phi, axis=-1)
    assert np.all(angle <= np.pi * (1 + 1e-15))
    # Characters sin((l + 1/2) theta) / sin(theta / 2) = 1 + 2 sum cos m theta average to 0.
    orders = np.cos(np.arange(1, max_spin + 1)[:, None] * angle)
    characters = 1 + 2 * np.cumsum(orders, axis=0)
    np.testing.assert_allclose(characters @ weights, 0.0, rtol=0, atol=1e-13)
    np.testing.assert_allclose(np.sum(weights), 1.0, rtol=1e-14)


def test_every_matrix_element_averages_to_zero():
    phi, weights = (jnp.asarray(x) for x in haar.so3_quadrature(2))
    group = irreps.so3((1, 2))
    mean = jax.jit(lambda p, w: haar.average(lambda q: frames(q, group), p, w))(phi, weights)
    chex.assert_trees_all_close(mean, np.zeros((8, 8)), rtol=0, atol=1e-13)


def test_random_rotations_of_space_have_the_moments_of_the_measure(dtype):
    num = 20_000
    phi = jax.jit(lambda key: haar.sample_so3(key, (num,), dtype))(jax.random.key(0))
    chex.assert_type(phi, dtype)
    phi = np.asarray(phi, float)
    angle = np.linalg.norm(phi, axis=-1)
    assert np.all(angle <= np.pi * (1 + 1e-6))
    # Characters of spins 1 and 2 have mean 0 and variance 1.
    orders = np.cos(np.arange(1, 3)[:, None] * angle)
    characters = 1 + 2 * np.cumsum(orders, axis=0)
    # Five standard errors.
    np.testing.assert_allclose(characters.mean(axis=1), 0.0, rtol=0, atol=5 / np.sqrt(num))
    np.testing.assert_allclose(characters.var(axis=1), 1.0, rtol=0, atol=0.1)
    axes = phi / angle[:, None]
    np.testing.assert_allclose(axes.T @ axes / num, np.eye(3) / 3, rtol=0, atol=5 / np.sqrt(num))


@pytest.mark.parametrize("n", [2, pytest.param(3, marks=pytest.mark.slow), 4])
def test_random_rotations_are_rotations_with_the_moments_of_the_measure(n):
    num = 10_000
    rotations = jax.jit(lambda key: haar.sample_so(key, n, (num,)))(jax.random.key(1))
    rotations = np.asarray(rotations)
    identity = np.broadcast_to(np.eye(n), rotations.shape)
    chex.assert_trees_all_close(
        rotations @ np.swapaxes(rotations, -1, -2), identity, rtol=0, atol=1e-13
    )
    np.testing.assert_allclose(np.linalg.det(rotations), 1.0, rtol=1e-12)
    # Five standard errors: E R = 0, E R_ij R_kl = delta_ik delta_jl / n (n = 2 has one more).
    np.testing.assert_allclose(rotations.mean(axis=0), 0.0, rtol=0, atol=5 / np.sqrt(num))
    np.testing.assert_allclose((rotations**2).mean(axis=0), 1 / n, rtol=0, atol=5 / np.sqrt(num))
    # A fixed rotation leaves the measure as it is: the first column, too, is uniform.
    traces = np.trace(rotations, axis1=-2, axis2=-1)
    np.testing.assert_allclose((traces**2).mean(), 2.0 if n == 2 else 1.0, rtol=0, atol=0.1)


def test_a_rotation_to_the_last_axis_itself_is_none():
    """A sample whose other components are exactly 0, one in 10^7 in float32."""
    chex.assert_trees_all_equal(haar._towards(jnp.asarray([0.0, 0.0, 1.0])), np.eye(3))


def test_averages_take_trees_and_samples():
    points = jnp.arange(4.0)[:, None]
    mean = haar.average(lambda p: {"first": p[0], "square": p * p}, points)
    chex.assert_trees_all_close(mean, {"first": jnp.asarray(1.5), "square": jnp.asarray([3.5])})


def test_what_is_no_spin_or_dimension_is_refused():
    with pytest.raises(ValueError, match="max_spin must be an integer >= 0, got -1"):
        haar.so3_quadrature(-1)
    with pytest.raises(ValueError, match="needs n >= 2, got 1"):
        haar.sample_so(jax.random.key(0), 1)
