"""What moves an agent, read from what it does: parameters fitted to behaviour by gradients.

Each of some subjects plays a T-maze many times. They differ in how much a reward means to them (in
nats; a punishment is twice as bad) and in how often they believe the cue to be right. From their
observations and actions alone both are found again, with standard errors, by ascent on the log
likelihood of the actions; its gradient goes through perception and planning.

    python examples/fit_behaviour.py

Writes runs/examples/fit_behaviour.png.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.figures.style import CURVES, GREY, new_figure, style_axes
from vfejax.inference.active_inference import agent, policy_planner
from vfejax.inference.behaviour import behaviour_log_likelihood
from vfejax.inference.policies import enumerate_policies
from vfejax.problems.environments import process, t_maze
from vfejax.problems.episodes import run_episode

MAZE, NUM_STEPS, CUE = t_maze(validity=0.8), 3, 3
PLANNER = policy_planner(enumerate_policies(MAZE, 2), gamma=1.0)


class Subject(NamedTuple):
    """Unconstrained parameters: the logarithm of the reward, and the logit of the cue."""

    log_reward: jax.Array
    logit_cue: jax.Array


def model_of(subject: Subject):
    """What the subject believes of the maze, and what it wants."""
    reward, right = jnp.exp(subject.log_reward), jax.nn.sigmoid(subject.logit_cue)
    told = jnp.stack([jnp.stack([right, 1 - right]), jnp.stack([1 - right, right])])
    cue = MAZE.A[2].at[1:, CUE].set(told)
    outcomes = jnp.stack([jnp.zeros_like(reward), reward, -2 * reward])
    return MAZE.replace(A=[*MAZE.A[:2], cue], C=[MAZE.C[0], outcomes, MAZE.C[2]])


@partial(jax.jit, static_argnums=2)
@partial(jax.vmap, in_axes=(0, 0, None))
def behave(subject: Subject, key: jax.Array, num_episodes: int):
    """Observations and actions of a subject, ``[episodes, t, ...]``."""
    player = agent(model_of(subject), PLANNER)
    episodes = jax.vmap(lambda k: run_episode(player, process(MAZE), k, NUM_STEPS))(
        jax.random.split(key, num_episodes)
    )
    return episodes.observations, episodes.decisions.action


def log_likelihoods(subject: Subject, observations: jax.Array, actions: jax.Array) -> jax.Array:
    """Of the actions of each episode, ``[episodes]``, in nats."""
    model = model_of(subject)
    return jax.vmap(lambda o, a: behaviour_log_likelihood(model, PLANNER, o, a).log_likelihood)(
        observations, actions
    )


@partial(jax.jit, static_argnums=2)
@partial(jax.vmap, in_axes=(0, 0, None))
def fit(observations: jax.Array, actions: jax.Array, num_updates: int):
    """Estimates and their standard errors, by scoring: ``theta <- theta + I^-1 sum_n g_n``.

    ``g_n`` is the gradient of an episode's log likelihood, ``I = sum_n g_n g_n^T`` the information
    in all of them. Two parameters need two directions forward and nothing backward.
    """

    def scores(subject: Subject) -> tuple[jax.Array, jax.Array]:
        slopes = jax.jacfwd(log_likelihoods)(subject, observations, actions)
        g = jnp.stack(slopes, axis=1)
        (a, b), (_, c) = g.T @ g
        inverse = jnp.stack([jnp.stack([c, -b]), jnp.stack([-b, a])]) / (a * c - b * b)
        return inverse, jnp.sum(g, axis=0)

    def update(subject: Subject, _: None) -> tuple[Subject, None]:
        inverse, slope = scores(subject)
        step = inverse @ slope
        step = step * jnp.minimum(1.0, 0.5 / jnp.max(jnp.abs(step)))  # information is local
        return Subject(subject.log_reward + step[0], subject.logit_cue + step[1]), None

    def climb(logit_cue: jax.Array) -> tuple[Subject, jax.Array]:
        first = Subject(jnp.zeros_like(logit_cue), logit_cue)
        found, _ = jax.lax.scan(update, first, None, length=num_updates)
        return found, jnp.sum(log_likelihoods(found, observations, actions))

    # Small rewards leave two hills; the higher one counts.
    ends, heights = jax.vmap(climb)(jnp.array([0.5, 2.5], jnp.float32))
    found = jax.tree.map(lambda x: x[jnp.argmax(heights)], ends)
    return found, Subject(*jnp.sqrt(jnp.diag(scores(found)[0])))


def draw(truth: dict, found: dict, errors: dict):
    """Found against true, a panel for each parameter, with two standard errors."""
    figure = new_figure(3.6)
    for ax, name, colour in zip(figure.subplots(1, 2), truth, CURVES, strict=False):
        ends = [min(truth[name]), max(truth[name])]
        ax.plot(ends, ends, color=GREY, linewidth=1.0)
        ax.errorbar(truth[name], found[name], 2 * errors[name], fmt="o", color=colour, markersize=4)
        style_axes(ax, xlabel=f"{name}, true", ylabel="found from actions", title=name)
    return figure


def main(
    num_subjects: int = 12,
    num_episodes: int = 200,
    num_updates: int = 12,
    out: Path = Path("runs/examples"),
) -> tuple[Subject, Subject, Subject]:
    """Print and draw what is found; returns true parameters, estimates and standard errors.

    Args:
        num_subjects: of different parameters.
        num_episodes: that each plays.
        num_updates: of the fit.
        out: where the picture is written.
    """
    rng = np.random.default_rng(0)
    truth = Subject(
        jnp.asarray(np.log(rng.uniform(0.5, 2.5, num_subjects)), jnp.float32),
        jnp.asarray(rng.uniform(0.5, 3.0, num_subjects), jnp.float32),
    )
    keys = jax.random.split(jax.random.key(0), num_subjects)
    found, errors = fit(*behave(truth, keys, num_episodes), num_updates)

    def shown(subject: Subject) -> dict:
        return {
            "reward (nats)": np.exp(subject.log_reward),
            "probability of a right cue": np.asarray(jax.nn.sigmoid(subject.logit_cue)),
        }

    true, mean = shown(truth), shown(found)
    right = mean["probability of a right cue"]
    spread = {
        "reward (nats)": mean["reward (nats)"] * np.asarray(errors.log_reward),
        "probability of a right cue": right * (1 - right) * np.asarray(errors.logit_cue),
    }
    for name in true:
        distance = np.abs(mean[name] - true[name]) / spread[name]
        print(
            f"{name:<28} standard error {np.median(spread[name]):.3f}, "
            f"distance from the truth in standard errors {np.sqrt(np.mean(distance**2)):.2f} (rms)"
        )
    out.mkdir(parents=True, exist_ok=True)
    draw(true, mean, spread).savefig(out / "fit_behaviour.png")
    print(f"wrote {out / 'fit_behaviour.png'}")
    return truth, found, errors


if __name__ == "__main__":
    main()
