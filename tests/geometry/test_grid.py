import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.geometry import grid

integrate = jax.jit(grid.integrate)
displacement = jax.jit(grid.displacement)
distance = jax.jit(grid.distance)
smooth_support = jax.jit(grid.smooth_support)
sharp_support = jax.jit(grid.sharp_support)
slope = jax.jit(jax.vmap(jax.grad(grid.smooth_support), in_axes=(0, None)))


@pytest.mark.parametrize(
    ("manifold", "shape", "volume"),
    [
        (grid.point(), (), 1.0),
        (grid.ring(7), (7,), 2 * math.pi),
        (grid.ring(1, 3.0), (1,), 3.0),
        (grid.line(5, 2.5), (5,), 2.5),
        (grid.line(1, 2.5), (1,), 2.5),
        (grid.line(2), (2,), 1.0),
        (grid.torus((4, 6)), (4, 6), 4 * math.pi**2),
        (grid.torus((4, 6), (1.0, 3.0)), (4, 6), 3.0),
        (grid.plane((3, 5)), (3, 5), 1.0),
        (grid.plane((3, 5, 2), (2.0, 3.0, 4.0)), (3, 5, 2), 24.0),
    ],
)
def test_shapes_and_volumes(manifold, shape, volume):
    chex.assert_shape(manifold.quadrature, shape)
    chex.assert_shape(manifold.points, (*shape, len(shape)))
    chex.assert_shape(manifold.periods, (len(shape),))
    np.testing.assert_allclose(integrate(manifold, np.ones(shape)), volume, rtol=1e-14)
    np.testing.assert_allclose(np.sum(np.asarray(manifold.quadrature)), volume, rtol=1e-14)


@pytest.mark.parametrize("num", [1, 2, 5, 8])
def test_ring_integrates_trigonometric_polynomials_below_num_exactly(num):
    length = 3.0
    ring = grid.ring(num, length)
    angle = 2 * math.pi * np.asarray(ring.points)[:, 0] / length
    order = np.arange(num)[:, None]
    waves = np.concatenate([np.cos(order * angle), np.sin(order * angle)])
    expected = np.zeros(2 * num)
    expected[0] = length
    np.testing.assert_allclose(integrate(ring, waves), expected, rtol=0, atol=1e-13)
    # and not at num, which the grid cannot tell from the constant
    np.testing.assert_allclose(integrate(ring, np.cos(num * angle)), length, rtol=1e-13)


def test_line_integrates_linear_functions_exactly_and_quadratic_ones_to_second_order():
    x = {num: grid.line(num, 2.0) for num in (2, 5, 9, 17)}
    for line in x.values():
        np.testing.assert_allclose(
            integrate(line, 3.0 - 2.0 * np.asarray(line.points)[:, 0]), 2.0, rtol=1e-14
        )
        np.testing.assert_array_equal(np.asarray(line.points)[[0, -1], 0], [0.0, 2.0])
    error = [
        float(integrate(x[num], np.asarray(x[num].points)[:, 0] ** 2)) - 8 / 3 for num in (5, 9, 17)
    ]
    np.testing.assert_allclose([error[0] / error[1], error[1] / error[2]], 4.0, rtol=1e-12)


def test_products_integrate_products():
    torus = grid.torus((4, 6), (2.0, 3.0))
    a, b = np.moveaxis(2 * math.pi * np.asarray(torus.points) / np.asarray(torus.periods), -1, 0)
    wave = (1.0 + np.cos(3 * a)) * (2.0 + np.sin(5 * b))
    np.testing.assert_allclose(integrate(torus, wave), 12.0, rtol=1e-14)
    plane = grid.plane((3, 4), (2.0, 3.0))
    x, y = np.moveaxis(np.asarray(plane.points), -1, 0)
    np.testing.assert_allclose(integrate(plane, (1.0 + x) * (2.0 - y)), 4.0 * 1.5, rtol=1e-14)


