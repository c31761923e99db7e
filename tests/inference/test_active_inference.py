"""How agents draw what they do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.inference.active_inference import agent, policy_planner, whole_policies
from vfejax.inference.anytime import anytime_agent
from vfejax.inference.learning_agents import episode_learner, step_learner
from vfejax.inference.pomdp import POMDP
from vfejax.inference.pomdp.learning import counts_of

MOVE = jnp.stack([jnp.eye(2), 1 - jnp.eye(2)], axis=-1)  # stay, change
POLICIES = np.array([[[0, 0]], [[0, 1]], [[1, 1]], [[1, 0]]])
NUM_DRAWS = 500


@pytest.fixture(scope="module")
def model():
    """Two factors of two states, and a preference for neither or both having changed."""
    same = np.zeros((2, 2, 2))
    same[1, [0, 1], [0, 1]] = same[0, [0, 1], [1, 0]] = 1.0
    start = jnp.array([1.0, 0.0])
    return POMDP([jnp.asarray(same)], [MOVE, MOVE], [jnp.array([0.0, 40.0])], [start, start])


@pytest.fixture(scope="module")
def steps(model):
    """The actions of many first steps of each kind of agent, by how it draws."""
    planner, counts = policy_planner(POLICIES, gamma=1.0), counts_of(model, "D")

    def kinds(**options):
        plain = agent(model, planner, **options)
        learners = [
            make(model, lambda counts: planner, counts, **options).agent(counts)
            for make in (episode_learner, step_learner)
        ]
        (anytime, _), start = anytime_agent(model, [planner], **options)[::-1]
        pairs = [(x.step, x.init) for x in (plain, *learners)] + [(anytime, start)]
        return [lambda key, s=step, i=init: s(i(), [1], key)[1].action for step, init in pairs]

    ways = {"apart": {}, "whole": {"draw_fn": whole_policies(POLICIES)}}
    found = {name: kinds(**options) for name, options in ways.items()}
    run = jax.jit(lambda keys: jax.tree.map(lambda draw: jax.vmap(draw)(keys), found))
    return jax.device_get(run(jax.random.split(jax.random.key(0), NUM_DRAWS)))


def test_controls_of_a_policy_that_is_drawn_whole_stay_together(steps):
    for actions in steps["whole"]:
        assert (actions[:, 0] == actions[:, 1]).all()
        # Both ways are equally good; four standard errors of their share.
        assert abs(actions[:, 0].mean() - 0.5) < 4 * 0.5 / np.sqrt(NUM_DRAWS)


def test_controls_that_are_drawn_apart_can_be_those_of_no_good_policy(steps):
    for actions in steps["apart"]:
        share = (actions[:, 0] != actions[:, 1]).mean()
        assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(NUM_DRAWS)


def test_without_temperature_the_best_policy_is_taken_not_the_best_controls(model):
    """Habits of 0.36 for (0, 1), 0.34 for (1, 0) and 0.3 for (1, 1), the best controls."""
    habitual = model.replace(E=jnp.array([0.0, 0.36, 0.3, 0.34]), C=[jnp.zeros(2)])
    for options, expected in (({}, [1, 1]), ({"draw_fn": whole_policies(POLICIES)}, [0, 1])):
        chooser = agent(habitual, policy_planner(POLICIES), temperature=0, **options)
        step = jax.jit(lambda key, chooser=chooser: chooser.step(chooser.init(), [1], key))
        assert step(jax.random.key(0))[1].action.tolist() == expected


def test_policies_of_another_planner_are_refused(model):
    chooser = agent(model, policy_planner(POLICIES), draw_fn=whole_policies(POLICIES[:2]))
    with pytest.raises(ValueError, match="policies must be the 4 of the planner, got 2"):
        chooser.step(chooser.init(), jnp.array([1]), jax.random.key(0))
