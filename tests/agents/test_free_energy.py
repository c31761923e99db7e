"""The free energy, term by term, against the oracle: points and fields, gauges, supports,
observations, memory.
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import agents_oracle as oracle

from vfejax.agents.edges import Edges
from vfejax.agents.free_energy import (
    FreeEnergyTerms,
    Weights,
    checked_weights,
    free_energy,
    free_energy_terms,
)
from vfejax.agents.observation import Observations
from vfejax.agents.population import Population
from vfejax.beliefs.gaussian import Gaussian
from vfejax.geometry import grid as grids
from vfejax.geometry.transport import frames

VECTOR = oracle.ROTATIONS["vector"]
SUM = oracle.ROTATIONS["sum"]
WEIGHTS = Weights(0.7, 1.3, 0.4, 0.9)
TAU = 2.5


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


def observations_of(rng, num, k, grid=(), dtype=np.float64):
    """Three observations of two components per agent, each present with probability 0.7."""
    present = rng.uniform(size=(num, 3, *grid)) < 0.7
    arrays = (
        rng.normal(size=(num, 3, *grid, 2)),
        present,
        rng.normal(size=(2, k)),
        np.array([[0.8, 0.0], [0.3, 0.6]]),
    )
    return Observations(*(jnp.asarray(x.astype(dtype)) for x in arrays))


@partial(jax.jit, static_argnames="alignment_fn")
def _terms_and_gradient(population, supports, **options):
    def total(arguments):
        population, supports = arguments
        terms = free_energy_terms(
            population,
            VECTOR,
            weights=WEIGHTS,
            temperature=TAU,
            supports=supports,
            **options,
        )
        return terms.total, terms

    gradient, terms = jax.grad(total, has_aux=True)((population, supports))
    return jnp.stack(terms), *gradient


def terms_and_gradient(population, supports=None, *, alignment_fn=oracle.mixture, **options):
    """Terms, and the gradient of their total in (population, supports), of agents whose frames are
    rotations of spin 1.
    """
    return jax.device_get(
        _terms_and_gradient(population, supports, alignment_fn=alignment_fn, **options)
    )


@partial(jax.jit, static_argnums=0)
def naive(alignment_fn, population, supports, observations, neighbours):
    """The same at one point, by the oracle."""

    def total(arguments):
        population, supports = arguments
        terms = oracle.free_energy_terms(
            population, VECTOR, WEIGHTS, TAU, alignment_fn, observations, supports, neighbours
        )
        return jnp.sum(terms), terms

    gradient, terms = jax.grad(total, has_aux=True)((population, supports))
    return jnp.append(terms, jnp.sum(terms)), *gradient


def loop_over_points(
    population, supports, observations, quadrature, neighbours=None, alignment_fn=oracle.mixture
):
    """Terms summed over the points of a grid with their quadrature weights, and the gradients at
    the points side by side.
    """
    num, *grid = population.phi.shape[:-1]
    neighbours = np.ones((num, num)) if neighbours is None else neighbours
    population, observations, supports = jax.device_get((population, observations, supports))
    terms, gradients = [], []
    for point in np.ndindex(*grid):
        here = (slice(None), *point)
        seen = observations._replace(
            values=observations.values[(slice(None), *here)],
            present=observations.present[(slice(None), *here)],
        )
        agents = jax.tree.map(lambda x, c=here: x[c], population)
        results = naive(alignment_fn, agents, supports[here], seen, neighbours)
        weighted = jax.tree.map(lambda x, w=float(quadrature[point]): w * np.asarray(x), results)
        terms.append(weighted[0])
        gradients.append(weighted[1:])

    def onto_grid(*x):
        return np.stack(x, axis=1).reshape(num, *grid, *x[0].shape[1:])

    return np.sum(terms, axis=0), *jax.tree.map(onto_grid, *gradients)


def assert_trees_close(actual, expected, tolerance):
    """Every leaf within ``tolerance`` times its largest entry."""
    chex.assert_trees_all_equal_shapes(actual, expected)
    chex.assert_trees_all_equal_comparator(
        lambda a, e: np.allclose(a, e, rtol=0, atol=tolerance * np.max(np.abs(e))),
        lambda a, e: f"differ by {np.abs(np.subtract(a, e)).max()}; largest {np.abs(e).max()}",
        actual,
        expected,
    )


@pytest.mark.parametrize(
    "alignment_fn",
    [oracle.mixture, *(pytest.param(fn, marks=pytest.mark.slow) for fn in oracle.ENERGIES)],
    ids=lambda f: f.__name__,
)
def test_terms_and_gradient_at_a_point(alignment_fn, rng):
    population = oracle.random_population(rng, 4, VECTOR)
    observations = observations_of(rng, 4, 3)
    *expected, _ = loop_over_points(
        population, np.ones(4), observations, np.ones(()), alignment_fn=alignment_fn
    )
    *actual, nothing = terms_and_gradient(
        population, observations=observations, alignment_fn=alignment_fn
    )
    assert nothing is None
    assert_trees_close(actual, expected, 1e-12)


@pytest.mark.slow
def test_terms_and_gradient_in_single_precision(rng):
    inputs = (
        oracle.random_population(rng, 4, VECTOR, dtype=np.float32),
        observations_of(rng, 4, 3, dtype=np.float32),
    )
    population, observations = oracle.to_double(inputs)
    *expected, _ = loop_over_points(population, np.ones(4), observations, np.ones(()))
    *actual, _ = terms_and_gradient(inputs[0], observations=inputs[1])
    chex.assert_type(jax.tree.leaves(actual), jnp.float32)
    # Products of feature rows of up to 200 are rounded into exponents of temperature 2.5.
    assert_trees_close(actual, expected, 200 * eps(jnp.float32))


RING = (partial(grids.ring, 5), [[0.2], [0.9], [1.9], [3.0]])
TORUS = (partial(grids.torus, (3, 2)), [[0.3, 0.1], [1.0, 3.0], [2.2, 0.4], [4.4, 3.3]])
FIELDS = {
    "ring smooth": (*RING, grids.smooth_support, 2.0),
    "ring sharp": (*RING, grids.sharp_support, 1.5),
    "torus smooth": (*TORUS, grids.smooth_support, 2.6),
    "torus sharp": (*TORUS, grids.sharp_support, 2.2),
}


# A grid of two axes has a default test with a neighbour list below.
@pytest.mark.parametrize(
    "field",
    [pytest.param(f, marks=pytest.mark.slow if "torus" in f else ()) for f in FIELDS],
)
def test_fields_equal_a_loop_over_points(field, rng):
    make_grid, centres, support_fn, radius = FIELDS[field]
    grid = make_grid()
    supports = np.asarray(
        jax.jit(lambda at: support_fn(grids.distance(grid, at), radius))(np.asarray(centres))
    )
    outside = supports == 0
    assert np.any(outside)
    assert np.any(np.sum(~outside, axis=0) > 1)
    shape = grid.quadrature.shape
    population = oracle.random_population(rng, 4, VECTOR, shape)
    observations = observations_of(rng, 4, 3, shape)
    terms, gradient, slope = terms_and_gradient(
        population, supports, observations=observations, quadrature=grid.quadrature
    )
    expected = loop_over_points(population, supports, observations, np.asarray(grid.quadrature))
    assert_trees_close((terms, gradient), expected[:2], 1e-12)
    # Where an agent is not, it neither pays nor feels.
    felt = jax.tree.map(lambda x: x[outside], gradient)
    chex.assert_trees_all_equal(felt, jax.tree.map(np.zeros_like, felt))
    # The derivative in a support is right where there is support, and finite where there is none.
    np.testing.assert_allclose(
        slope[~outside], expected[2][~outside], rtol=0, atol=1e-12 * np.max(np.abs(expected[2]))
    )
    chex.assert_tree_all_finite(slope)


def test_absent_agents_do_not_matter(rng):
    """On a ring of 5 points, where the program of the fields above serves."""
    supports = np.broadcast_to(np.array([1.0, 0.0, 0.4, 0.0])[:, None], (4, 5))
    absent = np.array([1, 3])
    options = {
        "observations": observations_of(rng, 4, 3, (5,)),
        "quadrature": grids.ring(5).quadrature,
    }
    population, others = (
        jax.device_get(oracle.random_population(rng, 4, VECTOR, (5,))) for _ in range(2)
    )
    here = supports > 0
    replaced = jax.tree.map(
        lambda x, y: np.where(here.reshape(4, 5, *(1,) * (x.ndim - 2)), x, y), population, others
    )
    actual = terms_and_gradient(replaced, supports, **options)
    expected = terms_and_gradient(population, supports, **options)
    assert_trees_close(actual[:2], expected[:2], 1e-12)
    felt = jax.tree.map(lambda x: x[absent], actual[1])
    chex.assert_trees_all_equal(felt, jax.tree.map(np.zeros_like, felt))
    *nothing, slope = terms_and_gradient(population, np.zeros((4, 5)), **options)
    chex.assert_trees_all_equal(nothing, jax.tree.map(np.zeros_like, nothing))
    chex.assert_tree_all_finite(slope)


def test_two_agents_pay_their_overlap_times_their_divergences(rng):
    population = oracle.random_population(rng, 2, VECTOR)
    supports = jnp.asarray([0.3, 0.8])

    @jax.jit
    def energies(population):
        def energy(alignment_fn):
            options = {"weights": (0.0, 1.0, 0.0, 0.0), "alignment_fn": alignment_fn}
            return free_energy(population, VECTOR, supports=supports, **options)

        divergence = oracle.pairwise_kl(population.belief, population.phi, VECTOR)
        return divergence[0, 1] + divergence[1, 0], [
            energy(alignment_fn) for alignment_fn in oracle.UNBOUNDED
        ]

    divergence, energy = energies(population)
    np.testing.assert_allclose(energy, 0.3 * 0.8 * float(divergence), rtol=1e-12)


@jax.jit
def terms_on_edges(population, supports, **options):
    return jnp.stack(
        free_energy_terms(
            population,
            VECTOR,
            weights=WEIGHTS,
            temperature=TAU,
            supports=supports,
            alignment_fn=oracle.mixture,
            **options,
        )
    )


@pytest.mark.parametrize(
    "gradient", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["terms", "gradient"]
)
def test_neighbour_list_of_a_field(gradient, rng):
    """On a grid of two axes."""
    population = oracle.random_population(rng, 4, VECTOR, (2, 2))
    observations = observations_of(rng, 4, 3, (2, 2))
    neighbours = np.array([[0, 1, 1, 1], [1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]], float)
    receivers, senders = (x[::-1] for x in np.nonzero(neighbours))
    edges = Edges(receivers, senders)
    supports = rng.uniform(0.2, 1.0, (4, 2, 2))
    supports[1, 0] = 1.0
    quadrature = np.array([[0.5, 1.5], [1.0, 0.7]])
    options = {"observations": observations, "quadrature": quadrature}
    expected = loop_over_points(population, supports, neighbours=neighbours, **options)
    if gradient:
        actual = terms_and_gradient(population, supports, edges=edges, **options)
        assert_trees_close(actual, expected, 1e-12)
    else:
        actual = terms_on_edges(population, supports, edges=edges, **options)
        assert_trees_close(actual, expected[0], 1e-12)


def rotation_vector(rotation):
    """Logarithm of rotation matrices ``[..., 3, 3]`` by their angle and axis, away from pi."""
    angle = np.arccos((np.trace(rotation, axis1=-2, axis2=-1) - 1) / 2)
    skew = (rotation - np.swapaxes(rotation, -1, -2)) / (2 * np.sin(angle))[..., None, None]
    return np.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], axis=-1) * angle[..., None]


rotations = jax.jit(lambda phi: frames(phi, VECTOR))
representations = jax.jit(lambda phi: frames(phi, SUM))
energy_of_vectors = jax.jit(lambda population: free_energy(population, VECTOR))
energy_of_sum = jax.jit(
    lambda population: free_energy(population, SUM, weights=(0.7, 1.3, 0.4, 0.0))
)


def test_global_gauge_invariance(rng):
    """``U_i -> U_i V`` with one V for all turns the common frame and nothing else."""
    population = oracle.random_population(rng, 5, SUM)
    common = np.asarray(rotations(jnp.asarray([0.4, -1.1, 0.7])))
    turned = rotation_vector(np.asarray(rotations(population.phi)) @ common)
    assert np.min(np.linalg.norm(turned - population.phi, axis=-1)) > 0.3
    np.testing.assert_allclose(
        rotations(jnp.asarray(turned)), rotations(population.phi) @ common, rtol=0, atol=1e-13
    )
    expected = energy_of_sum(population)
    np.testing.assert_allclose(
        energy_of_sum(population._replace(phi=jnp.asarray(turned))), expected, rtol=1e-12
    )


def test_local_gauge_invariance(rng):
    """Every agent may turn its own axes: ``q_i -> g_i q_i, p_i -> g_i p_i, U_i -> g_i U_i``."""
    population = oracle.random_population(rng, 5, SUM)
    own = jnp.asarray(rng.normal(size=(5, 3)))
    turn = np.asarray(representations(own))

    def act(gaussian):
        factor = turn @ np.tril(gaussian.chol)
        cov = factor @ np.swapaxes(factor, -1, -2)
        return Gaussian(
            jnp.asarray(np.einsum("nij,nj->ni", turn, gaussian.mean)),
            jnp.asarray(np.linalg.cholesky(cov)),
        )

    phi = rotation_vector(np.asarray(rotations(own)) @ np.asarray(rotations(population.phi)))
    turned = Population(act(population.belief), act(population.prior), jnp.asarray(phi))
    np.testing.assert_allclose(energy_of_sum(turned), energy_of_sum(population), rtol=1e-12)


def test_total_is_the_sum_and_weights_multiply(rng):
    population = oracle.random_population(rng, 6, VECTOR)
    observations = observations_of(rng, 6, 3)

    @jax.jit
    def terms(weights):
        return free_energy_terms(
            population,
            VECTOR,
            weights=weights,
            observations=observations,
        )

    unit = np.asarray(terms(Weights(*jnp.ones(4))))
    scaled = np.asarray(terms(Weights(*jnp.asarray(WEIGHTS))))
    without = terms(Weights(*jnp.asarray((0.0, *WEIGHTS[1:]))))
    assert np.all(unit != 0)
    np.testing.assert_allclose(scaled[:4], np.asarray(WEIGHTS) * unit[:4], rtol=1e-14)
    np.testing.assert_allclose(scaled[4], np.sum(scaled[:4]), rtol=1e-14)
    np.testing.assert_array_equal(without.self_coupling, 0.0)


@pytest.mark.parametrize("index", range(4))
def test_a_term_of_weight_zero_is_not_computed(index, rng):
    """Its inputs may be as bad as they like: here, the NaNs of the other terms do not reach the one
    that is asked for.
    """
    population = oracle.random_population(rng, 3, VECTOR)
    bad = jax.tree.map(lambda x: np.full(x.shape, np.nan), population)
    population = [
        population._replace(phi=bad.phi),
        population._replace(prior=bad.prior),
        population._replace(belief=bad.belief),
        population._replace(prior=bad.prior, phi=bad.phi),
    ][index]
    weights = tuple(float(i == index) for i in range(4))
    observations = observations_of(rng, 3, 3)
    terms = jax.jit(partial(free_energy_terms, weights=weights))(
        population, VECTOR, observations=observations
    )
    assert isinstance(terms, FreeEnergyTerms)
    np.testing.assert_array_equal(np.asarray(terms[:4]) != 0, np.asarray(weights) != 0)
    chex.assert_tree_all_finite(terms.total)
    assert terms.total == terms[index]


def test_default_weights_leave_the_priors_apart(rng):
    population = oracle.random_population(rng, 3, VECTOR)
    assert Weights() == (1.0, 1.0, 0.0, 1.0)
    terms, total = jax.jit(lambda p: (free_energy_terms(p, VECTOR), free_energy(p, VECTOR)))(
        population
    )
    assert terms.prior_alignment == 0.0
    assert terms.observation == 0.0
    np.testing.assert_array_equal(
        total, np.asarray(terms.self_coupling) + np.asarray(terms.belief_alignment)
    )


@pytest.mark.slow
def test_vmap_equals_single_calls(rng):
    batch = [oracle.random_population(rng, 4, VECTOR) for _ in range(3)]
    evaluate = jax.jit(lambda p: free_energy(p, VECTOR, weights=(0, 1, 0, 0)))
    singles = [evaluate(population) for population in batch]
    together = jax.vmap(evaluate)(jax.tree.map(lambda *x: np.stack(x), *batch))
    np.testing.assert_allclose(together, singles, rtol=1e-13)


def swap(name, shape):
    """A population of 4 agents on a ring of 5 with one array of the wrong shape."""

    def broken(population):
        branches = name.split(".")
        if len(branches) == 1:
            return population._replace(**{name: np.ones(shape)})
        return population._replace(
            **{
                branches[0]: getattr(population, branches[0])._replace(
                    **{branches[1]: np.ones(shape)}
                )
            }
        )

    return broken


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("belief.mean", (4, 5, 2)),
        ("belief.chol", (4, 5, 3, 2)),
        ("prior.mean", (4, 6, 3)),
        ("prior.chol", (3, 5, 3, 3)),
        ("phi", (4, 5, 2)),
    ],
)
def test_shape_errors_name_the_array(name, shape, rng):
    population = oracle.random_population(rng, 4, VECTOR, (5,))
    with pytest.raises(
        ValueError, match=rf"^{name} must have shape .* got \({', '.join(map(str, shape))}\)"
    ):
        free_energy(swap(name, shape)(population), VECTOR)


BAD_OPTIONS = {
    "temperature": (-1.0, "temperature must be above 0, in nats, got -1.0"),
    "prior_temperature": (np.float32(0), "prior_temperature must be above 0, in nats, got 0.0"),
    "weights": ({"observation": 1.0}, r"weights must be Weights\(\.\.\.\) .* got dict; Weights\("),
    "supports": (np.ones((4, 6)), r"supports must have shape \(4, 5\) .* got \(4, 6\)"),
    "quadrature": (np.ones(5, np.float32), "quadrature must have dtype float64 .* got float32"),
    "edges": (
        Edges(np.array([0, 4]), np.array([1, 2])),
        r"edges.receivers must be in \[0, 4\), got 4 in edge 1",
    ),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_option_errors_name_the_option(name, rng):
    population = oracle.random_population(rng, 4, VECTOR, (5,))
    value, message = BAD_OPTIONS[name]
    with pytest.raises(ValueError, match=message):
        free_energy(population, VECTOR, **{name: value})


def test_weights_are_at_most_one_for_each_term():
    assert checked_weights((2.0,)) == Weights(2.0)
    with pytest.raises(ValueError, match=r"weights must be Weights\(\.\.\.\) .* got float"):
        checked_weights(2.0)
    with pytest.raises(ValueError, match="weights must have at most 4 entries, got 5"):
        checked_weights((1.0,) * 5)


@pytest.mark.parametrize("dtype", ["float64", "int64", "complex128"])
@pytest.mark.parametrize("name", ["belief.chol", "prior.mean", "phi", "supports", "quadrature"])
def test_mixed_precision_is_refused_by_name(name, dtype, rng):
    population = jax.device_get(oracle.random_population(rng, 4, VECTOR, (5,), np.float32))
    options = {"supports": np.ones((4, 5), "float32"), "quadrature": np.ones(5, "float32")}
    if name in options:
        options[name] = options[name].astype(dtype)
    else:
        branch, _, leaf = name.partition(".")
        part = getattr(population, branch)
        wrong = part._replace(**{leaf: getattr(part, leaf).astype(dtype)}) if leaf else None
        wrong = part.astype(dtype) if wrong is None else wrong
        population = population._replace(**{branch: wrong})
    with pytest.raises(ValueError, match=f"{name} must have dtype float32 .* got {dtype}"):
        free_energy(population, VECTOR, **options)


def test_scalars_may_have_any_dtype(rng):
    population = oracle.random_population(rng, 3, VECTOR, dtype=np.float32)

    @jax.jit
    def energy(one, temperature):
        weights = (one, 2, 0, 0)
        return free_energy(population, VECTOR, weights=weights, temperature=temperature)

    value = energy(np.float64(1.0), np.float64(2.5))
    chex.assert_type(value, jnp.float32)
    chex.assert_trees_all_close(value, energy(np.float32(1.0), np.float32(2.5)))


@pytest.mark.parametrize("listed", [False, True], ids=["all pairs", "edges"])
@pytest.mark.parametrize("alignment_fn", oracle.UNBOUNDED, ids=lambda f: f.__name__)
def test_a_diverged_agent_is_never_a_better_state(alignment_fn, listed, rng):
    chol = np.tile(np.eye(3, dtype="float32"), (4, 1, 1))
    everyone = Edges(*np.nonzero(~np.eye(4, dtype=bool)))

    @jax.jit
    def energy(mean):
        belief = Gaussian(mean, chol)
        return free_energy(
            Population(belief, belief, jnp.zeros_like(mean)),
            VECTOR,
            weights=(0, 1, 0, 0),
            alignment_fn=alignment_fn,
            edges=everyone if listed else None,
        )

    mean = rng.normal(size=(4, 3)).astype(np.float32)
    assert 0 < energy(mean) < 100
    for bad in (np.nan, np.inf, 1e20, 1e15):
        mean[0] = bad
        assert not energy(mean) < 1e20


# One agent pays and feels nothing by default in test_pairwise.py.
@pytest.mark.parametrize("num", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_few_agents(num, rng):
    population = oracle.random_population(rng, num, VECTOR)
    energy = partial(free_energy, generators=VECTOR, supports=np.ones(num))
    terms, gradient = jax.jit(jax.value_and_grad(energy))(population)
    chex.assert_tree_all_finite((terms, gradient))
    np.testing.assert_array_equal(gradient.phi, 0.0)
    assert (terms > 0) == (num > 0)


def test_a_single_component(rng):
    """k = 1: a group of dilations, whose frames change the scale and hence the entropy."""
    dilation = np.ones((1, 1, 1))
    population = oracle.random_population(rng, 3, dilation)

    @jax.jit
    def actual_and_expected(population):
        divergence = oracle.pairwise_kl(population.belief, population.phi, dilation)
        actual = free_energy(population, dilation, weights=(0, 1, 0, 0))
        return actual, oracle.alignment_energy(divergence)

    chex.assert_trees_all_close(*actual_and_expected(population), rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_units_do_not_matter_in_single_precision(scale, rng):
    population = oracle.random_population(rng, 4, VECTOR, dtype=np.float32)
    scaled = population._replace(
        belief=jax.tree.map(lambda x: np.float32(scale) * np.asarray(x), population.belief),
        prior=jax.tree.map(lambda x: np.float32(scale) * np.asarray(x), population.prior),
    )
    # Products of feature rows of up to 200 are rounded.
    chex.assert_trees_all_close(
        energy_of_vectors(scaled), energy_of_vectors(population), rtol=200 * eps("float32")
    )


def test_a_group_is_an_argument_like_its_generators(rng):
    population = oracle.random_population(rng, 3, VECTOR)
    energy = chex.assert_max_traces(lambda p, group: free_energy(p, group), n=1)
    value = jax.jit(energy)
    first = value(population, VECTOR)
    np.testing.assert_array_equal(first, value(population, VECTOR))
    by_generators = jax.jit(lambda p: free_energy(p, VECTOR.generators))(population)
    chex.assert_trees_all_close(by_generators, first, rtol=1e-12)


def test_generators_must_be_a_basis(rng):
    population = oracle.random_population(rng, 4, VECTOR)
    with pytest.raises(ValueError, match=r"generators must have shape \[a, k, k\], got \(3, 3\)"):
        free_energy(population, VECTOR.generators[0])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_pairs():
    def temporary_bytes(num):
        def arrays(*shape):
            return jax.ShapeDtypeStruct((num, *shape), jnp.float32)

        gaussian = Gaussian(arrays(3), arrays(3, 3))
        energy = partial(free_energy, generators=VECTOR, weights=(0, 1, 0, 0))
        compiled = (
            jax.jit(jax.value_and_grad(energy))
            .lower(Population(gaussian, gaussian, arrays(3)))
            .compile()
        )
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporary_bytes(2048), temporary_bytes(4096)
    # Pairs alone, as one float32 array, would take 64 MB; per-agent arrays double and blocks of
    # pairs keep their size.
    assert large < 4096**2 * 4
    assert large < 2.6 * small


DEADLOCK = """
import jax, jax.numpy as jnp, numpy as np
from helpers import agents_oracle as oracle
from vfejax.agents.free_energy import free_energy
group, rng = oracle.ROTATIONS["sum"], np.random.default_rng(0)
population = oracle.random_population(rng, 1024, group, dtype=np.float32)
step = jax.jit(jax.value_and_grad(lambda p: free_energy(p, group, weights=(1, 1, 1, 0))))
for _ in range(5):
    value, gradient = jax.block_until_ready(step(population))
assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves((value, gradient)))
print("finished")
"""


@pytest.mark.slow
def test_many_agents_finish():
    """Batched LAPACK once waited for itself for ever on two cores, now and then, at this size (see
    ``vfejax.numerics``).
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    environment.pop("XLA_FLAGS", None)
    done = subprocess.run(
        [sys.executable, "-c", DEADLOCK],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "finished"
