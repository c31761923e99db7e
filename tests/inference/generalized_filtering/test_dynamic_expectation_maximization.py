"""Learning of parameters and precisions: F falls, and the truth is found."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.inference import generalized_filtering as gf
from vfejax.inference.generalized_filtering import _learning_steps as steps
from vfejax.inference.generalized_filtering import dynamic_expectation_maximization as dem
from vfejax.inference.generalized_filtering import hierarchical_models as hm
from vfejax.inference.generalized_filtering.joint_filtering import joint_filter

pytestmark = pytest.mark.slow  # compilation of the three steps
RATE, NUM, ORDER, SMOOTH = 0.6, 60, 3, 0.7


def _model():
    """A decay that is seen directly: one state, one unknown rate, two unknown precisions."""
    level = hm.Level(
        lambda x, v, theta: -theta * x, lambda x, v, theta: x, np.eye(1)[None], np.eye(1)[None]
    )
    return hm.Model((level,), np.eye(0), ORDER, 1, SMOOTH)


def _data(rng, model):
    """Generalised observations of decays, with noise of the model's own covariance."""
    times = 0.2 * np.arange(NUM)
    states = 3.0 * np.exp(-RATE * times)[:, None] * (-RATE) ** np.arange(ORDER)
    root = np.linalg.cholesky(np.asarray(gf.temporal_covariance(ORDER, SMOOTH)))
    noise = 0.1 * rng.normal(size=(NUM, ORDER)) @ root.T
    return hm.observation(model, jnp.asarray(states + noise)[..., None])


@pytest.fixture(scope="module")
def learned():
    """Infos of thirty rounds and the last state, from a rate of 0."""
    model = _model()
    rng = np.random.default_rng(5)
    hyper = hm.Hyperparameters((jnp.array([2.0]),), (jnp.array([4.0]),))
    prior = dem.Prior((jnp.array([0.0]),), (jnp.array([0.01]),), hyper, 0.01)
    learner = dem.dynamic_expectation_maximization(model, prior, dem.by_mode(model))
    seen = _data(rng, model)
    run = jax.jit(lambda s: jax.lax.scan(lambda s, _: learner.step(s, seen), s, None, length=30))
    return run(learner.init())


def test_every_step_lowers_the_free_energy(learned):
    _, info = learned
    assert (info.drops >= 0).all()
    # The D-step takes parameters at their mean, which may raise F by the curvature left out.
    assert (jnp.diff(info.free_energy) < 0.01).all()
    assert info.free_energy[-1] < info.free_energy[0] - 100.0


def test_the_rate_and_the_noise_are_found(learned):
    state, info = learned
    deviation = float(jnp.sqrt(info.parameter_covariance[-1, 0, 0]))
    # The mean field is overconfident: paths and rate are not independent.
    assert abs(float(state.parameters[0][0]) - RATE) < 6 * deviation
    assert deviation < 0.02
    # log 1/0.1^2 = 4.6, from 180 numbers.
    assert abs(float(state.hyper.output[0][0]) - np.log(100.0)) < 0.6


def test_parameter_step_is_bayesian_linear_regression():
    # With known paths the rate is a regression, with normal equations.
    model = _model()
    rng = np.random.default_rng(6)
    hyper = hm.zero_hyperparameters(model)
    prior = dem.Prior((jnp.array([0.2]),), (jnp.array([0.5]),), hyper, 1.0)
    path = hm.Path((jnp.asarray(rng.normal(size=(4, ORDER, 1))),), (jnp.zeros((4, 1, 0)),))
    tiny = 1e-12 * jnp.broadcast_to(jnp.eye(ORDER), (4, ORDER, ORDER))
    seen = hm.observation(model, path.states[0])
    beliefs = steps.Beliefs(seen, path, tiny)
    state = dem.LearningState(prior.parameters, hyper)
    found, factor, squares = jax.jit(lambda: steps._parameter_step(model, prior, beliefs, state))()
    weights = np.asarray(gf.temporal_covariance(ORDER - 1, SMOOTH))
    weights = np.linalg.inv(weights)
    x = np.asarray(path.states[0][..., 0])
    precision = 0.5 + np.einsum("ti,ij,tj->", x[:, :-1], weights, x[:, :-1])
    vector = 0.1 - np.einsum("ti,ij,tj->", x[:, :-1], weights, x[:, 1:])
    np.testing.assert_allclose(found[0], [vector / precision], rtol=1e-10)
    np.testing.assert_allclose(factor[0, 0] ** 2, 1 / precision, rtol=1e-10)
    assert squares[1] <= squares[0]


def test_filtering_learns_what_the_mode_learns():
    model = _model()
    seen = _data(np.random.default_rng(5), model)
    hyper = hm.Hyperparameters((jnp.array([4.6]),), (jnp.array([4.0]),))
    prior = dem.Prior((jnp.array([0.0]),), (jnp.array([0.01]),), hyper, 100.0)
    run = gf.generalized_filter(model, 0.2, rate=50.0, metric_fn=gf.natural_metric)
    learner = dem.dynamic_expectation_maximization(model, prior, dem.by_filter(run))
    step = jax.jit(lambda s: jax.lax.scan(lambda s, _: learner.step(s, seen), s, None, length=30))
    state, _ = step(learner.init())
    assert abs(float(state.parameters[0][0]) - RATE) < 0.15


def test_parameters_move_with_the_states_without_the_mean_field():
    model = _model()
    hyper = hm.Hyperparameters((jnp.array([4.6]),), (jnp.array([2.0]),))
    prior = dem.Prior((jnp.array([0.2]),), (jnp.array([1e-3]),), hyper, 10.0)
    run = gf.generalized_filter(model, 0.2, rate=50.0, metric_fn=gf.natural_metric)
    joint = joint_filter(model, prior, run, 0.2, rate=0.05, friction=1.0)
    # An oscillating state would outlast a decay; here the decay starts anew, again and again.
    seen = _data(np.random.default_rng(7), model)
    many = jax.tree.map(lambda x: jnp.concatenate([x[:25]] * 40), seen)
    scan = jax.jit(lambda s: jax.lax.scan(joint.step, s, many))
    state, info = scan(joint.init())
    assert jnp.isfinite(info.free_energy).all()
    assert abs(float(state.parameters[0][0]) - RATE) < abs(0.2 - RATE) / 2
    assert info.free_energy[-200:].mean() < info.free_energy[:200].mean()


def test_numbers_of_numpy_leave_energies_in_single_precision():
    model = _model()
    half, number = jnp.array([0.5], jnp.float32), np.float64(0.5)
    prior = dem.Prior((half,), (half,), hm.Hyperparameters((half,), (half,)), number)
    joint = joint_filter(
        model,
        prior,
        gf.generalized_filter(model, number, rate=number),
        number,
        rate=number,
        friction=number,
    )
    learner = dem.dynamic_expectation_maximization(model, prior, dem.by_mode(model))
    path = hm.Path((jnp.zeros((ORDER, 1), jnp.float32),), (jnp.zeros((1, 0), jnp.float32),))
    seen = hm.observation(model, jnp.zeros((2, ORDER, 1), jnp.float32))
    starts = joint.init(path), learner.init()
    moved = jax.eval_shape(joint.step, starts[0], jax.tree.map(lambda x: x[0], seen))
    learned = jax.eval_shape(learner.step, starts[1], seen)
    for start, (state, info) in zip(starts, (moved, learned), strict=True):
        chex.assert_trees_all_equal_shapes_and_dtypes(state, start)
        chex.assert_type(info.free_energy, jnp.float32)
