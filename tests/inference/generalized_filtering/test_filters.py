"""Generalised filtering against the joint Gaussian of a linear model and against its own limits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.flatten_util import ravel_pytree

from vfejax.inference import generalized_filtering as gf
from vfejax.inference.generalized_filtering import (
    embedded_samples,
    path_beliefs,
    path_energy,
    smooth_noise,
)
from vfejax.inference.generalized_filtering import hierarchical_models as hm
from vfejax.problems.linear_convolution import DRIFT, EMISSION, GAIN, convolution_model

ORDER, CAUSES = 3, 2
PARTS = {"output_precision": 50.0, "state_precision": 20.0, "cause_precision": 0.7}


def _model(dtype=jnp.float64, **changes):
    model, parameters = convolution_model(
        order=ORDER, cause_order=CAUSES, smoothness=0.8, dtype=dtype, **PARTS
    )
    return model._replace(**changes), parameters


def _seen(rng, model, dtype=jnp.float64, num=None):
    shape = () if num is None else (num,)
    sensed = jnp.asarray(rng.normal(size=(*shape, ORDER, 4)), dtype)
    prior = jnp.asarray(rng.normal(size=(*shape, CAUSES, 1)), dtype)
    return hm.observation(model, sensed, prior)


def _dense(seen, motion_order=ORDER - 1):
    """Precision and mode of the flat path ``(x~, v~)``, row by row from the model's equations."""

    def inverse(order):
        return np.linalg.inv(np.asarray(smooth_noise.temporal_covariance(order, 0.8)))

    causes = np.eye(CAUSES)
    pad = np.eye(ORDER, CAUSES)
    outputs = np.hstack([np.kron(np.eye(ORDER), EMISSION), np.zeros((4 * ORDER, CAUSES))])
    shift = np.kron(np.eye(ORDER, k=1), np.eye(2)) - np.kron(np.eye(ORDER), DRIFT)
    motion = np.hstack([shift, -np.kron(pad, GAIN)])[: 2 * motion_order]
    prior = np.hstack([np.zeros((CAUSES, 2 * ORDER)), causes])
    weights = scipy.linalg.block_diag(
        np.kron(inverse(ORDER), 50.0 * np.eye(4)),
        np.kron(inverse(motion_order), 20.0 * np.eye(2)),
        0.7 * inverse(CAUSES),
    )
    design = np.vstack([outputs, motion, prior])
    target = np.concatenate(
        [np.ravel(seen.sensed), np.zeros(2 * motion_order), np.ravel(seen.prior)]
    )
    precision = design.T @ weights @ design
    place = np.linalg.solve(precision, design.T @ weights @ target)
    errors = target - design @ place
    scale = np.linalg.slogdet(weights / (2 * np.pi))[1]
    least = 0.5 * errors @ weights @ errors - 0.5 * scale
    return precision, place, least


@pytest.fixture(scope="module")
def compiled():
    """One program for several tests: mode, energy, gradient and curvature."""
    model, parameters = _model()
    hyper = hm.zero_hyperparameters(model)

    @jax.jit
    def run(path, seen):
        def energy(p):
            return path_energy.energy(model, p, seen, parameters, hyper)

        state = path_beliefs.FilterState(path, parameters, hyper)
        best = path_beliefs.mode(model, path, seen, parameters, hyper)
        return {
            "mode": best,
            "info": path_beliefs.laplace(model, state._replace(path=best), seen),
            "gradient": jax.grad(energy)(path),
            "energy": energy(path),
            "expansion": path_beliefs.expand(model, path, seen, parameters, hyper).gradient,
        }

    return run


@pytest.fixture
def path(rng):
    model, _ = _model()
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), hm.rest(model))


