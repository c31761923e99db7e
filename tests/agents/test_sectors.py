"""Observable, dark and internal parts of a belief field: they add up, and closed forms of each."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import agents_oracle as oracle

from vfejax.agents import pullback, sectors
from vfejax.beliefs.gaussian import Gaussian
from vfejax.geometry import grid

VECTOR = oracle.ROTATIONS["vector"]
BASE = grid.ring(6)


@jax.jit
def parts_of(belief, phi, group, matrix):
    """Tangents, sectors, and the metric of each."""
    tangents = pullback.belief_tangents(belief, phi, group, BASE)
    parts = sectors.sectors(tangents, belief, phi, group, matrix)
    grams = [x @ jnp.swapaxes(x, -1, -2) for x in (tangents, *parts)]
    return tangents, parts, grams


@pytest.fixture
def field(rng):
    population = oracle.random_population(rng, 2, VECTOR, (6,))
    return population.belief, population.phi, rng.normal(size=(2, 6, 2, 3))


def test_the_sectors_are_orthogonal_and_add_up(field):
    belief, phi, matrix = field
    tangents, parts, grams = parts_of(belief, phi, VECTOR, matrix)
    chex.assert_trees_all_close(sum(parts), tangents, rtol=0, atol=1e-12)
    chex.assert_trees_all_close(sum(grams[1:]), grams[0], rtol=1e-11)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        product = np.asarray(parts[one]) @ np.swapaxes(parts[other], -1, -2)
        np.testing.assert_allclose(product, 0.0, rtol=0, atol=1e-10)
    assert all(np.min(gram) > 0 for gram in grams)


def test_a_turn_of_agent_and_instrument_alters_no_sector(field, rng):
    belief, phi, matrix = field
    turn = np.linalg.qr(rng.normal(size=(2, 6, 3, 3)))[0]
    turn = turn * np.sign(np.linalg.det(turn))[..., None, None]
    rotation = turn @ np.asarray(jax.jit(VECTOR.exponential)(phi, VECTOR.generators))
    angle = np.arccos((np.trace(rotation, axis1=-2, axis2=-1) - 1) / 2)
    skew = (rotation - np.swapaxes(rotation, -1, -2)) / (2 * np.sin(angle))[..., None, None]
    axis = np.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], axis=-1)
    chol = np.tril(belief.chol)
    cov = turn @ chol @ np.swapaxes(turn @ chol, -1, -2)
    mean = np.einsum("...ij,...j->...i", turn, belief.mean)
    turned = Gaussian(mean, np.linalg.cholesky(cov))
    after = parts_of(turned, angle[..., None] * axis, VECTOR, matrix @ np.swapaxes(turn, -1, -2))
    before = parts_of(belief, phi, VECTOR, matrix)
    # Angles near pi lose digits in the logarithm.
    chex.assert_trees_all_close(after[2], before[2], rtol=1e-6, atol=1e-8)


def test_a_belief_that_only_turns_is_internal_and_one_that_only_grows_is_not(rng):
    """Means on a circle whose frames stand still, and means that move along their own direction."""
    x = np.asarray(BASE.points[:, 0])
    around = np.stack([np.cos(x), np.sin(x), 0 * x], axis=-1)
    outwards = (2 + np.sin(x))[:, None] * np.array([0.6, 0.0, 0.8])
    belief = Gaussian(np.stack([around, outwards]), np.tile(0.5 * np.eye(3), (2, 6, 1, 1)))
    matrix = np.broadcast_to(np.array([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]), (2, 6, 2, 3))
    _, _, (whole, seen, dark, internal) = parts_of(belief, np.zeros((2, 6, 3)), VECTOR, matrix)
    np.testing.assert_allclose(internal[0], whole[0], rtol=1e-12)
    np.testing.assert_allclose(internal[1], 0.0, rtol=0, atol=1e-12)
    # Horizontal is the direction of the mean; C sees all that is left of it. The rows of C are
    # dependent.
    np.testing.assert_allclose(seen[1], whole[1], rtol=1e-12)
    np.testing.assert_allclose(dark[1], 0.0, rtol=0, atol=1e-12)


def test_without_a_gauge_the_observable_metric_is_that_of_the_marginal(field):
    """``N(C mu, C Sigma C^T)``, by finite differences of its moments."""
    belief, _, matrix = field
    matrix = np.broadcast_to(matrix[:1, :1], matrix.shape)
    still = np.zeros((3, 3, 3))
    _, _, (_, seen, _, internal) = parts_of(belief, np.zeros((2, 6, 3)), still, matrix)
    np.testing.assert_array_equal(internal, 0.0)
    c, chol = matrix[0, 0], np.tril(belief.chol)
    mean = np.asarray(belief.mean) @ c.T
    cov = c @ chol @ np.swapaxes(chol, -1, -2) @ c.T
    step = 2 * np.pi / 6
    slope, change = ((np.roll(a, -1, 1) - np.roll(a, 1, 1)) / (2 * step) for a in (mean, cov))
    precision = np.linalg.inv(cov)
    expected = np.einsum("nxi,nxij,nxj->nx", slope, precision, slope)
    expected += 0.5 * np.trace(precision @ change @ precision @ change, axis1=-2, axis2=-1)
    np.testing.assert_allclose(seen[..., 0, 0], expected, rtol=1e-10)


def test_an_instrument_that_sees_everything_leaves_nothing_dark(field):
    belief, *_ = field
    tangents = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 1, 3)))
    directions = jnp.broadcast_to(jnp.eye(3), (2, 6, 3, 3))
    first, rest = jax.jit(sectors.split)(tangents, directions)
    chex.assert_trees_all_close(first, tangents, rtol=1e-14)
    np.testing.assert_allclose(rest, 0.0, rtol=0, atol=1e-15)
    assert sectors.split(tangents)[0] is tangents
    with pytest.raises(ValueError, match=r"matrix must be \[o, 3\] of float64 .* \(2, 4\)"):
        sectors.observable_directions(belief, jnp.ones((2, 4)))
