"""Beliefs about one moment and along a history, against sums over all states."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import pomdp_oracle

from vfejax.inference.pomdp import (
    POMDP,
    exact_posterior,
    filter_states,
    infer_states,
    predict_observations,
    predict_states,
)

infer = jax.jit(infer_states)
exact = jax.jit(exact_posterior)


def brute_posterior(model, observation, there=None):
    model = pomdp_oracle.numbers(model)
    joint = np.zeros(model.num_states)
    for state in pomdp_oracle.combinations(model):
        joint[state] = pomdp_oracle.start(model, state)
        joint[state] *= pomdp_oracle.likelihood(model, observation, state, there)
    return joint / joint.sum(), np.log(joint.sum())


def test_one_factor_is_bayes_rule(rng, dtype):
    model = pomdp_oracle.one_factor(rng, dtype)
    joint, log_evidence = brute_posterior(model, [2, 0])
    (q,), info = infer(model, [2, 0], model.D)
    chex.assert_type(q, dtype)
    # A few roundings of numbers of size 1.
    chex.assert_trees_all_close(q, joint.astype(dtype), rtol=0, atol=8 * jnp.finfo(dtype).eps)
    np.testing.assert_allclose(info.free_energy, -log_evidence, rtol=16 * jnp.finfo(dtype).eps)


def test_the_exact_posterior_sums_over_all_states(rng):
    model = pomdp_oracle.three_factors(rng, jnp.float64)
    for there in ([True, True], [False, True]):
        joint, log_evidence = brute_posterior(model, [1, 2], there)
        found = exact(model, [1, 2], model.D, mask=np.array(there))
        chex.assert_trees_all_close(found.joint, joint, rtol=0, atol=1e-15)
        np.testing.assert_allclose(found.log_evidence, log_evidence, rtol=1e-14)
        for f, marginal in enumerate(found.marginals):
            others = tuple(g for g in range(3) if g != f)
            chex.assert_trees_all_close(marginal, joint.sum(axis=others), rtol=0, atol=1e-15)


def test_free_energy_never_rises_and_bounds_the_evidence(rng):
    settle = jax.jit(lambda m, o: infer_states(m, list(o), m.D, num_sweeps=8)[1])
    sharpen = jax.jit(lambda m: pomdp_oracle.sharpened(m, 4))
    gaps = []
    for _ in range(40):
        model = sharpen(pomdp_oracle.three_factors(rng, jnp.float64))
        info = settle(model, np.array([1, 2]))
        _, log_evidence = brute_posterior(model, [1, 2])
        steps = np.diff(info.free_energies)
        assert steps.max() <= 1e-13
        gaps.append(float(info.free_energy) + log_evidence)
    assert min(gaps) > -1e-12
    assert max(gaps) > 0.01  # the bound is not always tight, or there would be nothing to bound


def test_a_missing_modality_says_nothing(rng):
    model = pomdp_oracle.one_factor(rng, jnp.float64)
    (masked,), info = infer(model, [0, 1], model.D, mask=np.array([False, False]))
    chex.assert_trees_all_close(masked, model.D[0], rtol=0, atol=1e-15)
    np.testing.assert_allclose(info.free_energy, 0.0, rtol=0, atol=1e-15)


def test_weights_of_observations_average_their_likelihoods(rng):
    model = pomdp_oracle.one_factor(rng, jnp.float64)
    sure = infer(model, [np.array([0.0, 1.0, 0.0]), 1], model.D)
    chex.assert_trees_all_close(sure, infer(model, [1, 1], model.D), rtol=0, atol=1e-15)
    (vague,), _ = infer(model, [np.ones(3), np.ones(2)], model.D)
    chex.assert_trees_all_close(vague, model.D[0], rtol=0, atol=1e-15)


def test_impossible_observations_keep_beliefs_finite_and_have_no_evidence(dtype):
    see = np.eye(2)
    arrays = [see], [see[..., None]], [np.zeros(2)], [see[0]]
    model = POMDP(*jax.tree.map(lambda x: jnp.asarray(x, dtype), arrays))
    (q,), info = infer(model, [1], model.D)
    assert np.isfinite(q).all()
    assert float(info.free_energy) > 80
    posterior = exact(model, [1], model.D)
    assert float(posterior.log_evidence) == -np.inf
    assert np.isnan(posterior.joint).all()


def test_nan_and_observations_that_do_not_exist_stay_nan(rng):
    model = pomdp_oracle.one_factor(rng, jnp.float64)
    (q,), info = infer(model, [3, 0], model.D)
    assert np.isnan(q).all()
    assert np.isnan(info.free_energy)
    prior = np.array(model.D[0])
    prior[0] = np.nan
    (q,), _ = infer(model, [0, 0], [prior])
    assert np.isnan(q).all()
    predict = jax.vmap(lambda u: predict_states(model, model.D, u)[0])
    assert np.isnan(predict(jnp.array([[-1], [0], [1], [2]]))).all(axis=1).tolist() == [
        True,
        False,
        False,
        True,
    ]
    excluding = [np.array(likelihood) for likelihood in model.A]
    for likelihood in excluding:
        likelihood[:, 0] = 0.0
    model = POMDP([jnp.asarray(x) for x in excluding], model.B, model.C, model.D)
    assert np.isnan(exact(model, [0, 0], [prior]).joint).all()


def test_predictions_sum_over_present_states(rng):
    model = pomdp_oracle.three_factors(rng, jnp.float64)
    action, plain = [1, 0, 0], pomdp_oracle.numbers(model)
    after = np.zeros(model.num_states)
    seen = [np.zeros(n) for n in model.num_observations]
    for state in pomdp_oracle.combinations(model):
        weight = pomdp_oracle.start(plain, state)
        for later in pomdp_oracle.combinations(model):
            after[later] += weight * pomdp_oracle.transition(plain, later, state, action)
        for m, factors in enumerate(model.A_dependencies):
            seen[m] += weight * plain.A[m][(slice(None), *(state[f] for f in factors))]
    predicted, observed = jax.jit(
        lambda m, action: (predict_states(m, m.D, action), predict_observations(m, m.D))
    )(model, action)
    for f, q in enumerate(predicted):
        chex.assert_trees_all_close(q, after.sum(axis=tuple({0, 1, 2} - {f})), rtol=0, atol=1e-15)
    for found, expected in zip(observed, seen, strict=True):
        chex.assert_trees_all_close(found, expected, rtol=0, atol=1e-15)


def test_filtering_ends_where_the_window_posterior_does(rng):
    model = pomdp_oracle.one_factor(rng, jnp.float64)
    observations, actions = [np.array([0, 2, 1]), np.array([1, 1, 0])], np.array([[0], [1]])
    there = np.array([[True, True], [False, True], [True, True]])
    (q,), info = jax.device_get(jax.jit(filter_states)(model, observations, actions, mask=there))
    expected, log_evidence = pomdp_oracle.window_posterior(model, observations, actions, there)
    chex.assert_trees_all_close(q[-1], expected[0][-1], rtol=0, atol=1e-14)
    np.testing.assert_allclose(info.free_energy.sum(), -log_evidence, rtol=1e-14)


@pytest.mark.parametrize(
    ("observation", "prior", "message"),
    [
        ([0], None, "observation must have 2 entries, one per modality, got 1"),
        (0, None, "observation must have 2 entries, one per modality, got one number, 0"),
        ([0, jnp.ones(3)], None, r"observation\[1\] must be an integer or weights \[2\]"),
        ([0, 0], [], "prior must have 1 entries, one per factor, got 0"),
        ([0, 0], [jnp.ones(2)], r"prior\[0\] must have shape \[3\], got \[2\]"),
    ],
)
def test_what_does_not_fit_is_named(rng, observation, prior, message):
    model = pomdp_oracle.one_factor(rng, jnp.float64)
    with pytest.raises(ValueError, match=message):
        infer_states(model, observation, model.D if prior is None else prior)
    with pytest.raises(ValueError, match=r"mask must have shape \[2\], got \[3\]"):
        infer_states(model, [0, 0], model.D, mask=jnp.ones(3, bool))
