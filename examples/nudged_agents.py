"""Agents that learn how noisy their senses are, by being nudged: equilibrium propagation of a
variational free energy.

Six agents look at the same number x, each with a noise of its own, unknown to it: ``o_i = x +
noise_i``. They settle at the minimum of their free energy, in which each believes its reading with
a precision that is to be learned, and all align. Then x is shown: F gets one observation more, of
the means, with the small precision beta, once positive and once negative. The difference of ``dF /
dlog std_i`` between the two equilibria is the gradient of the squared error (equilibrium
propagation, centred); finite differences of the settled error check it. Nothing is differentiated
through the settling.

The answer is known. Agents that share a belief weigh their readings by what they take for the
precisions, and with a prior that counts once for all of them the error is least where every agent
knows its own noise, ``w_i = 1 / noise_i^2``. They align firmly but not perfectly, and the number of
scenes is finite: what is learned is near it, not at it.

    python examples/nudged_agents.py

Source: Scellier and Bengio, Front. Comput. Neurosci. 11 (2017) 24; Laborieux et al., Front.
Neurosci. 15 (2021) 633674.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vfejax.agents import alignment
from vfejax.agents.free_energy import Weights, free_energy
from vfejax.agents.observation import expected_negative_log_likelihood, identity_observations
from vfejax.agents.population import Population
from vfejax.beliefs.coordinates import constrain, unconstrain
from vfejax.beliefs.gaussian import Gaussian
from vfejax.energy.equilibrium import centred, equilibrium_propagation
from vfejax.energy.relaxation import gradient_descent
from vfejax.figures.style import CURVES, GREY, INK, new_figure, style_axes
from vfejax.geometry import irreps

TRUE_STD = np.array([0.3, 0.4, 0.55, 0.7, 0.9, 1.2])
NUM_AGENTS = len(TRUE_STD)
SPREAD = 1.0  # standard deviation of x
START_STD = 0.6  # what every agent takes for its noise at first
ALIGNMENT = 8.0
BETA = 0.2
LEARNING_RATE = 0.05
DIFFERENCE = 0.05  # of a logarithm, for the check
RELAX = gradient_descent(0.01, 1500, 3e-4)
GENERATORS = irreps.so3((0,))  # numbers: frames do nothing
# n priors of n times the variance are together one prior.
PRIOR = Gaussian(jnp.zeros((NUM_AGENTS, 1)), jnp.full((NUM_AGENTS, 1, 1), SPREAD * NUM_AGENTS**0.5))


def energy(log_std, state, readings):
    """Free energy in nats of agents with beliefs ``state``, who take ``exp(log_std) [n]`` for the
    noise of their ``readings [n]``.
    """
    belief = constrain(state)
    agents = Population(belief, PRIOR, jnp.zeros((NUM_AGENTS, 3), readings.dtype))
    shared = free_energy(
        agents,
        GENERATORS,
        weights=Weights(1.0, ALIGNMENT, 0.0, 0.0),
        alignment_fn=alignment.entropic,
        temperature=100.0,  # nobody is preferred
    )

    def surprise(mean, chol, reading, std):
        one = Gaussian(mean[None], chol[None])
        observations = identity_observations(reading[None, None, None], std)
        return expected_negative_log_likelihood(one, observations)[0]

    return shared + jnp.sum(jax.vmap(surprise)(*belief, readings, jnp.exp(log_std)))


def cost(state, truth):
    """Half the squared errors of the agents' means: an observation of x with precision 1."""
    return 0.5 * jnp.sum((state.mean - truth) ** 2)


LEARN = equilibrium_propagation(energy, cost, RELAX, centred(BETA))
START = unconstrain(PRIOR._replace(chol=jnp.full((NUM_AGENTS, 1, 1), START_STD)))


def draw_scenes(rng, num_scenes):
    """x ``[scenes]`` and readings ``[scenes, n]``."""
    truth = SPREAD * rng.standard_normal(num_scenes)
    readings = truth[:, None] + TRUE_STD * rng.standard_normal((num_scenes, NUM_AGENTS))
    return jnp.asarray(truth, jnp.float32), jnp.asarray(readings, jnp.float32)