def test_mode_and_covariance_are_those_of_the_joint_gaussian(rng, compiled, path):
    seen = _seen(rng, _model()[0])
    found = compiled(path, seen)
    precision, place, least = _dense(seen)
    # A condition of about 1e5.
    np.testing.assert_allclose(ravel_pytree(found["mode"])[0], place, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found["info"].covariance, np.linalg.inv(precision), rtol=1e-8)
    np.testing.assert_allclose(found["info"].energy, least, rtol=1e-11)
    evidence = -least + 0.5 * np.linalg.slogdet(2 * np.pi * np.linalg.inv(precision))[1]
    np.testing.assert_allclose(found["info"].free_energy, -evidence, rtol=1e-11)
    assert found["info"].gradient_norm < 1e-8


def test_gradient_is_that_of_the_energy_and_of_finite_differences(rng, compiled, path):
    seen = _seen(rng, _model()[0])
    found = compiled(path, seen)
    flat, unravel = ravel_pytree(path)
    gradient = ravel_pytree(found["gradient"])[0]
    chex.assert_trees_all_close(found["expansion"], gradient, rtol=1e-11, atol=1e-9)
    for i in (0, 3, len(flat) - 1):
        step = 1e-5 * jnp.eye(len(flat))[i]
        up, down = (compiled(unravel(flat + d), seen)["energy"] for d in (step, -step))
        # The energy is quadratic: central differences err by rounding alone.
        np.testing.assert_allclose((up - down) / 2e-5, gradient[i], rtol=1e-6, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["plain", "natural"])
def test_step_solves_the_recognition_dynamics_exactly(rng, path, metric):
    model, parameters = _model()
    seen = _seen(rng, model)
    precision, _, _ = _dense(seen)
    descent = np.eye(len(precision)) if metric == "plain" else 3.0 * np.linalg.inv(precision)
    shift = scipy.linalg.block_diag(np.kron(np.eye(ORDER, k=1), np.eye(2)), np.eye(CAUSES, k=1))
    shifts = [np.kron(np.eye(ORDER, k=1), np.eye(4)), np.eye(CAUSES, k=1)]
    observed = np.concatenate([np.ravel(seen.sensed), np.ravel(seen.prior)])
    moving = scipy.linalg.block_diag(*shifts)
    force = _forces()
    # Path and observation as one linear flow, from the observation's past to now.
    whole = np.block(
        [[shift - descent @ precision, descent @ force], [np.zeros(force.T.shape), moving]]
    )
    start = np.concatenate([ravel_pytree(path)[0], scipy.linalg.expm(-0.5 * moving) @ observed])
    expected = (scipy.linalg.expm(0.5 * whole) @ start)[: len(precision)]
    options = {"plain": {}, "natural": {"rate": 3.0, "metric_fn": gf.natural_metric}}
    run = gf.generalized_filter(model, 0.5, **options[metric])
    state = path_beliefs.FilterState(path, parameters, hm.zero_hyperparameters(model))
    moved = ravel_pytree(jax.jit(run.step)(state, seen)[0].path)[0]
    # Rounding of |J| dt, about 1000.
    np.testing.assert_allclose(moved, expected, rtol=1e-9, atol=1e-9)


def _forces():
    """Derivative of ``precision place`` by the observation, column by column."""
    num = ORDER * 4 + CAUSES
    columns = []
    for i in range(num):
        unit = np.eye(num)[i]
        seen = hm.Observation(unit[: ORDER * 4].reshape(ORDER, 4), unit[ORDER * 4 :][:, None])
        precision, place, _ = _dense(seen)
        columns.append(precision @ place)
    return np.stack(columns, axis=1)


@pytest.mark.slow
def test_order_one_is_a_static_gaussian(dtype):
    # No derivatives: the states are seen through C alone, the motion plays no part.
    model, parameters = convolution_model(order=1, cause_order=1, dtype=dtype, output_precision=4.0)
    seen = hm.observation(model, jnp.asarray([[1.0, 0.5, -0.5, 2.0]], dtype))
    hyper = hm.zero_hyperparameters(model, dtype)
    found = path_beliefs.mode(model, hm.rest(model, dtype), seen, parameters, hyper)
    expected = np.linalg.lstsq(EMISSION, np.asarray(seen.sensed[0], float), rcond=None)[0]
    # C^T C has entries of 0.06.
    tolerance = 200 * jnp.finfo(dtype).eps
    chex.assert_trees_all_close(found.states[0][0], expected.astype(dtype), rtol=tolerance)
    assert found.states[0].dtype == dtype
    assert float(found.causes[0][0, 0]) == 0.0