def test_integrate_keeps_leading_axes(rng):
    plane = grid.plane((3, 4))
    values = rng.normal(size=(2, 5, 3, 4))
    expected = np.einsum("abxy,xy->ab", values, plane.quadrature)
    np.testing.assert_allclose(integrate(plane, values), expected, rtol=0, atol=1e-15)
    values = rng.normal(size=(2, 5))
    np.testing.assert_array_equal(integrate(grid.point(), values), values)


def test_distances_wrap_on_a_ring_and_not_on_a_line():
    ring = grid.ring(10, 10.0)
    np.testing.assert_allclose(
        distance(ring, np.array([1.0])), [1, 0, 1, 2, 3, 4, 5, 4, 3, 2], rtol=0, atol=1e-14
    )
    # a centre may lie any number of turns away
    np.testing.assert_allclose(
        distance(ring, np.array([-29.0])), distance(ring, np.array([1.0])), rtol=0, atol=1e-13
    )
    line = grid.line(11, 10.0)
    np.testing.assert_allclose(
        distance(line, np.array([1.0])), np.abs(np.arange(11.0) - 1), rtol=0, atol=1e-14
    )
    far = displacement(line, np.array([-29.0]))
    np.testing.assert_allclose(far[:, 0], np.arange(11.0) + 29, rtol=0, atol=1e-14)


def test_distances_wrap_on_every_axis_of_a_torus_and_on_none_of_a_plane(rng):
    lengths = np.array([2.0, 3.0])
    centre = rng.uniform(size=(5, 2)) * lengths
    for manifold, images in (
        (grid.torus((4, 6), lengths), (-1, 0, 1)),
        (grid.plane((4, 6), lengths), (0,)),
    ):
        step = np.asarray(manifold.points) - centre[:, None, None]
        candidates = [
            np.linalg.norm(step + np.array([a, b]) * lengths, axis=-1)
            for a in images
            for b in images
        ]
        actual = distance(manifold, centre)
        chex.assert_shape(actual, (5, 4, 6))
        np.testing.assert_allclose(actual, np.min(candidates, axis=0), rtol=0, atol=1e-14)
        step = displacement(manifold, centre)
        np.testing.assert_allclose(np.linalg.norm(step, axis=-1), actual, rtol=1e-14)


def test_distance_to_a_centre_on_the_grid_has_a_finite_gradient():
    ring = grid.ring(8)

    def width(centre):
        return jnp.sum(grid.smooth_support(grid.distance(ring, centre), 2.0))

    h = 1e-5
    centres = np.array([[0.0], [0.1], [0.1 + h], [0.1 - h]])
    widths, gradient = map(np.asarray, jax.jit(jax.vmap(jax.value_and_grad(width)))(centres))
    # at a grid point the grid is symmetric about the centre
    np.testing.assert_allclose(gradient[0], 0.0, rtol=0, atol=1e-14)
    difference = (widths[2] - widths[3]) / (2 * h)
    np.testing.assert_allclose(gradient[1, 0], difference, rtol=1e-7)


def test_a_point_has_no_extent():
    here = grid.point()
    separation = distance(here, np.zeros((4, 0)))
    np.testing.assert_array_equal(separation, np.zeros(4))
    np.testing.assert_array_equal(smooth_support(separation, 1.0), np.ones(4))
    np.testing.assert_array_equal(sharp_support(separation, 1.0), np.ones(4))


def test_smooth_support_inside(dtype):
    r = np.array([0.0, 0.5, 1.0, 1.9])
    actual = np.asarray(smooth_support(r.astype(dtype), 2.0))
    chex.assert_type(actual, dtype)
    np.testing.assert_allclose(
        actual, np.exp(1 - 1 / (1 - (r / 2) ** 2)), rtol=50 * jnp.finfo(dtype).eps
    )
    assert actual[0] == 1


def test_smooth_support_is_zero_outside_with_all_its_derivatives(dtype):
    edge = np.asarray(2.0, dtype)
    outside = np.asarray([edge, np.nextafter(edge, np.asarray(3, dtype)), 3.0, 1e6, np.inf], dtype)
    np.testing.assert_array_equal(smooth_support(outside, 2.0), 0.0)
    inner = np.asarray([np.nextafter(edge, np.asarray(0, dtype)), edge * (1 - 1e-4)], dtype)
    second = jax.jit(jax.vmap(jax.grad(jax.grad(grid.smooth_support)), in_axes=(0, None)))
    for derivative in (slope, second):
        # exp(-1 / x) beats every power of 1 / x
        np.testing.assert_array_equal(derivative(np.append(outside[:-1], inner), 2.0), 0.0)


