"""Populations and their unconstrained coordinates: round trips, natural gradient, trust region,
shapes.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import agents_oracle as oracle

from vfejax.agents import population as agents
from vfejax.agents.metric import natural_direction
from vfejax.agents.population import PopulationCoordinates
from vfejax.beliefs.coordinates import GaussianCoordinates, fisher_length
from vfejax.beliefs.gaussian import kl_divergence
from vfejax.geometry.irreps import so3
from vfejax.geometry.transport import frames

VECTOR = oracle.ROTATIONS["vector"]
NUM, GRID = 3, (2,)

constrain = jax.jit(agents.constrain)
unconstrain = jax.jit(agents.unconstrain)
limit_step = jax.jit(agents.limit_step)
lengths = jax.jit(fisher_length)


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


def population_of(rng, dtype=np.float64):
    return oracle.random_population(rng, NUM, VECTOR, GRID, dtype)


def coordinates_of(rng, dtype=np.float64, scale=1.0):
    shapes = jax.eval_shape(agents.unconstrain, population_of(rng, dtype))
    return jax.tree.map(
        lambda x: jnp.asarray((scale * rng.normal(size=x.shape)).astype(dtype)), shapes
    )


def test_population_survives_the_round_trip(rng, dtype):
    population = population_of(rng, dtype)
    there_and_back = constrain(unconstrain(population))
    exact = [(p.belief.mean, p.prior.mean, p.phi) for p in (there_and_back, population)]
    chex.assert_trees_all_equal(*exact)
    lower = population._replace(
        belief=population.belief._replace(chol=np.tril(population.belief.chol)),
        prior=population.prior._replace(chol=np.tril(population.prior.chol)),
    )
    # exp(log x) for x near 1: two roundings.
    chex.assert_trees_all_close(there_and_back, lower, rtol=4 * eps(dtype))


def test_coordinates_survive_the_round_trip(rng, dtype):
    coordinates = coordinates_of(rng, dtype)
    there_and_back = unconstrain(constrain(coordinates))
    assert isinstance(there_and_back, PopulationCoordinates)
    lower = coordinates._replace(
        belief=coordinates.belief._replace(factor=np.tril(coordinates.belief.factor)),
        prior=coordinates.prior._replace(factor=np.tril(coordinates.prior.factor)),
    )
    chex.assert_trees_all_close(there_and_back, lower, rtol=0, atol=10 * eps(dtype))


def test_every_coordinate_is_a_population(rng):
    """However far the coordinates, covariances are positive definite: their factors have positive
    diagonals.
    """
    population = constrain(coordinates_of(rng, scale=30.0))
    for gaussian in (population.belief, population.prior):
        diagonal = np.diagonal(gaussian.chol, axis1=-2, axis2=-1)
        assert np.all(diagonal > 0)
        chex.assert_tree_all_finite(gaussian.chol)


@pytest.mark.slow
def test_natural_gradient_does_not_depend_on_units(rng):
    """Fisher-steepest descent of KL(q || p) is the same motion whether lengths are in metres or
    millimetres.
    """

    @jax.jit
    def motion(population):
        def energy(coordinates):
            q = agents.constrain(coordinates)
            return jnp.sum(kl_divergence(q.belief, q.prior))

        coordinates = agents.unconstrain(population)
        direction = natural_direction(coordinates, jax.grad(energy)(coordinates), so3((1,)))
        return jax.jvp(agents.constrain, (coordinates,), (direction,))[1]

    population = population_of(rng)
    scaled = population._replace(
        belief=jax.tree.map(lambda x: 1e3 * np.asarray(x), population.belief),
        prior=jax.tree.map(lambda x: 1e3 * np.asarray(x), population.prior),
    )
    actual, expected = motion(scaled), motion(population)
    smallest = min(float(np.max(np.abs(x))) for x in expected.belief)
    chex.assert_trees_all_close(
        actual.belief,
        jax.tree.map(lambda x: 1e3 * np.asarray(x), expected.belief),
        rtol=0,
        atol=1e-9 * smallest,
    )


def test_long_steps_are_shortened_and_short_ones_pass(rng, dtype):
    coordinates = coordinates_of(rng, dtype)
    step = coordinates_of(rng, dtype, scale=10.0)
    limit = partial(limit_step, gaussian_radius=0.3, frame_radius=0.2)
    limited = limit(step, coordinates)
    for name in ("belief", "prior"):
        length = lengths(getattr(coordinates, name), getattr(limited, name))
        np.testing.assert_allclose(length, 0.3, rtol=1e3 * eps(dtype))
    np.testing.assert_allclose(np.linalg.norm(limited.phi, axis=-1), 0.2, rtol=10 * eps(dtype))
    # Same direction: one factor for each agent and point.
    ratio = jax.tree.map(
        lambda a, e: (np.asarray(a) / np.asarray(e)).reshape(NUM, *GRID, -1), limited, step
    )
    first = jax.tree.map(lambda x: np.broadcast_to(x[..., :1], x.shape), ratio)
    chex.assert_trees_all_close(ratio, first, rtol=10 * eps(dtype))
    assert all(np.all((x > 0) & (x < 1)) for x in jax.tree.leaves(ratio))
    short = jax.tree.map(lambda x: np.asarray(1e-4 * np.asarray(x), dtype), limited)
    chex.assert_trees_all_equal(limit(short, coordinates), short)


@pytest.mark.parametrize("radius", [0.0, 0.3])
def test_no_step_stays_none(radius, rng):
    coordinates = coordinates_of(rng)
    nothing = jax.tree.map(np.zeros_like, coordinates)
    limited = limit_step(nothing, coordinates, gaussian_radius=radius, frame_radius=radius)
    chex.assert_trees_all_equal(limited, nothing)


def test_radius_zero_lets_nothing_through(rng):
    coordinates, step = coordinates_of(rng), coordinates_of(rng)
    limited = limit_step(step, coordinates, gaussian_radius=0.0, frame_radius=0.0)
    chex.assert_trees_all_equal(limited, jax.tree.map(jnp.zeros_like, step))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_without_a_length_is_nan_and_not_none(bad, rng):
    coordinates = coordinates_of(rng)
    nothing = jax.tree.map(np.zeros_like, coordinates)
    nothing.belief.mean[0, 0, 0] = bad
    limited = jax.device_get(
        limit_step(nothing, coordinates, gaussian_radius=0.3, frame_radius=0.2)
    )
    assert np.isnan(limited.belief.mean[0, 0, 0])
    chex.assert_tree_all_finite((limited.prior, limited.phi, limited.belief.mean[1:]))


def test_gradient_through_a_frozen_group_is_exact():
    """Priors do not move: their steps have length 0, where a bare root has no derivative."""
    zeros = GaussianCoordinates(np.zeros((2, 3)), np.zeros((2, 3, 3)))
    coordinates = PopulationCoordinates(zeros, zeros, np.zeros((2, 3)))

    @jax.jit
    @jax.value_and_grad
    def total(rate):
        step = PopulationCoordinates(
            jax.tree.map(lambda x: x + 0.01 * rate, zeros),
            jax.tree.map(lambda x: 0.0 * rate * x, zeros),
            coordinates.phi + rate,
        )
        limited = agents.limit_step(step, coordinates, gaussian_radius=0.3, frame_radius=0.3)
        return sum(jnp.sum(x) for x in jax.tree.leaves(limited))

    # Two agents of 12 belief components (3 of the 9 lie above the diagonal, and pass as they are)
    # and 3 frame components, none of them long enough to be shortened.
    chex.assert_trees_all_close(total(0.1)[1], jnp.asarray(2 * (12 * 0.01 + 3.0)), rtol=1e-14)


def test_retraction_keeps_the_transports(rng):
    coordinates = coordinates_of(rng, scale=5.0)
    still = jax.tree.map(np.zeros_like, coordinates)
    retracted = jax.jit(agents.retract)(coordinates, still, so3((1,)))
    chex.assert_trees_all_equal(retracted[:2], coordinates[:2])
    assert np.max(np.linalg.norm(coordinates.phi, axis=-1)) > np.pi
    assert np.max(np.linalg.norm(retracted.phi, axis=-1)) <= np.pi * (1 + 1e-15)
    exponential = jax.jit(lambda phi: frames(phi, so3((1,))))
    np.testing.assert_allclose(
        exponential(retracted.phi), exponential(coordinates.phi), rtol=0, atol=1e-13
    )


def test_populations_that_fit_pass(rng):
    assert agents.check_population(population_of(rng), VECTOR) is None


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "belief.mean",
            (NUM, 2, 4),
            r"belief.mean must have shape \[n, \*grid, k\] with k = 3 .* got \(3, 2, 4\)",
        ),
        ("belief.mean", (3,), r"belief.mean must have shape .* got \(3,\)"),
        (
            "belief.chol",
            (NUM, 2, 3, 4),
            r"belief.chol must have shape \(3, 2, 3, 3\) .* got \(3, 2, 3, 4\)",
        ),
        ("prior.mean", (NUM, 3, 3), r"prior.mean must have shape \(3, 2, 3\) .* got \(3, 3, 3\)"),
        (
            "prior.chol",
            (NUM, 2, 3),
            r"prior.chol must have shape \(3, 2, 3, 3\) .* got \(3, 2, 3\)",
        ),
        ("phi", (NUM, 2, 4), r"phi must have shape \(3, 2, 3\) .* got \(3, 2, 4\)"),
    ],
)
def test_shape_errors_name_the_array(name, shape, message, rng):
    population = population_of(rng)
    if name == "phi":
        broken = population._replace(phi=np.ones(shape))
    else:
        gaussian, field = name.split(".")
        part = getattr(population, gaussian)._replace(**{field: np.ones(shape)})
        broken = population._replace(**{gaussian: part})
    with pytest.raises(ValueError, match=message):
        agents.check_population(broken, VECTOR)


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("belief.mean", int, "belief.mean must be real floating numbers, got int64"),
        ("belief.mean", complex, "belief.mean must be real floating numbers, got complex128"),
        ("belief.chol", "float32", "belief.chol must have dtype float64 .* got float32"),
        ("prior.mean", complex, "prior.mean must have dtype float64 .* got complex128"),
        ("prior.chol", int, "prior.chol must have dtype float64 .* got int64"),
        ("phi", "float32", "phi must have dtype float64 .* got float32"),
    ],
)
def test_dtype_errors_name_the_array(name, dtype, message, rng):
    population = population_of(rng)
    if name == "phi":
        broken = population._replace(phi=np.asarray(population.phi).astype(dtype))
    else:
        gaussian, field = name.split(".")
        part = getattr(population, gaussian)
        part = part._replace(**{field: np.asarray(getattr(part, field)).astype(dtype)})
        broken = population._replace(**{gaussian: part})
    with pytest.raises(ValueError, match=message):
        agents.check_population(broken, VECTOR)


@pytest.mark.parametrize("shape", [(3,), (3, 3), (2, 3, 3, 3)])
def test_generators_must_be_a_basis(shape, rng):
    with pytest.raises(ValueError, match=r"generators must have shape \[a, k, k\]"):
        agents.check_population(population_of(rng), np.ones(shape))


def test_coordinates_and_populations_are_told_apart(rng):
    population = population_of(rng)
    coordinates = agents.unconstrain(population)
    with pytest.raises(ValueError, match=r"got coordinates; constrain\(coordinates\) is a"):
        agents.check_population(coordinates, VECTOR)
    with pytest.raises(ValueError, match=r"got a Population; unconstrain\(population\) has"):
        agents.constrain(population)


def test_a_mesh_of_explicit_axes_is_refused_with_the_mesh_to_make(rng):
    mesh = jax.make_mesh((1,), ("agents",), axis_types=(jax.sharding.AxisType.Explicit,))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("agents"))
    with pytest.raises(ValueError, match=r"axes of type Auto; make_mesh\(shape, names, axis_types"):
        agents.check_population(jax.device_put(population_of(rng), place), VECTOR)