@pytest.mark.slow
def test_filter_online_equals_the_scan_and_follows_the_states(rng):
    model, parameters = _model()
    hyper = hm.zero_hyperparameters(model)
    times = jnp.arange(40.0)
    # A path of the model: a free oscillation.
    states = np.stack([scipy.linalg.expm(DRIFT * float(t)) @ [1.0, 0.0] for t in times])
    derivatives = np.stack(
        [states @ np.linalg.matrix_power(DRIFT, k).T for k in range(ORDER)], axis=1
    )
    seen = hm.observation(model, jnp.asarray(derivatives @ EMISSION.T))
    run = gf.generalized_filter(model, 1.0, rate=4.0, metric_fn=gf.natural_metric)
    start = run.init(parameters, hyper)
    state, path, info = jax.jit(lambda y: gf.filter_series(run, start, y))(seen)
    single = [jax.tree.map(lambda x, i=i: x[i], seen) for i in range(40)]
    *_, (last, _) = gf.filter_online(jax.jit(run.step), start, iter(single))
    chex.assert_trees_all_close(last, state, rtol=1e-9, atol=1e-12)
    # Errors die as exp(-4 t); what stays is the last derivative, whose own motion is left out.
    np.testing.assert_allclose(path.states[0][10:, 0], states[10:], rtol=0, atol=0.05)
    assert (info.energy[10:] < info.energy[:1]).all()
    mean, deviation = path_beliefs.moments(last.path, info.covariance[-1])
    assert jax.tree.map(jnp.shape, mean) == jax.tree.map(jnp.shape, deviation)


