"""What pymdp computes for a few models: beliefs, values of policies, learning.

Not run by the tests: it needs pymdp (made with inferactively-pymdp 1.0.4 and jax 0.10.2).

    JAX_ENABLE_X64=1 python tests/helpers/pymdp_reference.py tests/inference/pymdp_reference.npz

The file holds the arrays of each model (``one/A0``, ...) and what pymdp makes of them. One model
has one factor, so that beliefs are exact in both programs; another has two factors that modalities
and a transition share.
"""

import sys
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
from pymdp import algos, control, learning
from pymdp.agent import Agent
from pymdp.planning import si


def columns(rng, *shape):
    """Probabilities over the first axis, none of them near 0."""
    found = rng.gamma(0.7, size=shape) + 0.05
    return found / found.sum(axis=0)


def one_factor(rng):
    """Three states, modalities of three and two values, two controls, habits of 4 policies."""
    return {
        "A": [columns(rng, 3, 3), columns(rng, 2, 3)],
        "B": [columns(rng, 3, 3, 2)],
        "C": [rng.normal(size=3), rng.normal(size=2)],
        "D": [columns(rng, 3)],
        "E": columns(rng, 4),
        "A_dependencies": [[0], [0]],
        "B_dependencies": [[0]],
    }


def two_factors(rng):
    """Three and two states; a modality of both, one of each, and a transition that follows both."""
    return {
        "A": [columns(rng, 4, 3, 2), columns(rng, 3, 3), columns(rng, 2, 2)],
        "B": [columns(rng, 3, 3, 2), columns(rng, 2, 3, 2, 2)],
        "C": [rng.normal(size=4), rng.normal(size=3), rng.normal(size=2)],
        "D": [columns(rng, 3), columns(rng, 2)],
        "E": columns(rng, 16),
        "A_dependencies": [[0, 1], [0], [1]],
        "B_dependencies": [[0], [0, 1]],
    }


def keep(into, name, arrays):
    """One array, or a list of them, numbered."""
    if isinstance(arrays, list | tuple):
        into |= {f"{name}{i}": np.asarray(x) for i, x in enumerate(arrays)}
    else:
        into[name] = np.asarray(arrays)


def plans(found, name, model):
    """Beliefs at the first observation, and values and probabilities of policies of two steps."""
    agent = Agent(**model, policy_len=2, gamma=2.0)
    observation = [jnp.array([[0]]) for _ in model["A"]]
    beliefs = agent.infer_states(observation, agent.D)
    posterior, values = agent.infer_policies(beliefs)
    keep(found, f"{name}/belief", [q[0, -1] for q in beliefs])
    keep(found, f"{name}/policies", agent.policies.policy_arr)
    keep(found, f"{name}/posterior", posterior[0])
    keep(found, f"{name}/neg_efe", values[0])


def windows(found, model, observations, actions):
    """Smoother, marginal message passing and counts for a window of the model of one factor."""
    first, second = (jnp.asarray(model["A"][m])[observations[m]] for m in (0, 1))
    moves = jnp.moveaxis(jnp.asarray(model["B"][0])[..., actions], -1, 0)
    start = jnp.asarray(model["D"][0])
    exact = algos.hmm_smoother_scan_colstoch(start, moves, jnp.log(first * second), True)
    keep(found, "one/log_evidence", exact[0])
    keep(found, "one/smoothed", exact[3])
    messages = algos.run_mmp(
        [jnp.asarray(a) for a in model["A"]],
        [moves],
        [jax.nn.one_hot(o, n) for o, n in zip(observations, (3, 2), strict=True)],
        [start],
        [[0], [0]],
        [[0]],
        num_iter=64,
    )
    keep(found, "one/messages", messages[0])
    counts, _ = learning.update_obs_likelihood_dirichlet(
        [jnp.asarray(a) for a in model["A"]],
        model["A"],
        [jnp.asarray(o) for o in observations],
        [exact[3]],
        A_dependencies=[[0], [0]],
        categorical_obs=False,
        num_obs=[3, 2],
        lr=0.5,
    )
    keep(found, "one/counted_A", counts)


def searches(found, model):
    """Sophisticated inference over three steps with one modality, nothing pruned; in float32."""
    single = {name: model[name] for name in "BD"} | {"A": model["A"][:1], "C": model["C"][:1]}
    single = {name: [x.astype(np.float32) for x in group] for name, group in single.items()}
    search = si.si_policy_search(
        horizon=3,
        max_nodes=400,
        policy_prune_threshold=0.0,
        observation_prune_threshold=0.0,
        entropy_stop_threshold=-1.0,
        gamma=1.5,
    )
    agent = Agent(**single, policy_len=1, gamma=1.5)
    posterior, _ = search(agent, [q[:, None] for q in agent.D])
    keep(found, "one/sophisticated", posterior[0])


def intentions(found, rng):
    """Reachability of a goal that can be kept, and the value of one step from each state."""
    move = np.zeros((6, 6, 2))
    for u in range(2):
        move[rng.integers(6, size=6), np.arange(6), u] = 0.8
        move[rng.integers(6, size=6), np.arange(6), u] += 0.2
    move[:, 4, 0] = np.eye(6)[4]
    goal = jnp.eye(6)[4]
    reach = control.generate_I_matrix([goal], [jnp.asarray(move)], 0.1, 6)
    later = jnp.einsum("iju,j->ui", move, jnp.asarray(columns(rng, 6)))
    values = [
        [control.calc_inductive_value_t([q], [p], reach, 1e-3) for p in later] for q in jnp.eye(6)
    ]
    keep(found, "inductive/B", move)
    keep(found, "inductive/reach", reach[0])
    keep(found, "inductive/later", later)
    keep(found, "inductive/values", jnp.array(values))


def gains(found, model, rng):
    """What would be learned about A in each known state, and under a belief."""
    counts = [4 * np.asarray(a) for a in model["A"]]
    for name, belief in [("known", jnp.eye(3)), ("believed", jnp.asarray(columns(rng, 3).T)[None])]:
        rows = []
        for q in belief:
            seen = control.compute_expected_obs([q], model["A"], [[0], [0]])
            rows.append(-control.calc_negative_pA_info_gain(counts, seen, [q], [[0], [0]]))
        keep(found, f"one/gain_{name}", jnp.array(rows))
        keep(found, f"one/gain_{name}_belief", belief)


def main():
    """Write the file."""
    found = {"version": np.array(version("inferactively-pymdp"))}
    rng = np.random.default_rng(13)
    for name, model in [("one", one_factor(rng)), ("two", two_factors(rng))]:
        for key in "ABCDE":
            keep(found, f"{name}/{key}", model[key])
        plans(found, name, model)
        if name == "one":
            observations = rng.integers([3, 2], size=(5, 2)).T
            actions = rng.integers(2, size=4)
            keep(found, "one/observations", observations)
            keep(found, "one/actions", actions)
            windows(found, model, observations, actions)
            with jax.enable_x64(False):
                searches(found, model)
            gains(found, model, rng)
    intentions(found, rng)
    np.savez_compressed(sys.argv[1], **found)
    print(f"{len(found)} arrays of pymdp {found['version']}")


if __name__ == "__main__":
    main()
