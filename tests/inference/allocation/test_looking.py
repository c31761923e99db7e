"""Looking before spending against a search over all actions and reports, in plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.inference.allocation import budgets, looking
from vfejax.inference.pomdp import check_model, infer_states, predict_states

BUDGET, COST, WORTH = 1000, 100, 0.01


plan = jax.jit(looking.plan_looks, static_argnums=1)
region_belief = jax.jit(looking.region_belief, static_argnums=2)
prior_after_looks = jax.jit(looking.prior_after_looks)


def plain_values(belief, looks, detection, false_alarm, spent=0, done=False):
    """Minus the expected free energy of looking at each region and of spending on each."""
    num = len(belief)

    def entropy(p):
        p = np.asarray(p)[np.asarray(p) > 0]
        return -np.sum(p * np.log(p))

    found = []
    for i in range(num):
        seen = np.where(np.arange(num) == i, detection, false_alarm)
        value = entropy([1 - belief @ seen, belief @ seen])
        value -= sum(q * entropy([1 - p, p]) for q, p in zip(belief, seen, strict=True))
        for report in (1 - seen, seen) if looks > 0 else ():
            chance = belief @ report
            if chance > 0:
                after = belief * report / chance
                later = plain_values(after, looks - 1, detection, false_alarm, spent + COST)
                value += chance * max(later)
        found.append(value)
    for i in range(num):
        # Where the tokens went is seen at once, and says whether the thing is there.
        told = entropy([belief[i], 1 - belief[i]])
        found.append(WORTH * (BUDGET - spent) * belief[i] + told)
    return found


def model(belief, looks=2, **options):
    return looking.look_then_spend(
        jnp.asarray(belief),
        budget=BUDGET,
        look_tokens=COST,
        num_looks=looks,
        nats_per_token=WORTH,
        **options,
    )


@pytest.mark.parametrize(("detection", "false_alarm"), [(0.9, 0.1), (0.6, 0.5)])
def test_values_are_those_of_a_search_over_all_plans(rng, detection, false_alarm):
    for belief in (np.full(3, 1 / 3), rng.dirichlet(np.ones(3)), np.array([0.9, 0.1, 0.0])):
        given = model(belief, detection=detection, false_alarm=false_alarm)
        check_model(given)
        expected = plain_values(belief, 2, detection, false_alarm)
        # Beliefs are floored at the smallest number, and normalised again.
        np.testing.assert_allclose(plan(given, 3), expected, rtol=0, atol=1e-9)


def test_it_looks_first_where_looks_are_sure_and_spends_where_it_knows():
    def first(belief, horizon, **options):
        return int(plan(model(belief, **options), horizon).argmax())

    even = [0.4, 0.3, 0.3]
    assert first(even, 2, detection=0.95, false_alarm=0.05) < 3
    # A report that says nothing is not worth its tokens, and neither is one of what is known.
    assert first(even, 2, detection=0.5, false_alarm=0.5) == 3
    assert first([0.99, 0.005, 0.005], 2) == 3
    # Who does not plan ahead spends at once.
    assert first(even, 1, detection=0.95, false_alarm=0.05) == 3


def test_what_a_look_tells_moves_the_tokens_of_patches(rng):
    regions = jnp.array([0, 0, 1, 1, 1, 2])
    log_pi = jnp.log(jnp.asarray(rng.dirichlet(np.ones(6))))
    belief = region_belief(log_pi, regions, 3)
    np.testing.assert_allclose(belief, [np.exp(log_pi)[regions == r].sum() for r in range(3)])
    same = prior_after_looks(log_pi, regions, belief)
    np.testing.assert_allclose(same, log_pi, rtol=1e-12)
    # A look at region 2 that reports the thing: nothing spent, and seen.
    given = model(belief, detection=0.9, false_alarm=0.1)

    @jax.jit
    def after_report(given):
        return infer_states(given, [2, 0], predict_states(given, given.D, [0, 2]))[0][0]

    after = after_report(given)
    expected = np.asarray(belief) * [0.1, 0.1, 0.9]
    np.testing.assert_allclose(after, expected / expected.sum(), rtol=1e-12)
    told = prior_after_looks(log_pi, regions, after)
    np.testing.assert_allclose(region_belief(told, regions, 3), after, rtol=1e-12)
    allocate = jax.jit(lambda x: budgets.allocate(x, 300, 10, 200).tokens)
    before, later = allocate(log_pi), allocate(told)
    assert later[5] > before[5]
    assert later.sum() == 300


def test_arguments_are_refused():
    with pytest.raises(ValueError, match=r"num_looks 11 of look_tokens 100 .* the budget 1000"):
        model([0.5, 0.5], looks=11)
    with pytest.raises(ValueError, match=r"belief must have shape \[r\], r at least 2, got \[1\]"):
        model([1.0])
    with pytest.raises(ValueError, match=r"detection must be a probability, got 1\.5"):
        model([0.5, 0.5], detection=1.5)
    with pytest.raises(ValueError, match="horizon must be 1 to 3, got 4"):
        looking.plan_looks(model([0.5, 0.5]), 4)
    with pytest.raises(ValueError, match=r"one shape \[p\], got \[3\] and \[2\]"):
        looking.region_belief(jnp.zeros(3), jnp.zeros(2, int), 2)