@jax.jit
def learn_from(log_std, truth, readings):
    """Mean cost over scenes, its gradient, and whether every relaxation converged."""
    costs, gradients, info = jax.vmap(lambda o, x: LEARN(log_std, o, x, START))(readings, truth)
    converged = jnp.all(info.free.converged) & jnp.all(info.nudged.converged)
    return jnp.mean(costs), jnp.mean(gradients, axis=0), converged


def draw(history, errors, best):
    figure = new_figure(3.4)
    left, right = figure.subplots(1, 2)
    for i, (curve, truth) in enumerate(zip(history.T, TRUE_STD, strict=True)):
        left.plot(curve, color=CURVES[i], linewidth=1.4)
        left.axhline(truth, color=CURVES[i], linestyle="--", linewidth=0.8)
    left.set_yscale("log")
    left.set_yticks(TRUE_STD, [f"{x:g}" for x in TRUE_STD])
    left.minorticks_off()
    style_axes(left, xlabel="update", ylabel="noise", title="What agents take for their noise")
    right.plot(errors, color=INK, linewidth=1.2)
    right.axhline(best, color=GREY, linestyle="--", linewidth=1)
    style_axes(
        right,
        xlabel="update",
        ylabel="error",
        title="Error; dashed: best estimate",
    )
    return figure


def main(num_updates=120, num_scenes=150, out=Path("runs/examples")):
    """Learn, compare with the truth, draw into the folder ``out``.

    Returns the noise learned ``[n]``; the first gradient beside finite differences ``[2, n]``; and
    the errors on fresh scenes of equal noise, of the noise learned, of the true noise, and of the
    best estimate, the posterior mean.
    """
    rng = np.random.default_rng(0)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, num_updates))
    first = log_std = jnp.full(NUM_AGENTS, np.log(START_STD), jnp.float32)
    state = optimizer.init(log_std)
    scenes = draw_scenes(rng, num_scenes)
    _, gradient, converged = learn_from(log_std, *scenes)
    steps = DIFFERENCE * np.eye(NUM_AGENTS, dtype=np.float32)
    up, down = (
        np.array([float(learn_from(first + sign * step, *scenes)[0]) for step in steps])
        for sign in (1, -1)
    )
    slopes = np.stack([np.asarray(gradient), (up - down) / (2 * DIFFERENCE)])
    history, errors, settled = [np.exp(first)], [], [bool(converged)]
    for _ in range(num_updates):
        loss, gradient, converged = learn_from(log_std, *draw_scenes(rng, num_scenes))
        updates, state = optimizer.update(gradient, state)
        log_std = optax.apply_updates(log_std, updates)
        history.append(np.exp(log_std))
        errors.append(error_of(loss))
        settled.append(bool(converged))
    fresh = [draw_scenes(rng, num_scenes) for _ in range(8)]
    kinds = {
        "all alike": first,
        "learned": log_std,
        "true": jnp.log(jnp.asarray(TRUE_STD, jnp.float32)),
    }
    found = {
        name: error_of(np.mean([learn_from(x, *part)[0] for part in fresh]))
        for name, x in kinds.items()
    }
    found["best estimate"] = float(np.sqrt(np.mean([best_error(*part) ** 2 for part in fresh])))
    print("gradient, by nudges      " + " ".join(f"{x:8.4f}" for x in slopes[0]))
    print("gradient, by differences " + " ".join(f"{x:8.4f}" for x in slopes[1]))
    print(f"all relaxations converged: {all(settled)}")
    print("\nnoise, true              " + " ".join(f"{x:8.2f}" for x in TRUE_STD))
    print("noise, learned           " + " ".join(f"{x:8.2f}" for x in history[-1]))
    for name, error in found.items():
        print(f"error on fresh scenes, {name:<14} {error:.4f}")
    out.mkdir(parents=True, exist_ok=True)
    draw(np.array(history), errors, found["best estimate"]).savefig(out / "nudged_agents.png")
    print(f"wrote {out / 'nudged_agents.png'}")
    return history[-1], slopes, found


def best_error(truth, readings):
    """Root-mean-square error of the posterior mean, by who knows every noise."""
    weights = TRUE_STD**-2.0
    mean = np.asarray(readings) @ weights / (SPREAD**-2 + np.sum(weights))
    return float(np.sqrt(np.mean((mean - np.asarray(truth)) ** 2)))


def error_of(loss):
    """Root-mean-square error of a mean at this mean cost."""
    return float(np.sqrt(2.0 * loss / NUM_AGENTS))


if __name__ == "__main__":
    main()
