"""The Kalman filter and smoother against the joint Gaussian of all states, by every algorithm."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.chain_oracle import joint_gaussian
from jax.test_util import check_grads

from vfejax.inference import chains
from vfejax.inference.chains import linear_gaussian
from vfejax.inference.chains.blocks import SEQUENTIAL, blocks, num_blocks_for
from vfejax.inference.chains.linear_gaussian import LinearGaussian
from vfejax.inference.chains.parallel import ASSOCIATIVE

N, O, U, T = 3, 2, 2, 7
BLOCKS = blocks(3)  # of three steps; the last has padding
slow = pytest.mark.slow
# The condition of the covariances drawn here is below 100.
ATOL = 1e-11 / 100


def covariances(rng, *shape):
    a = rng.normal(size=(*shape, shape[-1]))
    return a @ a.swapaxes(-1, -2) / shape[-1] + 0.3 * np.eye(shape[-1])


def constant(rng):
    return LinearGaussian(
        rng.normal(size=N),
        covariances(rng, N),
        rng.normal(size=(N, N)) / N**0.5,
        covariances(rng, N),
        rng.normal(size=(O, N)),
        covariances(rng, O),
    )


def varying(rng):
    return LinearGaussian(
        rng.normal(size=N),
        covariances(rng, N),
        rng.normal(size=(T - 1, N, N)) / N**0.5,
        covariances(rng, T - 1, N),
        rng.normal(size=(T, O, N)),
        covariances(rng, T, O),
        rng.normal(size=(T - 1, N)),
        rng.normal(size=(T, O)),
        rng.normal(size=(N, U)),
        rng.normal(size=(O, U)),
    )


def missing(rng):
    """Observations with NaN where they are missing, all of one step and all of the last."""
    y = rng.normal(size=(T, O))
    mask = rng.random((T, O)) < 0.6
    mask[[2, T - 1]] = False
    return np.where(mask, y, np.nan), mask


def _smooth(passes, model, y, mask=None, controls=None):
    return linear_gaussian.kalman_smoother(model, y, mask, controls, passes=passes)


smooth = jax.jit(_smooth, static_argnums=0)


def assert_exact(found, model, y, mask=None, controls=None):
    y = np.nan_to_num(y)
    exact = joint_gaussian(model, y, mask, controls)
    names = ("mean", "cov", "cross_cov", "log_evidence")
    chex.assert_trees_all_close(
        tuple(getattr(found, name) for name in names),
        tuple(getattr(exact, name) for name in names),
        rtol=ATOL,
        atol=ATOL,
    )
    filtered = found.filtered
    before = 0.0
    for i in range(len(y)):
        upto = joint_gaussian(model, y, mask, controls, upto=i + 1)
        prediction = joint_gaussian(model, y, mask, controls, upto=i)
        chex.assert_trees_all_close(
            (filtered.mean[i], filtered.cov[i], filtered.step_log_evidence[i]),
            (upto.mean[i], upto.cov[i], upto.log_evidence - before),
            rtol=ATOL,
            atol=ATOL,
        )
        chex.assert_trees_all_close(
            (filtered.predicted_mean[i], filtered.predicted_cov[i]),
            (prediction.mean[i], prediction.cov[i]),
            rtol=ATOL,
            atol=ATOL,
        )
        before = upto.log_evidence


@pytest.mark.parametrize(
    "passes",
    [
        pytest.param(SEQUENTIAL, id="sequential"),
        pytest.param(BLOCKS, id="blocks"),
        pytest.param(blocks(5), id="a block of padding", marks=slow),
        pytest.param(ASSOCIATIVE, id="associative", marks=slow),
    ],
)
def test_equals_the_joint_gaussian(passes, rng):
    """Everything changes with time, entries are missing, and controls enter both equations."""
    model, (y, mask), controls = varying(rng), missing(rng), rng.normal(size=(T, U))
    assert_exact(smooth(passes, model, y, mask, controls), model, y, mask, controls)


def test_equals_the_joint_gaussian_of_a_constant_model(rng):
    model, y = constant(rng), rng.normal(size=(T, O))
    assert_exact(smooth(SEQUENTIAL, model, y), model, y)
    # A state that is known, and noise in one direction only: singular covariances.
    corner = np.diag([1.0, 0.0, 0.0])
    known = model._replace(initial_cov=np.zeros((N, N)), transition_cov=corner)
    assert_exact(smooth(SEQUENTIAL, known, y), known, y)
    still = model._replace(transition_cov=0.0 * corner)
    assert_exact(smooth(SEQUENTIAL, still, y), still, y)


@pytest.mark.slow
@pytest.mark.parametrize(
    "passes", [pytest.param(BLOCKS, id="b"), pytest.param(ASSOCIATIVE, id="a")]
)
def test_singular_covariances_by_the_other_algorithms(passes, rng):
    model, y = constant(rng), rng.normal(size=(T, O))
    corner = np.diag([1.0, 0.0, 0.0])
    for initial, noise in ((0.0 * corner, corner), (model.initial_cov, 0.0 * corner)):
        singular = model._replace(initial_cov=initial, transition_cov=noise)
        assert_exact(smooth(passes, singular, y), singular, y)


def test_a_vague_start_leaves_the_covariances_positive(rng):
    """Joseph's form. What is left of a variance of 1e8 is right to 1e8 roundings."""
    model = constant(rng)._replace(initial_cov=1e8 * np.eye(N), emission_cov=1e-4 * np.eye(O))
    found = smooth(SEQUENTIAL, model, rng.normal(size=(T, O)))
    c = np.asarray(model.emission)
    variance = c @ np.asarray(found.filtered.cov[0]) @ c.T
    np.testing.assert_allclose(variance, 1e-4 * np.eye(O), rtol=0, atol=1e-7)
    assert np.all(np.linalg.eigvalsh(np.asarray(found.cov)) > 0)


