"""Logarithms invert exponentials, and the law in coordinates is that of the frames."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.orthogonal_groups import FOUR, ROTATIONS, coordinates, each, exact_frames
from helpers.precisions import single_by_default

from vfejax.geometry import groups, irreps, logarithms
from vfejax.geometry.transport import frames

logarithm = jax.jit(logarithms.logarithm)
compose = jax.jit(logarithms.compose)


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
        return jax.jvp(lambda u: logarithms.logarithm(u, group), (frame,), (tangent,))[1]

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
            return logarithms.logarithm(frames(x, group), group)

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
    plain = jax.jit(lambda u: logarithms.logarithm(u, group.generators))
    inside, outside = coordinates(rng, group, 1.5), coordinates(rng, group, 1.7)
    chex.assert_trees_all_close(plain(exact_frames(inside, group)), inside, rtol=0, atol=1e-13)
    assert np.isnan(plain(exact_frames(outside, group))).all()


def test_a_representation_that_is_not_orthogonal_is_refused():
    dilation = np.diag([1.0, -1.0])[None]
    with pytest.raises(ValueError, match="generators must be antisymmetric"):
        logarithms.logarithm(np.eye(2), dilation)
    with pytest.raises(ValueError, match="generators must be antisymmetric"):
        logarithms.compose(np.ones(1), np.ones(1), groups.general(dilation))


@pytest.mark.slow
def test_a_representation_that_is_traced_and_not_orthogonal_has_no_coordinates():
    dilation = np.diag([1.0, -1.0])[None]
    assert np.isnan(jax.jit(logarithms.orthogonal_logarithm)(np.eye(2), dilation)).all()


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda: logarithms.logarithm(np.eye(3), ROTATIONS), "frame"),
        (lambda: logarithms.compose(np.ones(2), np.ones(3), ROTATIONS), "phi"),
        (lambda: logarithms.compose(np.ones(3), np.ones(2), ROTATIONS), "step"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(function, named):
    with pytest.raises(ValueError, match=f"^{named} must"):
        function()