@pytest.mark.slow
def test_published_errors_of_the_last_motion_can_be_taken_in(rng):
    model, parameters = _model(motion_order=ORDER)
    seen = _seen(rng, model)
    hyper = hm.zero_hyperparameters(model)
    found = path_beliefs.mode(model, hm.rest(model), seen, parameters, hyper)
    _, place, _ = _dense(seen, motion_order=ORDER)
    np.testing.assert_allclose(ravel_pytree(found)[0], place, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_covariance_of_embedded_noise_makes_the_likelihood_of_the_samples(rng):
    times = np.array([-1.0, 0.0, 1.0])
    operator = embedded_samples.embedding_operator(3, times)
    samples = rng.normal(size=(3, 4))
    covariance = embedded_samples.embedded_covariance(3, 1.0, 0.5)
    model, parameters = _model(sensed_covariance=covariance)
    seen = hm.observation(model, jnp.asarray(operator @ samples))
    hyper = hm.zero_hyperparameters(model)
    flat = hm.rest(model)
    kernel = np.exp(-((times[:, None] - times) ** 2) / (4 * 0.5**2))
    square = np.sum(samples * np.linalg.solve(kernel, samples)) * 50.0
    errors = path_energy.prediction_errors(model, flat, seen, parameters).output[0]
    np.testing.assert_allclose(50.0 * jnp.sum(errors**2), square, rtol=1e-10)
    exact = path_energy.log_normalizer(model, hyper) - path_energy.log_normalizer(
        _model()[0], hyper
    )
    change = -np.linalg.slogdet(covariance)[1] - float(smooth_noise.temporal_log_det(3, 0.8))
    np.testing.assert_allclose(exact, 2.0 * change, rtol=1e-10)


@pytest.mark.slow
def test_hierarchy_of_two_static_levels_is_a_linear_regression(rng):
    below, above = rng.normal(size=(3, 2)), rng.normal(size=(2, 1))

    def product(x, v, theta):
        return jnp.matmul(theta, v)

    def still(x, v, theta):
        return x

    levels = (
        hm.Level(still, product, 5.0 * np.eye(3)[None], np.zeros((1, 0, 0))),
        hm.Level(still, product, 2.0 * np.eye(2)[None], np.zeros((1, 0, 0))),
    )
    model = hm.check_model(hm.Model(levels, 0.5 * np.eye(1), 1, 1, 1.0))
    y = rng.normal(size=3)
    seen = hm.observation(model, jnp.asarray(y)[None])
    found = path_beliefs.mode(
        model,
        hm.rest(model),
        seen,
        (jnp.asarray(below), jnp.asarray(above)),
        hm.zero_hyperparameters(model),
    )
    total = below @ above
    noise = np.eye(3) / 5 + below @ below.T / 2
    weights = total.T @ np.linalg.inv(noise)
    expected = np.linalg.solve(weights @ total + 0.5, weights @ y)
    np.testing.assert_allclose(found.causes[1][0], expected, rtol=1e-11)


def test_damped_metric_bounds_the_correction_where_curvature_is_singular(rng, dtype):
    half = rng.normal(size=(3, 5)).astype(dtype)  # rank 3 of 5
    errors = rng.normal(size=3).astype(dtype)
    precision = np.array([0.5, 0.1, 2.0, 0.1, 0.3])

    @jax.jit
    def metrics(half, errors):
        curvature = half.T @ half
        moved = gf.damped_metric(0.1)(curvature) @ half.T @ errors
        nothing = gf.damped_metric(jnp.nan)(curvature)
        return gf.damped_metric(precision)(curvature), moved, nothing

    found, moved, nothing = metrics(half, errors)
    whole = half.astype(float)
    expected = np.linalg.inv(whole.T @ whole + np.diag(precision))
    # A condition of about 100.
    tolerance = 1e3 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())
    assert found.dtype == dtype
    assert np.linalg.norm(moved) <= np.linalg.norm(errors) / (2 * np.sqrt(0.1))
    assert np.isnan(nothing).all()
    with pytest.raises(ValueError, match=r"precision must be above 0, got 0.0; natural_metric"):
        gf.damped_metric(0.0)


def _pendulum(order, dtype, lag=0, noise=0.1):
    """A pendulum whose sine is seen in white noise, and its filter."""
    dt = 0.1

    def swing(x, v, parameters):
        return jnp.stack([x[1], -jnp.sin(x[0]) - 0.1 * x[1]])

    level = hm.Level(
        swing, lambda x, v, p: jnp.sin(x[:1]), np.eye(1)[None] / noise**2, 100.0 * np.eye(2)[None]
    )
    covariance = embedded_samples.embedded_covariance(order, dt, 0.0, lag=lag)
    model = hm.Model((level,), np.eye(0), order, 1, 0.5, sensed_covariance=covariance)
    run = gf.generalized_filter(model, dt, rate=4.0, metric_fn=gf.damped_metric(10.0))
    start = run.init((None,), hm.zero_hyperparameters(model, dtype))

    @jax.jit
    def filtered(series):
        seen = hm.observation(model, embedded_samples.embed(series, order, dt, lag=lag))
        return gf.filter_series(run, start, seen)[1].states[0][:, 0, 0]

    return filtered


@pytest.mark.slow
def test_a_pendulum_that_passes_where_its_output_turns_is_followed(dtype):
    rng, state, angles = np.random.default_rng(0), np.array([1.0, 1.3]), []
    for _ in range(150):
        angles.append(state[0])
        for _ in range(10):
            speed = state[1] + 0.01 * (-np.sin(state[0]) - 0.1 * state[1])
            state = np.array([state[0] + 0.01 * speed, speed])
    assert max(angles) > 0.52 * np.pi
    series = np.sin(angles) + 0.1 * rng.standard_normal(150)
    found = np.asarray(_pendulum(3, dtype)(jnp.asarray(series, dtype)[:, None]))
    # Once the start at 0 is forgotten, it errs by less than the noise of one sample.
    error = found[50:] - np.array(angles)[52:]
    assert np.sqrt(np.mean(error**2)) < 0.1