def test_bad_values_give_nan_and_never_a_wrong_number(rng):
    model, y = constant(rng), rng.normal(size=(T, O))
    crooked = np.diag([1.0, 2.0, -0.1])  # every innovation has a positive variance for all that
    changes = (
        {"emission_cov": -np.eye(O)},
        {"initial_mean": np.array([np.nan, 0.0, 0.0])},
        {"initial_cov": crooked},
        {"transition_cov": crooked},
    )
    for change in changes:
        found = smooth(SEQUENTIAL, model._replace(**change), y)
        assert np.isnan(found.log_evidence)
        assert np.isnan(found.mean).all()
    y[3, 1] = np.nan
    found = smooth(SEQUENTIAL, model, y).filtered
    assert np.isfinite(found.mean[:3]).all()
    assert np.isnan(found.mean[3:]).all()


@pytest.mark.slow
@pytest.mark.parametrize("passes", [SEQUENTIAL, BLOCKS])
def test_derivatives_of_the_log_evidence(passes, rng):
    model, (y, mask) = constant(rng), missing(rng)
    model = jax.tree.map(jnp.asarray, model)

    @jax.jit
    def run(initial_cov, transition, noise, emission_cov):
        changed = model._replace(
            initial_cov=initial_cov @ initial_cov.T,
            transition=transition,
            transition_cov=noise @ noise.T,
            emission_cov=emission_cov @ emission_cov.T,
        )
        return linear_gaussian.kalman_filter(changed, y, mask, passes=passes).log_evidence

    given = model.initial_cov, model.transition, model.transition_cov, model.emission_cov
    check_grads(run, given, order=1, modes=["fwd", "rev"])


@pytest.mark.slow
def test_long_chains_by_blocks_equal_the_recursion_in_both_precisions(rng):
    model, y = constant(rng), rng.normal(size=(2000, O))
    model = model._replace(transition=0.98 * np.linalg.qr(rng.normal(size=(N, N)))[0])
    one, many = (smooth(blocks(b), model, y) for b in (1, num_blocks_for(2000, N)))
    chex.assert_trees_all_close(one, many, rtol=1e-10, atol=1e-12)
    single = jax.tree.map(lambda x: np.asarray(x, "float32"), (model, y))
    found = smooth(blocks(num_blocks_for(2000, N)), *single)
    chex.assert_type(found.cov, "float32")
    # A few hundred roundings of numbers of order 1, as the memory of the chain lets them add up.
    np.testing.assert_allclose(found.mean, one.mean, rtol=0, atol=2e-4)
    np.testing.assert_allclose(found.log_evidence, one.log_evidence, rtol=1e-5)


