"""The same numbers as pymdp where its definitions are the same, from arrays that it computed.

``tests/helpers/pymdp_reference.py`` made them, in float64 but for its tree search.
"""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.inference import inductive
from vfejax.inference.expected_free_energy import expected_free_energy
from vfejax.inference.information_gain import likelihood_information_gain
from vfejax.inference.planning import sophisticated
from vfejax.inference.policies import policy_posterior
from vfejax.inference.pomdp import POMDP, infer_states, learning, windows
from vfejax.inference.pomdp.pymdp_arrays import from_pymdp

# Both work in float64; what differs is where logarithms stop.
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
DEPENDENCIES = {
    "one": {"A_dependencies": [[0], [0]], "B_dependencies": [[0]]},
    "two": {"A_dependencies": [[0, 1], [0], [1]], "B_dependencies": [[0], [0, 1]]},
}


@pytest.fixture(scope="module")
def theirs():
    with np.load(Path(__file__).with_name("pymdp_reference.npz")) as arrays:
        found = dict(arrays)
    assert str(found.pop("version")) == "1.0.4"
    return {name: jnp.asarray(x) for name, x in found.items()}


def group(theirs, name):
    """Numbered arrays as a list."""
    found = [theirs[key] for key in sorted(theirs) if key[:-1] == name and key[-1].isdigit()]
    assert found
    return found


def model_of(theirs, name):
    arrays = {key: group(theirs, f"{name}/{key}") for key in "ABCD"}
    return from_pymdp(**arrays, E=theirs[f"{name}/E"], **DEPENDENCIES[name])


@pytest.mark.parametrize("name", ["one", "two"])
def test_beliefs_values_and_posteriors_of_policies_are_theirs(theirs, name):
    model = model_of(theirs, name)
    policies = np.asarray(theirs[f"{name}/policies"])
    belief = group(theirs, f"{name}/belief")

    @jax.jit
    def plan(model, belief):
        own, _ = infer_states(model, [0] * len(model.A), model.D, num_sweeps=64)
        values = expected_free_energy(model, belief, policies, joint=False).neg_efe
        return own, values, policy_posterior(values, 2.0, model.E)

    own, values, posterior = plan(model, belief)
    # With two factors, 16 of their sweeps have come within this of the fixed point.
    chex.assert_trees_all_close(list(own), belief, rtol=0, atol=1e-9 if name == "one" else 1e-5)
    chex.assert_trees_all_close(values, theirs[f"{name}/neg_efe"], **CLOSE)
    chex.assert_trees_all_close(posterior, theirs[f"{name}/posterior"], **CLOSE)


def test_windows_and_counts_are_theirs(theirs):
    model = model_of(theirs, "one")
    seen, actions = list(theirs["one/observations"]), theirs["one/actions"][:, None]

    @jax.jit
    def told(model):
        smoothed = windows.smooth_states(model, seen, actions)
        messages = windows.marginal_message_passing(model, seen, actions, num_sweeps=64)
        events = learning.Counts(A=learning.count_window(model, seen, actions, smoothed).A)
        updated = learning.update_counts(learning.counts_of(model, "A"), events, rate=0.5)
        return smoothed, messages, updated

    smoothed, (messages,), updated = told(model)
    chex.assert_trees_all_close(smoothed.states[0], theirs["one/smoothed"], **CLOSE)
    chex.assert_trees_all_close(-smoothed.info.free_energy, theirs["one/log_evidence"], **CLOSE)
    chex.assert_trees_all_close(messages, theirs["one/messages"], rtol=0, atol=1e-8)
    chex.assert_trees_all_close(list(updated.A), group(theirs, "one/counted_A"), **CLOSE)


def test_the_search_is_theirs_where_one_modality_has_all_outcomes(theirs):
    both = model_of(theirs, "one")
    model = POMDP(both.A[:1], both.B, both.C[:1], both.D)
    values = jax.jit(lambda m: sophisticated(m, m.D, 3, gamma=1.5))(model)
    # Theirs is in float32.
    chex.assert_trees_all_close(
        policy_posterior(values, 1.5),
        theirs["one/sophisticated"].astype(values.dtype),
        rtol=0,
        atol=1e-5,
    )


def test_distances_and_the_inductive_value_of_a_step_are_theirs(theirs):
    move, reach = theirs["inductive/B"], theirs["inductive/reach"]
    model = POMDP([jnp.eye(6)], [move], [jnp.zeros(6)], [jnp.ones(6) / 6])
    intended = inductive.intention(model, [jnp.arange(6) == 4], threshold=0.1, epsilon=1e-3)
    first = [int(row.argmax()) if row.any() else np.inf for row in reach.T]
    assert intended.distances[0].tolist() == first
    assert len(set(first)) >= 4
    value = jax.vmap(jax.vmap(inductive.inductive_value, (None, None, 0)), (None, 0, None))
    found = value(intended, [jnp.eye(6)], [theirs["inductive/later"]])
    chex.assert_trees_all_close(found, theirs["inductive/values"], **CLOSE)


def test_what_would_be_learned_is_theirs_where_states_are_known_and_less_elsewhere(theirs):
    model = model_of(theirs, "one")
    counts = [4 * a for a in model.A]
    gain = jax.vmap(lambda q: likelihood_information_gain(model, counts, [q]))
    chex.assert_trees_all_close(gain(theirs["one/gain_known_belief"]), theirs["one/gain_known"])
    # Their weights are q(o) q(s), which count pairs that never meet.
    found = gain(theirs["one/gain_believed_belief"])
    assert float((theirs["one/gain_believed"] - found).min()) > 0.01
