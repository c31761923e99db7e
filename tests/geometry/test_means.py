"""Frechet means are stationary, turn with the frames, and see no padding."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.orthogonal_groups import FOUR, ROTATIONS, coordinates, each, exact_frames
from helpers.precisions import single_by_default

from vfejax.geometry import irreps, logarithms, means

NUM = 12

compose = jax.jit(logarithms.compose)
frechet_means = jax.jit(means.frechet_means, static_argnames=("num", "iterations"))
frechet_mean = jax.jit(means.frechet_mean)
residual = jax.jit(means.frechet_residual)


def reference_mean(phi, weights, group, num_iterations=60):
    """The Karcher iteration with matrices, by NumPy: logarithms from eigenvectors."""
    u = exact_frames(phi, group)
    mean, share = u[np.argmax(weights)], weights / weights.sum()
    flat = group.generators.reshape(len(group.generators), -1)
    for _ in range(num_iterations):
        values, vectors = np.linalg.eig(mean.T @ u)
        angle = np.einsum("nij,nj,njk->nik", vectors, np.log(values), np.linalg.inv(vectors))
        xi = np.linalg.lstsq(flat.T, angle.real.reshape(len(u), -1).T, rcond=None)[0] @ share
        mean = mean @ exact_frames(xi, group)
    return mean


def ball(rng, group, radius, num=NUM):
    """Frames within so many radians of a random one."""
    centre = np.tile(coordinates(rng, group, 1.0, 1), (num, 1))
    return np.array(compose(centre, coordinates(rng, group, radius, num), group))


@pytest.mark.parametrize("group", [irreps.so(3), FOUR], ids=["so(3)", "so(4)"])
def test_means_are_those_of_the_textbook_iteration(group, rng):
    phi, weights = ball(rng, group, 1.0), rng.uniform(0.2, 1.0, NUM)
    labels = np.arange(NUM) % 2
    found = frechet_means(phi, weights, labels, 2, group)
    for cluster in range(2):
        own = labels == cluster
        expected = reference_mean(phi[own], weights[own], group)
        # Logarithms of the reference lose digits to eigenvectors of close eigenvalues.
        chex.assert_trees_all_close(
            exact_frames(found[cluster], group), expected, rtol=0, atol=1e-11
        )


@pytest.mark.parametrize("radius", [0.3, 1.0, 1.55])
@single_by_default
def test_means_have_converged_to_rounding_within_the_ball(radius, dtype, rng):
    phi = np.concatenate([ball(rng, ROTATIONS, radius, 30) for _ in range(2)]).astype(dtype)
    weights, labels = rng.uniform(size=60).astype(dtype), np.repeat([0, 1], 30)
    found = frechet_means(phi, weights, labels, 2, ROTATIONS)
    left = residual(found, phi, weights, labels, ROTATIONS)
    chex.assert_type([found, left], dtype)
    # Sums of rounded logarithms; a near stationary point multiplies them by 1.3 at most.
    assert np.all(np.asarray(left) <= 20 * jnp.finfo(dtype).eps)


@each("so3(0, 1, 2)", "so(2)")
def test_means_turn_with_a_common_left_rotation(group, rng):
    phi, weights = ball(rng, group, 0.8), rng.uniform(size=(2, NUM))
    turn = np.tile(coordinates(rng, group, 1.2, 1), (NUM, 1))
    before = frechet_mean(phi, weights, group)
    after = frechet_mean(compose(turn, phi, group), weights, group)
    expected = exact_frames(turn[:2], group) @ exact_frames(before, group)
    chex.assert_trees_all_close(exact_frames(after, group), expected, rtol=0, atol=1e-13)


def test_the_spins_do_not_matter_to_a_mean(rng):
    phi, weights, labels = ball(rng, ROTATIONS, 1.0), np.ones(NUM), np.arange(NUM) % 2
    found = frechet_means(phi, weights, labels, 2, ROTATIONS)
    chex.assert_trees_all_equal(found, frechet_means(phi, weights, labels, 2, irreps.so3((3,))))


def test_rows_of_weights_and_labels_give_the_same_means(rng):
    phi, weights = ball(rng, ROTATIONS, 1.0), rng.uniform(size=NUM)
    labels = np.arange(NUM) % 3
    rows = np.where(labels == np.arange(4)[:, None], weights, 0.0)
    by_rows = frechet_mean(phi, 7.0 * rows, ROTATIONS)  # only ratios matter
    by_labels = frechet_means(phi, weights, labels, 4, ROTATIONS)
    chex.assert_trees_all_close(by_rows, by_labels, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(by_labels[3], 0.0)  # nobody's


def idle_members(rng, group):
    """Frames, weights and labels of NUM members and of four idle ones, which hold anything."""
    phi, weights = ball(rng, group, 1.0), rng.uniform(0.2, 1.0, NUM)
    idle = np.array([[1e3], [np.nan], [np.inf], [np.pi]]) * np.ones((1, phi.shape[1]))
    labels = np.append(np.arange(NUM) % 2, [0, 1, 2, -1])  # the last two belong to no cluster
    return np.concatenate([phi, idle]), np.append(weights, [0.0, 0.0, 2.0, 3.0]), labels


@each("so3(0, 1, 2)")
def test_members_without_weight_are_inert_whatever_they_hold(group, rng):
    phi, weights, labels = idle_members(rng, group)
    expected = frechet_means(phi[:NUM], weights[:NUM], labels[:NUM], 2, group)
    chex.assert_trees_all_close(
        frechet_means(phi, weights, labels, 2, group), expected, rtol=0, atol=1e-14
    )


@pytest.mark.slow
@pytest.mark.parametrize("group", [ROTATIONS, FOUR], ids=["so3", "so(4)"])
def test_members_without_weight_have_no_slope_and_spoil_none(group, rng):
    phi, weights, labels = idle_members(rng, group)
    slope = jax.jit(
        jax.grad(lambda x, w, labels: jnp.sum(means.frechet_means(x, w, labels, 2, group) ** 2))
    )
    gradient = np.asarray(slope(phi, weights, labels))
    # As many members, for one program: here the idle ones stand at 0 and belong to no cluster.
    phi[NUM:], weights[NUM:], labels[NUM:] = 0.0, 0.0, -1
    chex.assert_trees_all_close(
        gradient[:NUM], slope(phi, weights, labels)[:NUM], rtol=0, atol=1e-13
    )
    np.testing.assert_array_equal(gradient[NUM:], 0.0)


@pytest.mark.parametrize(("num_frames", "num"), [(0, 2), (3, 0)])
def test_no_frames_and_no_clusters(num_frames, num):
    group, phi, weights = irreps.so3((1,)), np.ones((num_frames, 3)), np.ones(num_frames)
    labels = np.zeros(num_frames, int)
    found = frechet_means(phi, weights, labels, num, group, iterations=1)
    np.testing.assert_array_equal(found, np.zeros((num, 3)))
    np.testing.assert_array_equal(residual(found, phi, weights, labels, group), np.zeros(num))


def test_nan_of_a_member_reaches_its_own_cluster_alone(rng):
    phi, labels = ball(rng, ROTATIONS, 1.0), np.arange(NUM) % 2
    phi[0] = np.nan
    found = np.isnan(frechet_means(phi, np.ones(NUM), labels, 2, ROTATIONS))
    np.testing.assert_array_equal(found, [[True] * 3, [False] * 3])


def test_the_slope_of_a_mean_is_that_of_the_stationary_point(rng):
    """Against central differences, with respect to frames and weights."""
    phi, weights = ball(rng, ROTATIONS, 1.2, 5), rng.uniform(0.5, 1.0, 5)
    labels = np.zeros(5, int)
    tangent = rng.normal(size=phi.shape), rng.normal(size=5)
    mean = partial(means.frechet_means, labels=labels, num=1, generators=ROTATIONS)
    slope = jax.jit(lambda: jax.jvp(mean, (phi, weights), tangent)[1])()
    step = 1e-5
    above, below = (
        np.asarray(
            frechet_means(phi + s * tangent[0], weights + s * tangent[1], labels, 1, ROTATIONS)
        )
        for s in (step, -step)
    )
    # Third derivatives times step^2, and rounding over step.
    chex.assert_trees_all_close(slope, (above - below) / (2 * step), rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda: means.frechet_means(np.ones(3), np.ones(3), np.ones(3, int), 1, FOUR), "phi"),
        (
            lambda: means.frechet_means(np.ones((2, 3)), np.ones(3), np.ones(2, int), 1, FOUR),
            "weights",
        ),
        (
            lambda: means.frechet_means(np.ones((2, 3)), np.ones(2), np.ones(3, int), 1, FOUR),
            "labels",
        ),
        (lambda: means.frechet_means(np.ones((2, 3)), np.ones(2), np.ones(2), 1, FOUR), "labels"),
        (lambda: means.frechet_mean(np.ones((2, 3)), np.ones(2), FOUR), "weights"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(function, named):
    with pytest.raises(ValueError, match=f"^{named} must"):
        function()