def test_predictions_are_the_filter_without_observations(rng):
    model, y = constant(rng), rng.normal(size=(T, O))
    mask = np.broadcast_to(np.arange(T)[:, None] < T - 3, (T, O))
    joint = joint_gaussian(model, y, mask)
    at = T - 4
    upto = joint_gaussian(model, y[: at + 1])
    run = jax.jit(linear_gaussian.predict, static_argnums=3)
    found = run(model, upto.mean[-1], upto.cov[-1], 3)
    c = model.emission
    chex.assert_trees_all_close(
        (found.mean, found.cov, found.observation_mean, found.observation_cov[0]),
        (
            joint.mean[-3:],
            joint.cov[-3:],
            joint.mean[-3:] @ c.T,
            c @ joint.cov[-3] @ c.T + model.emission_cov,
        ),
        rtol=1e-12,
        atol=1e-13,
    )
    with pytest.raises(ValueError, match="transition has a time axis"):
        linear_gaussian.predict(varying(rng), upto.mean[-1], upto.cov[-1], 3)
    # As many as the steps ahead, so that their shapes fit.
    past = {
        "transition_offset": np.ones((3, N)),
        "emission_offset": np.ones((4, O)),
        "emission_cov": np.stack([model.emission_cov] * 4),
    }
    for name, value in past.items():
        with pytest.raises(ValueError, match=f"does not change; {name} has a time axis"):
            linear_gaussian.predict(model._replace(**{name: value}), upto.mean[-1], upto.cov[-1], 3)
    with pytest.raises(ValueError, match="num_steps must not be negative, got -1"):
        linear_gaussian.predict(model, upto.mean[-1], upto.cov[-1], -1)


def test_the_contract_names_are_in_the_folder():
    assert chains.LinearGaussian is LinearGaussian
    assert chains.kalman_filter is linear_gaussian.kalman_filter


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"initial_cov": np.eye(2)}, {}, r"model.initial_cov .* \[3, 3\]; got \[2, 2\]"),
        ({"transition": np.ones((T, N, N))}, {}, r"model.transition .* t - 1 = 6; got \[7, 3, 3\]"),
        ({"emission": np.ones((N, N))}, {}, r"observations must be \[t, 3\]"),
        ({"emission_cov": np.eye(3)}, {}, r"model.emission_cov .* \[2, 2\]"),
        ({"transition": 1j * np.eye(N)}, {}, "model.transition must be real"),
        ({}, {"mask": np.ones((T, O))}, "mask must be booleans"),
        ({}, {"controls": np.ones((T, U))}, "no matrix that uses them"),
        ({"transition_control": np.ones((N, U))}, {}, "controls .* are missing"),
        (
            {"transition_control": np.ones((N, U))},
            {"controls": np.ones((T, 1))},
            r"model.transition_control .* \[3, 1\]",
        ),
    ],
)
def test_refuses_shapes_that_disagree(change, options, message, rng):
    with pytest.raises(ValueError, match=message):
        chains.kalman_filter(constant(rng)._replace(**change), np.zeros((T, O)), **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"initial_cov": np.diag([1.0, -1.0, 1.0])}, "initial_cov .* eigenvalue is -1"),
        ({"emission_cov": np.zeros((O, O))}, "emission_cov must be positive definite"),
        (
            {"transition_cov": np.triu(np.ones((N, N)))},
            r"entries \[0, 1\] and \[1, 0\] are 1 and 0",
        ),
        ({"transition": np.diag([1.0, np.inf, 1.0])}, r"transition has inf at \[1, 1\]"),
        ({"transition_cov": np.stack([np.eye(N), -np.eye(N)])}, r"transition_cov\[1\]"),
    ],
)
def test_check_names_the_entry(change, message, rng):
    model = constant(rng)._replace(transition_cov=np.diag([1.0, 0.0, 0.0]))
    linear_gaussian.check_model(model)
    linear_gaussian.check_model(model._replace(transition_cov=np.zeros((N, N))))
    with pytest.raises(ValueError, match=message):
        linear_gaussian.check_model(model._replace(**change))