def test_bad_models_are_named():
    model, _ = _model()
    with pytest.raises(ValueError, match=r"sensed must be \[..., 3, 4\], got \(2, 4\)"):
        hm.observation(model, jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"prior must be \(2, 1\), got \(3, 1\)"):
        hm.observation(model, jnp.zeros((3, 4)), jnp.zeros((3, 1)))
    with pytest.raises(ValueError, match="cause_order must be from 1 to order = 3, got 4"):
        hm.check_model(model._replace(cause_order=4))
    bad = model.levels[0]._replace(state_precision=-np.eye(2)[None])
    with pytest.raises(ValueError, match=r"levels\[0\].state_precision\[0\] must be positive"):
        hm.check_model(model._replace(levels=(bad,)))
    with pytest.raises(ValueError, match=r"cause_precision.* must be symmetric"):
        hm.check_model(model._replace(cause_precision=np.array([[1.0, 1.0], [0.0, 1.0]])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"motion_fn": lambda x, v, p: x[:1]},
            r"levels\[0\].motion_fn .* \(2,\), got \(1,\)",
        ),
        ({"output_fn": lambda x, v, p: x}, r"levels\[0\].output_fn .* \(4,\), got \(2,\)"),
        ({"output_fn": lambda x, v, p: [x]}, r"levels\[0\].output_fn must .* got list"),
    ],
)
def test_what_a_function_returns_is_never_stretched_to_fit(change, message):
    model, parameters = _model()
    model = model._replace(levels=(model.levels[0]._replace(**change),))
    seen = hm.observation(model, jnp.zeros((3, 4)))
    with pytest.raises(ValueError, match=message):
        path_energy.prediction_errors(model, hm.rest(model), seen, parameters)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"smoothness": 0.0}, "smoothness must be above 0, in units of time, got 0.0"),
        ({"cause_smoothness": -1.0}, "cause_smoothness must be above 0, in units of time"),
        ({"cause_order": 4}, "cause_order must be from 1 to order = 3, got 4"),
        ({"motion_order": 4}, "motion_order must be from 0 to order = 3, got 4"),
        ({"cause_precision": np.eye(1)[None]}, r"cause_precision must be \[m, m\], got"),
    ],
)
def test_a_filter_refuses_a_model_that_does_not_fit_together(change, message):
    model, parameters = _model()
    hyper = hm.zero_hyperparameters(model)
    run = gf.generalized_filter(model._replace(**change), 1.0)
    with pytest.raises(ValueError, match=message):
        run.init(parameters, hyper)


def test_arguments_of_a_filter_that_cannot_be_are_named():
    model, parameters = _model()
    hyper, level = hm.zero_hyperparameters(model), model.levels[0]
    run = gf.generalized_filter(model, 1.0)
    with pytest.raises(ValueError, match=r"parameters must be a tuple of 1, .* got ArrayImpl"):
        run.init(jnp.zeros(2), hyper)
    with pytest.raises(ValueError, match=r"parameters must be a tuple of 1, .* got 2 entries"):
        run.init((*parameters, None), hyper)
    with pytest.raises(ValueError, match=r"levels must be a tuple of levels.* \(level,\)"):
        hm.rest(model._replace(levels=level))
    flat = level._replace(output_precision=np.eye(4))
    with pytest.raises(ValueError, match=r"levels\[0\].output_precision must be \[components, k"):
        hm.rest(model._replace(levels=(flat,)))
    with pytest.raises(ValueError, match=r"state_precision must be .* shape \(\); .* np.eye\(k\)"):
        hm.zero_hyperparameters(model._replace(levels=(level._replace(state_precision=2.0),)))
    with pytest.raises(ValueError, match="dt must be above 0"):
        gf.generalized_filter(model, 0.0)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        gf.generalized_filter(model, 1.0, num_steps=0)
