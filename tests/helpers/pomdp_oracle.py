"""Random discrete models, and what follows from them by summing over everything that can happen."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.inference.pomdp import POMDP


def columns(rng, *shape):
    """Probabilities that sum to 1 over the first axis."""
    found = rng.gamma(0.7, size=shape) + 0.02
    return found / found.sum(axis=0)


def random_model(rng, states, observations, controls, A_dependencies, B_dependencies, dtype):
    """A model with generic numbers."""

    def array(x):
        return jnp.asarray(x, dtype)

    def over(factors):
        return [states[f] for f in factors]

    likelihoods = [
        array(columns(rng, o, *over(deps)))
        for o, deps in zip(observations, A_dependencies, strict=True)
    ]
    transitions = [
        array(columns(rng, s, *over(deps), u))
        for s, u, deps in zip(states, controls, B_dependencies, strict=True)
    ]
    return POMDP(
        likelihoods,
        transitions,
        [array(rng.normal(size=o)) for o in observations],
        [array(columns(rng, s)) for s in states],
        A_dependencies=A_dependencies,
        B_dependencies=B_dependencies,
    )


def one_factor(rng, dtype):
    """One factor of three states, two modalities, two controls."""
    return random_model(rng, (3,), (3, 2), (2,), [[0], [0]], [[0]], dtype)


def three_factors(rng, dtype):
    """Three factors: a modality of all and one of two, a transition that follows another factor."""
    return random_model(
        rng, (2, 3, 2), (4, 3), (2, 1, 2), [[0, 1, 2], [2, 1]], [[0], [1, 0], [2]], dtype
    )


def sharpened(model, power):
    """Likelihoods to a power, so that factors explain an observation away from each other."""
    sharp = [a**power for a in model.A]
    return model.replace(A=[a / jnp.sum(a, axis=0, keepdims=True) for a in sharp])


def numbers(model):
    """The same model with NumPy arrays, for loops over entries."""
    return jax.tree.map(np.asarray, model)


def combinations(model):
    """All combinations of states."""
    return list(itertools.product(*(range(n) for n in model.num_states)))


def likelihood(model, observation, state, there=None):
    """p(o | s) of the modalities that are there; of a model of :func:`numbers`, as what follows."""
    found = 1.0
    for m, factors in enumerate(model.A_dependencies):
        if there is None or there[m]:
            found *= model.A[m][(observation[m], *(state[f] for f in factors))]
    return found


def transition(model, after, before, action):
    """p(s' | s, u)."""
    found = 1.0
    for f, factors in enumerate(model.B_dependencies):
        found *= model.B[f][(after[f], *(before[d] for d in factors), action[f])]
    return found


def start(model, state):
    """p(s)."""
    return np.prod([d[s] for d, s in zip(model.D, state, strict=True)])


def window_posterior(model, observations, actions, there=None):
    """Marginals of each factor ``[t, s_f]`` and the log evidence, over all histories."""
    model = numbers(model)
    steps, states = len(observations[0]), combinations(model)
    seen = [
        [
            likelihood(
                model, [o[t] for o in observations], state, None if there is None else there[t]
            )
            for state in states
        ]
        for t in range(steps)
    ]
    moves = [
        [[transition(model, after, before, action) for before in states] for after in states]
        for action in actions
    ]
    first = [start(model, state) for state in states]
    marginals = [np.zeros((steps, n)) for n in model.num_states]
    total = 0.0
    for history in itertools.product(range(len(states)), repeat=steps):
        weight = first[history[0]]
        for t, state in enumerate(history):
            weight *= seen[t][state]
            if t:
                weight *= moves[t - 1][state][history[t - 1]]
        total += weight
        for t, state in enumerate(history):
            for f, s in enumerate(states[state]):
                marginals[f][t, s] += weight
    return [m / total for m in marginals], np.log(total)
