"""Natural gradient on Gaussian coordinates: exact steps, invariance, positive definiteness, speed,
trust region.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vfejax.beliefs.coordinates import (
    GaussianCoordinates,
    constrain,
    natural_direction,
    unconstrain,
)
from vfejax.beliefs.gaussian import Gaussian, kl_divergence
from vfejax.dynamics.gradient_flow import gradient_flow, scale_by_tree
from vfejax.dynamics.natural_gradient import natural_gradient
from vfejax.dynamics.rollout import rollout


def random_gaussian(rng, dtype=np.float64, k=3, scale=1.0):
    chol = np.tril(rng.normal(size=(k, k)), -1) * 0.5 + np.diag(rng.uniform(0.5, 2.0, size=k))
    return Gaussian(
        jnp.asarray((scale * rng.normal(size=k)).astype(dtype)),
        jnp.asarray((scale * chol).astype(dtype)),
    )


def energy_to(target):
    """``KL(q || target)``, what variational inference descends."""
    return lambda coordinates: kl_divergence(constrain(coordinates), target)


def natural_flow(energy_fn, rates, max_norm=None):
    return gradient_flow(
        energy_fn,
        optax.chain(natural_gradient(natural_direction, max_norm=max_norm), scale_by_tree(rates)),
    )


def first_step(flow, start):
    return jax.jit(lambda q: flow.step(flow.init(unconstrain(q))))(start)


def roll(flow, start, num_steps):
    return jax.jit(lambda q: rollout(flow, flow.init(unconstrain(q)), num_steps))(start)


def cov(q):
    chol = np.tril(np.asarray(q.chol, np.float64))
    return chol @ chol.T


def push(q, matrix, shift):
    """Image under ``x -> A x + b``, by NumPy."""
    chol = np.linalg.cholesky(matrix @ cov(q) @ matrix.T)
    return Gaussian(jnp.asarray(matrix @ np.asarray(q.mean) + shift), jnp.asarray(chol))


def test_update_is_the_inverse_metric_applied_to_the_gradient(dtype):
    """``G(x)^{-1} g`` with a metric that depends on the position; the state is empty, so it chains
    freely.
    """
    transformation = natural_gradient(lambda x, g: jax.tree.map(lambda a, b: a**2 * b, x, g))
    position = {"a": np.array([1.0, 2.0], dtype), "b": np.array(3.0, dtype)}
    gradient = {"a": np.array([5.0, -1.0], dtype), "b": np.array(0.5, dtype)}
    direction, state = jax.jit(lambda g, x: transformation.update(g, transformation.init(x), x))(
        gradient, position
    )
    expected = {"a": np.array([5.0, -4.0], dtype), "b": np.array(4.5, dtype)}
    chex.assert_trees_all_equal(direction, expected)
    assert jax.tree.leaves(state) == []


@pytest.mark.parametrize(
    ("same_covariance", "kind"),
    [(False, "float64"), pytest.param(True, "float32", marks=pytest.mark.slow)],
)
def test_one_step_of_rate_one_lands_on_the_optimal_mean(same_covariance, kind, rng):
    """``KL(p || q)`` has Hessian ``Sigma_q^{-1}`` in the mean, the Fisher metric itself: one step
    solves it, whatever both covariances.

    ``KL(q || p)`` has ``Sigma_p^{-1}``, so there it holds once the covariances agree, and those
    then stay put.
    """
    dtype = jnp.dtype(kind)
    target = random_gaussian(rng, dtype)
    start = random_gaussian(rng, dtype, scale=2.0)
    if same_covariance:
        start = Gaussian(start.mean, target.chol)
        energy_fn = energy_to(target)
    else:
        energy_fn = lambda coordinates: kl_divergence(target, constrain(coordinates))  # noqa: E731
    flow = natural_flow(energy_fn, 1.0)
    state, info = first_step(flow, start)
    # Products of 3 x 3 factors whose condition number is below 10, squared.
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(state.position.mean, target.mean, rtol=0, atol=1000 * eps)
    if same_covariance:
        np.testing.assert_allclose(
            constrain(state.position).chol, target.chol, rtol=0, atol=1000 * eps
        )
        np.testing.assert_allclose(info.energy, 0.0, rtol=0, atol=1000 * eps)


def test_rate_one_converges_quadratically_on_the_whole_belief(rng):
    """At the optimum the Fisher metric is the Hessian of the divergence, so the step is
    Newton's.
    """
    target = random_gaussian(rng)
    start = Gaussian(target.mean + 0.3, 1.3 * target.chol + 0.2 * jnp.diag(jnp.ones(2), -1))
    flow = natural_flow(energy_to(target), 1.0)
    _, info = roll(flow, start, 9)
    root = np.sqrt(np.abs(np.asarray(info.energy)))  # proportional to the distance
    assert root[-1] < 1e-7
    fast = (root[:-1] < 0.3) & (root[1:] > 1e-7)  # inside the basin and above rounding
    assert fast.sum() >= 2
    assert np.all(root[1:][fast] < 2.0 * root[:-1][fast] ** 2)


def test_trajectory_commutes_with_a_change_of_units_and_origin(rng):
    """Rescaling and shifting the data rescales and shifts every step, exactly; plain gradient
    descent does not commute.

    The trust region measures length in the metric, so it commutes as well.
    """
    matrix, shift = np.diag([100.0, 0.03, 2.0]), np.array([5.0, -1.0, 0.3])
    target, start = random_gaussian(rng), random_gaussian(rng)

    def ends(make):
        @jax.jit
        def end(p, q):
            flow = make(energy_to(p))
            return constrain(rollout(flow, flow.init(unconstrain(q)), 10)[0].position)

        straight = push(end(target, start), matrix, shift)
        return straight, end(push(target, matrix, shift), push(start, matrix, shift))

    expected, got = ends(lambda energy_fn: natural_flow(energy_fn, 0.9, max_norm=0.5))
    np.testing.assert_allclose(got.mean, expected.mean, rtol=1e-10)
    np.testing.assert_allclose(got.chol, expected.chol, rtol=1e-10, atol=1e-13)
    straight, bent = ends(lambda energy_fn: gradient_flow(energy_fn, optax.sgd(1e-4)))
    assert np.abs(bent.mean - straight.mean).max() > 1e-3


def test_velocity_commutes_with_every_affine_change(rng):
    """The flow, ``(dmu, dSigma)``, is intrinsic; single steps differ at second order, by the choice
    of factor.
    """
    matrix, shift = rng.normal(size=(3, 3)) + 2.0 * np.eye(3), rng.normal(size=3)
    target, start = random_gaussian(rng), random_gaussian(rng)

    def moments(coordinates):
        q = constrain(coordinates)
        return q.mean, q.chol @ q.chol.T

    @jax.jit
    def velocity(target, q):
        coordinates = unconstrain(q)
        gradient = jax.grad(energy_to(target))(coordinates)
        direction, _ = natural_gradient(natural_direction).update(
            gradient, optax.EmptyState(), coordinates
        )
        return jax.jvp(moments, (coordinates,), (direction,))[1]

    @jax.jit
    def run(target, q, num_steps):
        flow = natural_flow(energy_to(target), 1.0 / num_steps.astype(float))
        state = jax.lax.fori_loop(
            0, num_steps, lambda _, s: flow.step(s)[0], flow.init(unconstrain(q))
        )
        return constrain(state.position)

    images = push(target, matrix, shift), push(start, matrix, shift)
    dmean, dcov = velocity(target, start)
    expected = matrix @ dmean, matrix @ dcov @ matrix.T
    chex.assert_trees_all_close(velocity(*images), expected, rtol=1e-10, atol=1e-12)

    def gap(num_steps):
        n = jnp.asarray(num_steps)
        one, other = push(run(target, start, n), matrix, shift), run(*images, n)
        return np.abs(cov(one) - cov(other)).max()

    # One unit of time in 50 and in 100 steps: the gap is of first order.
    assert 1.8 < gap(50) / gap(100) < 2.2


@pytest.mark.slow
def test_mean_trajectory_commutes_with_every_affine_change(rng):
    """With the covariance held, steps of the mean alone are exactly covariant."""
    matrix, shift = rng.normal(size=(3, 3)) + 2.0 * np.eye(3), rng.normal(size=3)
    target, start = random_gaussian(rng), random_gaussian(rng)

    @jax.jit
    def ends(p, q):
        flow = natural_flow(energy_to(p), GaussianCoordinates(0.2, 0.0))
        first = unconstrain(q)
        return first, rollout(flow, flow.init(first), 10)[0].position

    first, last = ends(target, start)
    np.testing.assert_array_equal(last.factor, first.factor)
    _, image = ends(push(target, matrix, shift), push(start, matrix, shift))
    np.testing.assert_allclose(image.mean, matrix @ np.asarray(last.mean) + shift, rtol=1e-10)


@pytest.mark.parametrize("kind", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_covariance_stays_positive_definite_after_a_huge_step(rng, kind):
    """The same step taken on the covariance itself leaves the cone."""
    dtype = np.dtype(kind)
    target = random_gaussian(rng, dtype)
    start = Gaussian(target.mean, 1.8 * target.chol)

    @jax.jit
    def after_one_step(rate):
        flow = natural_flow(energy_to(target), rate)
        state, info = flow.step(flow.init(unconstrain(start)))
        return constrain(state.position), info.energy

    # Natural gradient of KL(q || p) in Sigma: Sigma P_p Sigma - Sigma, here (1.8^2 - 1) Sigma.
    naive = cov(start) @ np.linalg.inv(cov(target)) @ cov(start) - cov(start)
    for rate in (1.0, 5.0, 20.0):
        after, energy = after_one_step(jnp.asarray(rate, dtype))
        assert np.all(np.diag(after.chol) > 0)
        chex.assert_tree_all_finite((after.chol, energy))
        assert np.linalg.eigvalsh(cov(start) - rate * naive)[0] < 0


def steps_to_tolerance(make_flow, start, rates, limit):
    """Number of steps until the energy is below 1e-6 nats, for each rate; ``limit`` where it never
    is.
    """

    def count(rate):
        flow = make_flow(rate)

        def running(carry):
            num, _, energy = carry
            return (num < limit) & ~(energy < 1e-6)

        def step(carry):
            num, state, _ = carry
            state, info = flow.step(state)
            return num + 1, state, info.energy

        return jax.lax.while_loop(
            running, step, (jnp.asarray(0), flow.init(start), jnp.asarray(jnp.inf))
        )[0]

    return np.asarray(jax.jit(jax.vmap(count))(jnp.asarray(rates)))


@pytest.mark.slow
def test_faster_than_plain_gradient_on_a_badly_scaled_target():
    """Standard deviations 0.01 and 1: plain descent must step for the smallest and wait for the
    largest.
    """
    target = Gaussian(jnp.array([1.0, 0.01]), jnp.array([[1.0, 0.0], [0.002, 0.01]]))
    energy_fn = energy_to(target)
    start = unconstrain(Gaussian(jnp.zeros(2), jnp.diag(jnp.array([0.5, 0.02]))))
    natural = steps_to_tolerance(lambda rate: natural_flow(energy_fn, rate), start, [0.5], 100)
    assert natural[0] < 20
    # Rates from too large (2^-12 diverges) to too small by factors of two: the best of them is
    # still far behind.
    rates = 2.0 ** -np.arange(10.0, 16.0)
    plain = steps_to_tolerance(
        lambda rate: gradient_flow(energy_fn, optax.sgd(rate)), start, rates, 2000
    )
    assert plain.min() == 2000


@pytest.mark.parametrize("kind", [pytest.param("float32", marks=pytest.mark.slow), "float64"])
def test_trust_region_bounds_the_length_in_the_metric(rng, kind):
    """A clipped step has ``sqrt(2 KL(q || q'))`` of about max_norm, and keeps the direction of the
    free one.
    """
    max_norm, dtype = 0.02, np.dtype(kind)
    start, target = random_gaussian(rng, dtype), random_gaussian(rng, dtype)

    @jax.jit
    def directions(start, target):
        coordinates = unconstrain(start)
        gradient = jax.grad(energy_to(target))(coordinates)

        def direction(limit):
            update = natural_gradient(natural_direction, max_norm=limit).update
            return update(gradient, optax.EmptyState(), coordinates)[0]

        return coordinates, gradient, [direction(limit) for limit in (None, max_norm, 1e3)]

    coordinates, gradient, (free, clipped, within) = jax.tree.map(
        np.asarray, directions(start, target)
    )
    length = np.sqrt(sum(np.sum(g * v) for g, v in zip(gradient, free, strict=True)))
    assert 10 * max_norm < length < 1e3
    rtol = 100 * float(jnp.finfo(dtype).eps)
    expected = jax.tree.map(lambda long: (long * (max_norm / length)).astype(dtype), free)
    chex.assert_trees_all_equal_dtypes(clipped, expected)
    chex.assert_trees_all_close(clipped, expected, rtol=rtol, atol=1e-9)
    chex.assert_trees_all_equal(within, free)  # inside the region nothing changes
    before, after = (
        jax.tree.map(lambda leaf: leaf.astype(np.float64), tree)
        for tree in (coordinates, jax.tree.map(np.add, coordinates, clipped))
    )
    divergence = jax.jit(lambda q, p: kl_divergence(constrain(q), constrain(p)))(before, after)
    # KL is the quadratic form up to terms of relative order max_norm.
    np.testing.assert_allclose(np.sqrt(2.0 * divergence), max_norm, rtol=2.0 * max_norm)


def test_trust_region_leaves_a_zero_gradient_alone(dtype):
    @jax.jit
    def direction(start):
        coordinates = unconstrain(start)
        zero = jax.tree.map(jnp.zeros_like, coordinates)
        update = natural_gradient(natural_direction, max_norm=0.1).update
        return update(zero, optax.EmptyState(), coordinates)[0], zero

    chex.assert_trees_all_equal(*direction(Gaussian(np.ones(2, dtype), np.eye(2, dtype=dtype))))


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_trust_region_of_a_gradient_whose_square_is_out_of_range(size):
    gradient = {"a": jnp.full(1, 3 * size, "float32"), "b": jnp.full(1, 4 * size, "float32")}
    update = natural_gradient(lambda _, g: g, max_norm=size).update
    direction, _ = jax.jit(update)(gradient, optax.EmptyState(), gradient)
    actual = np.concatenate([direction["a"], direction["b"]]).astype(float) / size
    np.testing.assert_allclose(actual, [0.6, 0.8], rtol=0, atol=1e-6)


def test_trust_region_of_an_infinite_gradient_is_nan():
    update = natural_gradient(lambda _, g: g, max_norm=1.0).update
    direction, _ = jax.jit(update)(np.array([np.inf, 1.0]), optax.EmptyState(), np.zeros(2))
    assert np.isnan(direction).all()


def test_trust_region_tames_a_start_far_away():
    """Standard deviations 1000 times too large, mean 1000 away: a free step overshoots to nothing,
    the bounded one descends all the way.

    In float32, where overflow comes first.
    """
    dtype = jnp.dtype("float32")
    target = Gaussian(jnp.zeros(2, dtype), jnp.eye(2, dtype=dtype))
    start = Gaussian(jnp.full(2, 1000.0, dtype), 1000.0 * jnp.eye(2, dtype=dtype))
    assert not np.isfinite(first_step(natural_flow(energy_to(target), 1.0), start)[1].energy)
    _, info = roll(natural_flow(energy_to(target), 1.0, max_norm=0.5), start, 60)
    energy = np.asarray(info.energy)
    rounding = 10 * float(jnp.finfo(dtype).eps) * np.maximum(energy[:-1], 1.0)
    assert np.all(np.diff(energy) < rounding)
    assert abs(energy[-1]) < 100 * float(jnp.finfo(dtype).eps)


def test_a_rollout_at_the_minimum_can_be_differentiated():
    """The length of a step of 0 has gradient 0, not NaN."""
    flow = gradient_flow(
        lambda x: 0.5 * jnp.sum(x**2),
        optax.chain(natural_gradient(lambda _, g: g, max_norm=0.5), scale_by_tree(0.1)),
    )

    def end(x):
        return rollout(flow, flow.init(x), 3)[0].position

    both = jax.jit(lambda x: (jax.jacfwd(end)(x), jax.jacrev(end)(x)))(np.zeros(2))
    np.testing.assert_allclose(both, [0.9**3 * np.eye(2)] * 2, rtol=1e-14)
