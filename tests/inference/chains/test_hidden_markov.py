"""Hidden Markov chains against the sum over all paths, and what is impossible or improbable."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.chain_oracle import all_paths
from jax.test_util import check_grads

from vfejax.inference.chains import hidden_markov as hmm
from vfejax.inference.chains._discrete import ASSOCIATIVE, PLATFORM, SEQUENTIAL
from vfejax.inference.chains.hidden_markov import HiddenMarkov

K, T = 3, 5
# A new algorithm joins by one line.
PASSES = [
    pytest.param(SEQUENTIAL, id="sequential"),
    pytest.param(ASSOCIATIVE, id="associative", marks=pytest.mark.slow),
]


def draw(rng, varying=False, zeros=False):
    initial = rng.dirichlet(np.ones(K))
    transition = rng.dirichlet(np.ones(K), (T - 1, K)).swapaxes(1, 2)
    if zeros:
        transition[:, 0, 1], transition[:, 2, 1] = 0.0, 1.0 - transition[:, 1, 1]
    return (
        initial,
        transition if varying else transition[0],
        rng.normal(size=(T, K)),
    )


def _everything(initial, transition, log_likelihood, passes):
    model = HiddenMarkov(initial, transition)
    smoothed = hmm.hidden_markov_smoother(model, log_likelihood, passes=passes)
    filtered = hmm.hidden_markov_filter(model, log_likelihood, passes=passes)
    pairs = hmm.two_slice_marginals(model, smoothed)
    total = hmm.two_slice_sum(model, smoothed)
    return smoothed, filtered, pairs, total, hmm.viterbi(model, log_likelihood, passes=passes)


everything = jax.jit(_everything, static_argnums=3)


def expected(initial, transition, rows):
    paths, score = all_paths(initial, transition, rows)
    weight = np.exp(score - score.max())
    evidence = np.log(weight.sum()) + score.max()
    weight /= weight.sum()
    t = rows.shape[0]
    marginals = np.stack([np.bincount(paths[:, i], weight, K) for i in range(t)])
    pairs = np.zeros((t - 1, K, K))
    for i in range(t - 1):
        np.add.at(pairs[i], (paths[:, i + 1], paths[:, i]), weight)
    return marginals, pairs, evidence, paths[np.argmax(score)], score.max()


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("varying", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_equals_the_sum_over_all_paths(passes, varying, rng):
    arrays = draw(rng, varying, zeros=True)
    smoothed, filtered, pairs, total, path = everything(*arrays, passes)
    marginals, two, evidence, best, score = expected(*arrays)
    # Five steps in float64: some hundred roundings.
    chex.assert_trees_all_close(
        (smoothed.probabilities, pairs, total, smoothed.log_evidence),
        (marginals, two, two.sum(axis=0), evidence),
        rtol=0,
        atol=1e-13,
    )
    chex.assert_trees_all_close(filtered, smoothed.filtered, rtol=0, atol=1e-14)
    for i in range(T):
        prefix = expected(arrays[0], arrays[1], arrays[2][: i + 1])[0][-1]
        np.testing.assert_allclose(filtered.probabilities[i], prefix, rtol=0, atol=1e-13)
    np.testing.assert_array_equal(path.states, best)
    np.testing.assert_allclose(path.log_probability, score, rtol=1e-13)
    assert filtered.info.first_impossible == -1


@pytest.mark.parametrize("passes", PASSES)
def test_an_improbable_past_is_not_lost(passes, rng):
    """State 0 falls below the smallest number, and then is all that explains the rest."""
    initial, transition, rows = draw(rng)
    transition = np.eye(K)
    rows[1:3, 0] = -500.0
    rows[3:, 1:] = -900.0
    smoothed, _, pairs, total, _ = everything(initial, transition, rows, passes)
    marginals, two, evidence, _, _ = expected(initial, transition, rows)
    np.testing.assert_allclose(smoothed.probabilities, marginals, rtol=0, atol=1e-12)
    chex.assert_trees_all_close((pairs, total), (two, two.sum(axis=0)), rtol=0, atol=1e-12)
    np.testing.assert_allclose(smoothed.log_evidence, evidence, rtol=1e-13)
    assert smoothed.filtered.info.first_impossible == -1


@pytest.mark.parametrize("passes", PASSES)
def test_a_state_that_underflows_at_once_comes_back_in_small_steps(passes, rng):
    """No step divides by a number below the root of the smallest; two of them together would."""
    initial, _, rows = draw(rng)
    rows[0], rows[1:] = [0.0, -800.0, -900.0], [-300.0, 0.0, 0.0]
    transition = np.eye(K)
    smoothed, filtered, pairs, total, _ = everything(initial, transition, rows, passes)
    marginals, two, evidence, _, _ = expected(initial, transition, rows)
    np.testing.assert_allclose(smoothed.probabilities, marginals, rtol=0, atol=1e-12)
    chex.assert_trees_all_close((pairs, total), (two, two.sum(axis=0)), rtol=0, atol=1e-12)
    np.testing.assert_allclose(filtered.log_evidence, evidence, rtol=1e-13)


@pytest.mark.parametrize("passes", PASSES)
def test_an_impossible_observation_is_reported_and_counts_as_missing(passes, rng):
    initial, _, rows = draw(rng)
    transition = np.array([[1.0, 0.5, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 1.0]])
    rows[2] = -np.inf
    smoothed, filtered, pairs, _, path = everything(initial, transition, rows, passes)
    without = rows.copy()
    without[2] = 0.0
    same, _, two, _, best = everything(initial, transition, without, passes)
    chex.assert_tree_all_finite((smoothed.probabilities, filtered.predicted, pairs))
    chex.assert_trees_all_close(
        (smoothed.probabilities, pairs), (same.probabilities, two), atol=1e-13, rtol=0
    )
    assert smoothed.log_evidence == filtered.log_evidence == path.log_probability == -np.inf
    assert filtered.info.impossible.tolist() == [False, False, True, False, False]
    assert filtered.info.first_impossible == path.info.first_impossible == 2
    np.testing.assert_array_equal(path.states, best.states)


def test_both_algorithms_resolve_ties_the_same_way(rng, dtype):
    """Whole numbers of nats and half probabilities: many paths are equally good, among others in
    series without any observation.
    """
    num, k, t = 4, 4, 37
    transition = np.zeros((k, k), dtype)
    for i in range(k):
        transition[[i, (i + 1 + i % 2) % k], i] = 0.5
    model = HiddenMarkov(np.full(k, 1 / k, dtype), transition)
    rows = rng.integers(-2, 1, (num, t, k)).astype(dtype)
    rows[0] = 0.0
    one, tree = (
        jax.jit(jax.vmap(lambda x, passes=passes: hmm.viterbi(model, x, passes=passes)))(rows)
        for passes in (SEQUENTIAL, ASSOCIATIVE)
    )
    np.testing.assert_array_equal(tree.states, one.states)
    # Sums of 37 numbers of order 1.
    np.testing.assert_allclose(
        tree.log_probability, one.log_probability, rtol=40 * jnp.finfo(dtype).eps
    )
    assert tree.log_probability.dtype == one.log_probability.dtype == dtype


def test_paths_of_one_step():
    model = HiddenMarkov(np.array([0.25, 0.75]), np.eye(2))
    algorithms = (SEQUENTIAL, ASSOCIATIVE)
    both = jax.jit(lambda rows: [hmm.viterbi(model, rows, passes=x) for x in algorithms])
    for found in both(np.zeros((1, 2))):
        assert found.states.tolist() == [1]
        np.testing.assert_allclose(found.log_probability, np.log(0.75), rtol=1e-15)


def test_nan_stays_nan(rng):
    initial, transition, rows = draw(rng)
    rows[3, 1] = np.nan
    smoothed, filtered, _, _, path = everything(initial, transition, rows, SEQUENTIAL)
    assert np.isnan(path.log_probability)
    assert np.isfinite(filtered.probabilities[:3]).all()
    assert np.isnan(filtered.probabilities[3:]).all()
    assert np.isnan(smoothed.log_evidence)


@pytest.mark.slow
def test_gradient_of_the_log_evidence_is_the_expected_counts(rng):
    initial, transition, rows = draw(rng, zeros=True)

    @jax.jit
    @jax.grad
    def slope(logits, transition, rows):
        model = HiddenMarkov(initial, transition * jnp.exp(logits))
        return hmm.hidden_markov_filter(model, rows).log_evidence

    zero, far = np.zeros((K, K)), 2000.0 * np.arange(K)
    # The second one from logarithms: the step on probabilities would divide by 0.
    for matrix, change in ((transition, zero[:2]), (np.eye(K), np.stack([-far, far]))):
        rows[2:4] += change
        total = expected(initial, np.broadcast_to(matrix, (T - 1, K, K)), rows)[1].sum(axis=0)
        np.testing.assert_allclose(slope(zero, matrix, rows), total, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_derivatives(rng):
    initial, transition, rows = map(jnp.asarray, draw(rng))

    @jax.jit
    def run(rows):
        found = hmm.hidden_markov_smoother(HiddenMarkov(initial, transition), rows)
        return found.probabilities

    check_grads(run, (rows,), order=1, modes=["fwd", "rev"])


def test_discrete_observations(rng):
    emission = rng.dirichlet(np.ones(4), K).T
    emission[1, 0] = 0.0
    emission /= emission.sum(axis=0)
    model = HiddenMarkov(np.ones(K) / K, np.eye(K), emission)
    mask = np.array([True, True, False, True, True])
    found = jax.jit(hmm.log_likelihoods)(model, np.array([0, 1, 99, 4, -1]), mask)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(found[:2], np.log(emission[:2]), rtol=1e-15)
    np.testing.assert_array_equal(found[2], np.zeros(K))
    assert np.isnan(found[3:]).all()


@pytest.mark.slow
def test_single_precision_and_vmap(rng):
    initial, transition, rows = (x.astype("float32") for x in draw(rng))
    stack = np.stack([rows, rows - 300.0 * np.arange(K, dtype="float32"), 0.0 * rows])
    model = HiddenMarkov(initial, transition)
    found = jax.jit(jax.vmap(lambda x: hmm.hidden_markov_smoother(model, x)))(stack)
    chex.assert_type(found.probabilities, "float32")
    for i, x in enumerate(stack):
        marginals, _, evidence, _, _ = expected(initial, transition, x.astype("float64"))
        np.testing.assert_allclose(found.probabilities[i], marginals, rtol=0, atol=2e-6)
        np.testing.assert_allclose(found.log_evidence[i], evidence, rtol=1e-6, atol=1e-6)


def test_platform_lowers_to_one_algorithm():
    """On a CPU a loop, elsewhere the tree, and the loop on logarithms behind a branch in both."""
    model = HiddenMarkov(jnp.ones(2) / 2, jnp.eye(2))
    run = jax.jit(lambda x: hmm.hidden_markov_filter(model, x, passes=PLATFORM).probabilities)
    lowered = run.trace(jnp.zeros((8, 2)))
    on_cpu = lowered.lower(lowering_platforms=("cpu",)).as_text()
    on_gpu = lowered.lower(lowering_platforms=("cuda",)).as_text()
    assert on_cpu.count("stablehlo.while") == on_gpu.count("stablehlo.while") + 1


@pytest.mark.parametrize(
    ("model", "rows", "message"),
    [
        (HiddenMarkov(np.ones(2), np.eye(3)), np.zeros((4, 2)), r"model.transition .* \[3, 3\]"),
        (HiddenMarkov(np.ones(2), np.eye(2)), np.zeros((4, 3)), r"log_likelihood .* \[4, 3\]"),
        (HiddenMarkov(np.eye(2), np.eye(2)), np.zeros((4, 2)), r"model.initial must be \[k\]"),
        (HiddenMarkov(np.ones(2), np.eye(2) * 1j), np.zeros((4, 2)), "transition must be real"),
    ],
)
def test_refuses_shapes_that_disagree(model, rows, message):
    with pytest.raises(ValueError, match=message):
        hmm.hidden_markov_filter(model, rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"initial": np.array([0.4, 0.4])}, "initial: must sum to 1; it sums to 0.8"),
        ({"transition": np.array([[0.5, 0.5], [0.4, 0.5]])}, "transition: column 0 .* 0.9"),
        ({"transition": np.array([[0.9, 0.1], [0.2, 0.8]])}, "its rows sum to 1: transpose it"),
        ({"transition": np.stack([np.eye(2), 2 * np.eye(2)])}, "column 0 at time 1"),
        ({"emission": np.array([[1.5, 1.0], [-0.5, 0.0]])}, r"emission .* \[1, 0\] is -0.5"),
        ({"emission": np.array([[np.nan, 1.0], [0.0, 0.0]])}, r"emission .* \[0, 0\] is nan"),
    ],
)
def test_check_names_what_is_wrong(change, message):
    model = HiddenMarkov(np.array([0.5, 0.5]), np.eye(2), np.eye(2))
    hmm.check_model(model)
    with pytest.raises(ValueError, match=message):
        hmm.check_model(model._replace(**change))
