"""The expected free energy and its terms, against sums over states and joint outcomes."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import pomdp_oracle
from scipy.special import digamma, gammaln, logsumexp

from vfejax.inference import expected_free_energy as module
from vfejax.inference import information_gain as gain
from vfejax.inference.expected_free_energy import expected_free_energy
from vfejax.inference.inductive import intention
from vfejax.inference.policies import enumerate_policies
from vfejax.inference.pomdp import POMDP


def compiled(model, policies, **options):
    """The expected free energy from one program: one by one its operations take longer."""
    return jax.jit(lambda m: expected_free_energy(m, m.D, policies, **options))(model)


def brute_beliefs(model, beliefs, policy):
    """Factorised predictions after each step of a policy."""
    for action in policy:
        after = [np.zeros(n) for n in model.num_states]
        for before in pomdp_oracle.combinations(model):
            weight = np.prod([q[s] for q, s in zip(beliefs, before, strict=True)])
            for f, factors in enumerate(model.B_dependencies):
                column = (slice(None), *(before[d] for d in factors), action[f])
                after[f] += weight * model.B[f][column]
        beliefs = after
        yield beliefs


def brute_terms(model, beliefs):
    """Utility, joint and separate information, risk and ambiguity of one step."""
    outcomes = list(itertools.product(*(range(n) for n in model.num_observations)))
    table = np.zeros((len(outcomes), len(pomdp_oracle.combinations(model))))
    weights = []
    for s, state in enumerate(pomdp_oracle.combinations(model)):
        weights.append(np.prod([q[x] for q, x in zip(beliefs, state, strict=True)]))
        table[:, s] = [pomdp_oracle.likelihood(model, o, state) for o in outcomes]
    weights, seen = np.array(weights), table @ np.array(weights)

    def information(likelihood):
        total = likelihood @ weights
        return np.sum(weights * likelihood * np.log(likelihood / total[:, None]))

    preferred = np.array([sum(c[o] for c, o in zip(model.C, row, strict=True)) for row in outcomes])
    normalised = preferred - sum(np.log(np.exp(c).sum()) for c in model.C)
    separate = 0.0
    for m, size in enumerate(model.num_observations):
        rows = np.array(outcomes)[:, m]
        separate += information(np.stack([table[rows == o].sum(axis=0) for o in range(size)]))
    return {
        "utility": seen @ preferred,
        "state_information_gain": information(table),
        "state_information_gain_per_modality": separate,
        "risk": np.sum(seen * (np.log(seen) - normalised)),
        "ambiguity": -np.sum(weights * np.sum(table * np.log(table), axis=0)),
    }


@pytest.mark.parametrize("make", [pomdp_oracle.one_factor, pomdp_oracle.three_factors])
def test_every_term_is_a_sum_over_states_and_outcomes(rng, make):
    model = make(rng, jnp.float64)
    policies = enumerate_policies(model, 2)
    tables = jax.jit(gain.observation_entropies)(model)
    found, known, doubled = jax.jit(
        lambda m: tuple(
            expected_free_energy(m, m.D, policies, entropies=entropies)
            for entropies in (None, tables, [2 * np.asarray(table) for table in tables])
        )
    )(model)
    chex.assert_trees_all_close(found, known, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(doubled.ambiguity, 2 * found.ambiguity, rtol=1e-13)
    plain = pomdp_oracle.numbers(model)
    for p in (0, len(policies) - 1, 2):
        for step, beliefs in enumerate(brute_beliefs(plain, plain.D, policies[p])):
            for name, value in brute_terms(plain, beliefs).items():
                np.testing.assert_allclose(getattr(found, name)[p, step], value, rtol=0, atol=1e-13)
    # Both decompositions, and the constant by which they differ.
    constant = 2 * sum(logsumexp(c) for c in plain.C)
    found = jax.device_get(found)
    chex.assert_trees_all_close(
        found.neg_efe,
        np.sum(found.utility + found.state_information_gain, axis=1),
        constant - np.sum(found.risk + found.ambiguity, axis=1),
        rtol=1e-13,
    )


def test_traced_policies_cost_more_and_say_the_same(rng, dtype):
    model = pomdp_oracle.three_factors(rng, dtype)
    policies = enumerate_policies(model, 2)
    shared = jax.jit(lambda m: expected_free_energy(m, m.D, policies))
    copied = jax.jit(lambda m, p: expected_free_energy(m, m.D, p))
    chex.assert_trees_all_close(
        shared(model), copied(model, policies), rtol=float(64 * jnp.finfo(dtype).eps)
    )
    costs = [
        f.lower(model, *more).compile().cost_analysis()["flops"]
        for f, more in ((shared, ()), (copied, (jnp.asarray(policies),)))
    ]
    assert costs[0] < costs[1]


def test_what_two_modalities_both_say_counts_once(rng):
    see = jnp.asarray(pomdp_oracle.columns(rng, 3, 3))
    arrays = np.eye(3)[..., None], np.eye(3), np.zeros(3), np.ones(3) / 3
    stay, certain, none, start = (jnp.asarray(x) for x in arrays)
    once = POMDP([see], [stay], [none], [start])
    twice = POMDP([certain, certain], [stay], [none] * 2, [start])
    gains = jax.jit(
        lambda m: (
            gain.state_information_gain(m, m.D),
            gain.state_information_gain_per_modality(m, m.D),
        )
    )
    chex.assert_trees_all_close(jax.device_get(gains(twice)), (np.log(3.0), 2 * np.log(3.0)))
    chex.assert_trees_all_close(*gains(once), rtol=1e-14)


def test_many_modalities_of_their_own_factors_need_no_joint_table():
    factors = 12
    arrays = np.eye(4), np.eye(4)[..., None], np.zeros(4), np.ones(4) / 4
    see, stay, none, start = (jnp.asarray(x) for x in arrays)
    model = POMDP(
        [see] * factors,
        [stay] * factors,
        [none] * factors,
        [start] * factors,
        A_dependencies=[[f] for f in range(factors)],
    )
    found = jax.jit(lambda m: gain.state_information_gain(m, m.D))(model)
    np.testing.assert_allclose(found, factors * np.log(4.0), rtol=1e-14)
    tied = POMDP([see] * 13, [stay], [none] * 13, [start], A_dependencies=[[0]] * 13)
    with pytest.raises(ValueError, match=r"67108864 joint outcomes, more than 2\^24; pass joint="):
        compiled(tied, np.zeros((1, 1, 1), int))
    found = compiled(tied, np.zeros((1, 1, 1), int), joint=False)
    assert found.state_information_gain is None
    np.testing.assert_allclose(found.neg_efe, [13 * np.log(4.0)], rtol=1e-14)


def dirichlet_divergence(after, before):
    """KL(Dir(after) || Dir(before))."""
    total = gammaln(after.sum()) - gammaln(before.sum()) - gammaln(after).sum()
    total += gammaln(before).sum()
    return total + ((after - before) * (digamma(after) - digamma(after.sum()))).sum()


def test_gains_about_parameters_are_expected_divergences_of_counts(rng):
    model = pomdp_oracle.one_factor(rng, jnp.float64)
    a_counts = [rng.gamma(1.0, size=a.shape) + 0.1 for a in model.A]
    b_counts = [rng.gamma(1.0, size=b.shape) + 0.1 for b in model.B]
    policies = enumerate_policies(model, 1)
    found = jax.device_get(compiled(model, policies, A_counts=a_counts, B_counts=b_counts))

    def column(counts):
        counts = np.asarray(counts)
        return sum(
            c / counts.sum() * dirichlet_divergence(counts + np.eye(len(counts))[o], counts)
            for o, c in enumerate(counts)
        )

    start = np.asarray(model.D[0])
    for p, policy in enumerate(policies):
        action = policy[0, 0]
        after = np.asarray(model.B[0])[:, :, action] @ start
        expected = sum(after[s] * column(a[:, s]) for a in a_counts for s in range(3))
        expected += sum(start[s] * column(b_counts[0][:, s, action]) for s in range(3))
        np.testing.assert_allclose(found.parameter_information_gain[p, 0], expected, rtol=1e-11)
    chex.assert_trees_all_close(
        found.neg_efe,
        np.sum(
            found.utility + found.state_information_gain + found.parameter_information_gain, axis=1
        ),
    )


def test_the_product_form_averages_over_pairs_that_never_meet(rng):
    model = pomdp_oracle.one_factor(rng, jnp.float64)
    counts = [rng.gamma(1.0, size=a.shape) + 0.1 for a in model.A]
    expected, plain = 0.0, pomdp_oracle.numbers(model)
    for likelihood, table in zip(plain.A, counts, strict=True):
        seen = likelihood @ plain.D[0]
        weights = 1 / table - 1 / table.sum(axis=0, keepdims=True)
        expected += seen @ weights @ plain.D[0]
    forms = gain.likelihood_information_gain, gain.likelihood_information_gain_product
    gains = jax.jit(lambda m, counts: [about(m, counts, m.D) for about in forms])
    np.testing.assert_allclose(gains(model, counts)[1], expected, rtol=1e-14)
    # Counts of 0 are observations that cannot come.
    impossible = [np.zeros_like(c) for c in counts]
    for table in impossible:
        table[0] = 1.0
    assert [float(value) for value in gains(model, impossible)] == [0.0, 0.0]


def test_steps_of_the_tree_are_the_same_together_and_apart(rng, monkeypatch):
    plain = pomdp_oracle.three_factors(rng, jnp.float64)
    model = plain.replace(C=[rng.normal(size=(2, *c.shape)) for c in plain.C])
    numbers = pomdp_oracle.numbers(plain)
    counts = {"A_counts": [4 * a for a in numbers.A], "B_counts": [9 * b for b in numbers.B]}
    goals = [np.array([True, False]), None, np.array([False, True])]
    intended = jax.jit(lambda m: intention(m, goals))(model)
    policies = enumerate_policies(model, 2)[::-1]
    found = []
    for few in (0, 20):  # 4 and 16 nodes, each step alone and both together
        monkeypatch.setattr(module, "_FEW_NODES", few)
        found.append(
            jax.jit(lambda m: expected_free_energy(m, m.D, policies, intention=intended, **counts))(
                model
            )
        )
    chex.assert_trees_all_close(found[0], found[1], rtol=1e-12)
    for term in found[0]:
        assert np.abs(term).max() > 0


def test_gradients_reach_every_array(rng):
    model = pomdp_oracle.three_factors(rng, jnp.float64)
    policies = enumerate_policies(model, 2)

    @jax.jit
    def value(m):
        return jnp.sum(expected_free_energy(m, m.D, policies).neg_efe[:3])

    model, slopes = jax.device_get((model, jax.jit(jax.grad(value))(model)))
    for slope in jax.tree.leaves(slopes):
        assert np.isfinite(slope).all()
        assert np.abs(slope).max() > 0
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), model)
    above = jax.tree.map(lambda x, d: x + 1e-6 * d, model, direction)
    below = jax.tree.map(lambda x, d: x - 1e-6 * d, model, direction)
    secant = (value(above) - value(below)) / 2e-6
    products = jax.tree.map(np.vdot, slopes, direction)
    # Rounding over 2e-6, and the third derivative times 1e-12.
    chex.assert_trees_all_close(sum(jax.tree.leaves(products)), secant, rtol=1e-7)


def test_outcomes_that_must_not_be_and_preferences_by_step():
    move = np.stack([np.eye(2), 1 - np.eye(2)], axis=-1)
    arrays = [np.eye(2)], [move], [np.array([0.0, -np.inf])], [np.array([1.0, 0.0])]
    forbidden = POMDP(*jax.tree.map(jnp.asarray, arrays))
    found = compiled(forbidden, enumerate_policies(forbidden, 1))
    assert found.neg_efe.tolist() == [0.0, -np.inf]
    changing = forbidden.replace(C=[jnp.array([[0.0, 1.0], [2.0, 0.0]])])
    policies = enumerate_policies(changing, 2)
    found = compiled(changing, policies)
    assert found.utility.tolist() == [[0.0, 2.0], [0.0, 0.0], [1.0, 0.0], [1.0, 2.0]]
    with pytest.raises(ValueError, match=r"C\[0\] has 2 steps and the policies have 3"):
        expected_free_energy(changing, changing.D, enumerate_policies(changing, 3))


def test_counts_of_other_shapes_are_named(rng):
    model = pomdp_oracle.one_factor(rng, jnp.float64)
    for about in (gain.likelihood_information_gain, gain.likelihood_information_gain_product):
        with pytest.raises(ValueError, match=r"counts of A must have its shapes .*\[2, 3\]\], got"):
            about(model, [a[:2] for a in model.A], model.D)
    for about in (gain.transition_information_gain, gain.transition_information_gain_product):
        with pytest.raises(ValueError, match=r"counts of B must have its shapes .*, got \[\]"):
            about(model, [], model.D)
