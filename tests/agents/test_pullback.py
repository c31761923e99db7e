"""The metric that a field of beliefs induces: closed forms, and what no gauge can change."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import agents_oracle as oracle

from vfejax.agents import pullback
from vfejax.beliefs.gaussian import Gaussian
from vfejax.geometry import connection, derivatives, grid, irreps
from vfejax.geometry.derivatives import central_differences, spectral_derivatives
from vfejax.geometry.transport import frames

VECTOR = oracle.ROTATIONS["vector"]


@partial(jax.jit, static_argnames="spectral")
def metric_of(belief, phi, group, base, spectral=False):
    derivative_fn = spectral_derivatives if spectral else central_differences
    tangents = pullback.belief_tangents(belief, phi, group, base, derivative_fn=derivative_fn)
    return tangents, pullback.induced_metric(tangents)


def of_moments(mean, std, base):
    """Isotropic beliefs ``N(mean, std^2)`` whose frames stand still."""
    *shape, k = mean.shape
    belief = Gaussian(mean, std[..., None, None] * np.eye(k))
    return metric_of(belief, np.zeros((*shape, 1)), np.zeros((1, k, k)), base, True)[1]


def test_means_on_a_circle_have_the_circumference_over_the_spread():
    base, radius, std = grid.ring(12), 3.0, 0.5
    x = np.asarray(base.points[:, 0])
    mean = radius * np.stack([np.cos(x), np.sin(x)], axis=-1)[None]
    exact = of_moments(mean, np.full((1, 12), std), base)
    np.testing.assert_allclose(exact.metric, (radius / std) ** 2, rtol=1e-12)
    np.testing.assert_allclose(exact.length, radius / std, rtol=1e-12)
    around = np.sum(exact.volume[0] * base.quadrature)
    np.testing.assert_allclose(around, 2 * np.pi * radius / std, rtol=1e-12)


def test_a_mean_and_its_spread_live_on_the_hyperbolic_half_plane():
    """``ds^2 = (dmu^2 + 2 ds^2) / s^2`` for N(mu, s^2); half of the ring moves s, half of it mu."""
    base = grid.ring(16)
    x = np.asarray(base.points[:, 0])
    mean, std = np.sin(2 * x)[None, :, None], (2.0 + np.cos(x))[None]
    exact = of_moments(mean, std, base)
    # The variance is of degree two, and its derivative exact.
    expected = (4 * np.cos(2 * x) ** 2 + 2 * np.sin(x) ** 2) / std[0] ** 2
    np.testing.assert_allclose(exact.metric[0, :, 0, 0], expected, rtol=1e-12, atol=1e-12)


def test_means_on_a_sphere_have_the_metric_of_the_sphere():
    base, radius, std = grid.torus((8, 6)), 2.0, 0.4
    theta, phi = np.moveaxis(np.asarray(base.points), -1, 0)
    mean = [np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)]
    mean = radius * np.stack(mean, axis=-1)[None]
    exact = of_moments(mean, np.full((1, 8, 6), std), base)
    scale = (radius / std) ** 2
    expected = np.zeros((8, 6, 2, 2))
    expected[..., 0, 0], expected[..., 1, 1] = scale, scale * np.sin(theta) ** 2
    np.testing.assert_allclose(exact.metric[0], expected, rtol=0, atol=1e-12 * scale)
    np.testing.assert_allclose(exact.volume[0], scale * np.abs(np.sin(theta)), rtol=0, atol=1e-11)


def field(rng, base, num=2):
    population = oracle.random_population(rng, num, VECTOR, base.quadrature.shape)
    return population.belief, population.phi


def rotation_vectors(rotation):
    """Logarithms of rotation matrices ``[..., 3, 3]``, away from angles near pi."""
    angle = np.arccos((np.trace(rotation, axis1=-2, axis2=-1) - 1) / 2)
    skew = (rotation - np.swapaxes(rotation, -1, -2)) / (2 * np.sin(angle))[..., None, None]
    return np.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], axis=-1) * angle[..., None]


rotations = jax.jit(lambda phi: frames(phi, VECTOR))


def turned_field(rng, belief, phi):
    """The field after a local change of gauge, and the change ``G``."""
    g = np.asarray(rotations(0.5 * rng.normal(size=phi.shape)))
    cov = np.asarray(jnp.tril(belief.chol) @ jnp.swapaxes(jnp.tril(belief.chol), -1, -2))
    mean = np.einsum("...ij,...j->...i", g, belief.mean)
    chol = np.linalg.cholesky(g @ cov @ np.swapaxes(g, -1, -2))
    turned = rotation_vectors(g @ np.asarray(rotations(phi)))
    return Gaussian(mean, chol), turned, g


@pytest.mark.parametrize(
    "base",
    [grid.ring(5), pytest.param(grid.plane((4, 3)), marks=pytest.mark.slow)],
    ids=["ring", "plane"],
)
def test_a_local_gauge_change_of_the_field_alters_no_metric(base, rng):
    belief, phi = field(rng, base)
    turned = turned_field(rng, belief, phi)
    _, before = metric_of(belief, phi, VECTOR, base)
    _, after = metric_of(*turned[:2], VECTOR, base)
    assert np.max(np.abs(turned[0].mean - belief.mean)) > 0.1
    chex.assert_trees_all_close(after, before, rtol=1e-10, atol=1e-10)


@jax.jit
def metric_on_links(belief, phi, links, base):
    derivative_fn = derivatives.covariant_differences(links)
    tangents = pullback.belief_tangents(belief, phi, VECTOR, base, derivative_fn=derivative_fn)
    return pullback.induced_metric(tangents).metric


def test_links_that_are_a_pure_gauge_undo_frames_and_curved_ones_count(rng):
    """``U -> U H^{-1}`` with ``V -> H V H^{-1}`` alters no metric."""
    base = grid.ring(5)
    belief, phi = field(rng, base)
    links = jax.jit(connection.exponential_links)(rng.normal(size=(1, 5, 3)), VECTOR)
    change = 0.5 * rng.normal(size=(5, 3))
    turned = rotation_vectors(np.asarray(rotations(phi)) @ np.asarray(rotations(-change)))
    moved = jax.jit(connection.gauge_transform)(links, change, VECTOR, base)
    before = metric_on_links(belief, phi, links, base)
    chex.assert_trees_all_close(
        metric_on_links(belief, turned, moved, base), before, rtol=1e-10, atol=1e-10
    )
    assert np.max(np.abs(metric_of(belief, phi, VECTOR, base)[1].metric - before)) > 0.1


consensus = jax.jit(pullback.consensus_metric)


def test_the_consensus_is_the_mean_over_the_agents_who_are_there(rng):
    tangents = rng.normal(size=(3, 4, 2, 5))
    single = tangents @ np.swapaxes(tangents, -1, -2)
    chi = rng.uniform(0.1, 1.0, (3, 4))
    chi[0, 1], chi[:, 2] = 0.0, 0.0
    broken = tangents.copy()
    broken[0, 1] = np.nan
    found = consensus(broken, chi)
    total = np.where(chi.sum(0) == 0, 1.0, chi.sum(0))
    expected = np.sum((chi / total)[..., None, None] * single, axis=0)
    chex.assert_trees_all_close(found.metric, expected, rtol=1e-12)
    np.testing.assert_array_equal(found.metric[2], 0.0)
    np.testing.assert_allclose(found.volume**2, np.linalg.det(expected), rtol=1e-10)
    np.testing.assert_allclose(found.length**2, np.einsum("cii->ci", expected), rtol=1e-12)
    # Everywhere, by default.
    np.testing.assert_allclose(consensus(tangents).metric, np.mean(single, axis=0), rtol=1e-12)


@pytest.mark.slow
def test_small_spreads_keep_their_digits_in_single_precision():
    base = grid.ring(8)
    x = np.asarray(base.points[:, 0], np.float32)
    mean = np.float32(1e-3) * np.stack([np.cos(x), np.sin(x)], axis=-1)[None]
    chol = np.broadcast_to(np.float32(1e-4) * np.eye(2, dtype=np.float32), (1, 8, 2, 2))
    base = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), base)
    group = irreps.so(2)
    phi = np.zeros((1, 8, 1), np.float32)
    _, found = metric_of(Gaussian(mean, chol), phi, group, base, spectral=True)
    chex.assert_type(found.metric, jnp.float32)
    # Rounding of the cosines, through a transform of eight points.
    np.testing.assert_allclose(found.length, 10.0, rtol=1e-5)


def test_fields_that_do_not_fit_the_grid_are_refused(rng):
    belief, phi = field(rng, grid.ring(5))
    with pytest.raises(ValueError, match=r"belief.mean must be \[n, 4, 3\] .* got shape \(2, 5, 3"):
        pullback.belief_tangents(belief, phi, VECTOR, grid.ring(4))
    with pytest.raises(ValueError, match=r"phi must have shape \(2, 5, 3\)"):
        pullback.belief_tangents(belief, phi[..., :2], VECTOR, grid.ring(5))
    with pytest.raises(ValueError, match=r"supports must have shape \(2, 5\)"):
        pullback.consensus_metric(np.zeros((2, 5, 1, 3)), np.ones((2, 4)))
