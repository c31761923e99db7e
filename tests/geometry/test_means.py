"""Logarithms invert exponentials; Frechet means are stationary, turn with the frames, and see no
padding.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.precisions import single_by_default

from vfejax.geometry import groups, irreps, means
from vfejax.geometry.transport import frames

NUM = 12

ROTATIONS = irreps.so3((0, 1, 2))
FOUR = irreps.so(4)
# Groups whose law is tested; a new orthogonal one joins by one line. Quaternions compile quickly,
# products of matrices do not: the groups of every kind but the first are for slow runs.
GROUPS = {
    "so3(0, 1, 2)": ROTATIONS,
    "so(2)": irreps.so(2),
    "so3(3)": irreps.so3((3,)),
    "so(3)": irreps.so(3),
    "so(4)": FOUR,
}


def each(*fast):
    """A test of every group, of those not named in slow runs only."""
    return pytest.mark.parametrize(
        "group",
        [
            pytest.param(group, id=name, marks=() if name in fast else pytest.mark.slow)
            for name, group in GROUPS.items()
        ],
    )


logarithm = jax.jit(means.logarithm)
compose = jax.jit(means.compose)
to_frames = jax.jit(frames)
frechet_means = jax.jit(means.frechet_means, static_argnames=("num", "iterations"))
frechet_mean = jax.jit(means.frechet_mean)
residual = jax.jit(means.frechet_residual)


def exact_frames(phi, group):
    """Exponentials of antisymmetric matrices by their eigenvectors, in float64."""
    x = np.tensordot(np.asarray(phi, np.float64), group.generators, 1)
    values, vectors = np.linalg.eigh(1j * x)
    return np.einsum("...ij,...j,...kj->...ik", vectors, np.exp(-1j * values), vectors.conj()).real


def coordinates(rng, group, largest, num=NUM):
    """Coordinates whose fastest plane turns by so many radians in the defining representation."""
    phi = rng.normal(size=(num, group.generators.shape[0]))
    if phi.shape[1] <= 3:
        speed = np.linalg.norm(phi, axis=-1)
    else:
        speed = np.abs(np.linalg.eigvals(np.tensordot(phi, group.generators, 1))).max(-1)
    return largest * phi / speed[:, None]


@each("so3(0, 1, 2)", "so(2)", "so(4)")
@single_by_default
def test_the_logarithm_inverts_the_exponential_at_every_angle_below_pi(group, dtype, rng):
    angles = [0.0, 1e-9, 1e-3, 1.0, 3.0, np.pi - 1e-3]
    phi = np.concatenate([coordinates(rng, group, angle, 4) for angle in angles]).astype(dtype)
    found = logarithm(exact_frames(phi, group).astype(dtype), group)
    chex.assert_type(found, dtype)
    # The frame carries the rounding; the logarithm multiplies it by at most about pi / 2 here.
    chex.assert_trees_all_close(found, phi, rtol=0, atol=20 * jnp.finfo(dtype).eps)


@each("so3(0, 1, 2)", "so(2)")
def test_the_law_in_coordinates_is_that_of_the_frames(group, rng):
    phi, step = (coordinates(rng, group, angle) for angle in (1.3, 1.1))
    found = compose(phi, step, group)
    expected = exact_frames(phi, group) @ exact_frames(step, group)
    chex.assert_trees_all_close(exact_frames(found, group), expected, rtol=0, atol=3e-14)


@each("so3(0, 1, 2)", "so(4)")
def test_the_slope_of_the_logarithm_along_the_group_is_exact(group, rng):
    """At 0, and near pi: the frames of ``phi + h d`` have the slope d."""
    phi = np.concatenate([np.zeros((1, len(group.generators))), coordinates(rng, group, 3.0, 1)])
    direction, step = rng.normal(size=phi.shape), 1e-5
    above, below = (exact_frames(phi + h * direction, group) for h in (step, -step))

    @jax.jit
    def slope(frame, tangent):
        return jax.jvp(lambda u: means.logarithm(u, group), (frame,), (tangent,))[1]

    found = slope(exact_frames(phi, group), (above - below) / (2 * step))
    # Third derivatives times step^2, and rounding over step.
    chex.assert_trees_all_close(found, direction, rtol=0, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("group", [ROTATIONS, FOUR], ids=["so3", "so(4)"])
def test_slopes_backwards_are_the_transposed_ones_forwards(group, rng):
    phi = np.concatenate([np.zeros((1, len(group.generators))), coordinates(rng, group, 3.0, 1)])
    direction = rng.normal(size=phi.shape)

    @jax.jit
    def slopes(phi, direction):
        def through(x):
            return means.logarithm(frames(x, group), group)

        return jax.jvp(through, (phi,), (direction,))[1], jax.vjp(through, phi)[1](direction)[0]

    for slope in slopes(phi, direction):
        # Divided by the smallest factor of the exponential's own slope, sinc of half an angle.
        chex.assert_trees_all_close(slope, direction, rtol=0, atol=1e-12)


def test_frames_without_effect_have_the_coordinates_zero():
    nothing = irreps.so3((0,))
    np.testing.assert_array_equal(logarithm(np.ones((2, 1, 1)), nothing), np.zeros((2, 3)))


@pytest.mark.slow
def test_plain_generators_without_effect_have_the_coordinates_zero():
    nothing = irreps.so3_generators((0,))
    np.testing.assert_array_equal(logarithm(np.ones((1, 1)), nothing), np.zeros(3))


@pytest.mark.slow
def test_plain_generators_end_where_their_own_eigenvalues_do(rng):
    """Spin 2 turns twice as fast; beyond a quarter turn its frame is another one's exponential."""
    group = irreps.so3((0, 2))
    plain = jax.jit(lambda u: means.logarithm(u, group.generators))
    inside, outside = coordinates(rng, group, 1.5), coordinates(rng, group, 1.7)
    chex.assert_trees_all_close(plain(exact_frames(inside, group)), inside, rtol=0, atol=1e-13)
    assert np.isnan(plain(exact_frames(outside, group))).all()


def test_a_representation_that_is_not_orthogonal_is_refused():
    dilation = np.diag([1.0, -1.0])[None]
    with pytest.raises(ValueError, match="generators must be antisymmetric"):
        means.logarithm(np.eye(2), dilation)
    with pytest.raises(ValueError, match="generators must be antisymmetric"):
        means.compose(np.ones(1), np.ones(1), groups.general(dilation))


@pytest.mark.slow
def test_a_representation_that_is_traced_and_not_orthogonal_has_no_coordinates():
    dilation = np.diag([1.0, -1.0])[None]
    assert np.isnan(jax.jit(means.orthogonal_logarithm)(np.eye(2), dilation)).all()


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
    expected = slope(phi[:NUM], weights[:NUM], labels[:NUM])
    chex.assert_trees_all_close(gradient[:NUM], expected, rtol=0, atol=1e-13)
    np.testing.assert_array_equal(gradient[NUM:], 0.0)


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
        (lambda: means.logarithm(np.eye(3), ROTATIONS), "frame"),
        (lambda: means.compose(np.ones(2), np.ones(3), ROTATIONS), "phi"),
        (lambda: means.compose(np.ones(3), np.ones(2), ROTATIONS), "step"),
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