def test_smooth_support_gradient_inside(dtype):
    r = np.array([0.0, 0.5, 1.0, 1.5])
    s = 1 - (r / 2) ** 2
    expected = -np.exp(1 - 1 / s) / s**2 * r / 2
    np.testing.assert_allclose(
        slope(r.astype(dtype), 2.0), expected, rtol=50 * jnp.finfo(dtype).eps
    )


def test_sharp_support_is_the_closed_ball(dtype):
    actual = sharp_support(np.asarray([0.0, 1.0, 2.0, 2.5], dtype), 2.0)
    chex.assert_type(actual, dtype)
    np.testing.assert_array_equal(actual, [1, 1, 1, 0])


def test_overlap_is_the_product_of_every_pair(rng):
    supports = rng.uniform(size=(3, 4, 5))
    overlap = jax.jit(grid.overlap)
    actual = overlap(supports)
    np.testing.assert_array_equal(actual, np.einsum("ixy,jxy->ijxy", supports, supports))
    far = smooth_support(distance(grid.ring(8, 8.0), np.array([[0.0], [4.0]])), 2.0)
    far = np.asarray(overlap(far))
    np.testing.assert_array_equal(far[0, 1], 0.0)
    assert np.max(far[0, 0]) == 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: grid.ring(0), "at least 1 point"),
        (lambda: grid.line(-2), "at least 1 point"),
        (lambda: grid.ring(4, 0.0), "positive length"),
        (lambda: grid.line(4, -1.0), "positive length"),
        (lambda: grid.torus((4, 4), (1.0, math.inf)), "positive length"),
        (lambda: grid.plane((4, 4), (1.0, math.nan)), "positive length"),
        (lambda: grid.torus((4, 4), (1.0,)), "same number of axes"),
        (lambda: grid.plane((4,), (1.0, 2.0)), "same number of axes"),
    ],
)
def test_impossible_grids_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_nan_is_nowhere_and_everywhere_unknown(dtype):
    """A centre or a distance that is NaN must not look like a place."""
    ring = jax.tree.map(lambda x: np.asarray(x, dtype), grid.ring(4))
    separation = distance(ring, np.asarray([[np.nan], [0.0]], dtype))
    for support in (sharp_support, smooth_support):
        chi = np.asarray(support(separation, np.asarray(1.0, dtype)))
        chex.assert_type(chi, dtype)
        assert np.isnan(chi[0]).all()
        chex.assert_tree_all_finite(chi[1])
        assert np.isnan(support(separation, np.asarray(np.nan, dtype))).all()


def test_integer_centres_and_distances_are_numbers():
    line = grid.line(3, 2.0)
    chex.assert_trees_all_equal(distance(line, np.array([1])), distance(line, np.array([1.0])))
    np.testing.assert_array_equal(sharp_support(np.array([0, 2]), 1), [1.0, 0.0])
    np.testing.assert_array_equal(smooth_support(np.array([0, 2]), 1), [1.0, 0.0])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda: grid.integrate(grid.ring(4), jnp.ones(4, jnp.float32)),
            "values must have the dtype of the grid, float64, got float32",
        ),
        (lambda: grid.integrate(grid.ring(4), jnp.ones(3)), r"values must be \[..., \*\(4,\)\]"),
        (lambda: grid.integrate(grid.ring(4), jnp.ones(4, complex)), "values must be real"),
        (lambda: grid.distance(grid.ring(4), jnp.ones(2)), r"centre must be \[..., 1\]"),
        (lambda: grid.distance(grid.ring(4), jnp.ones(1, complex)), "centre must be real"),
    ],
)
def test_what_does_not_fit_a_grid_is_refused_by_name(function, message):
    with pytest.raises(ValueError, match=message):
        function()
