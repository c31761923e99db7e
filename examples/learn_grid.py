"""An agent learns the map that it walks on: what places look like, and where moves lead.

The world is a grid of three times four places with a wall and a reward in the far corner. One move
in ten fails, and one look in ten shows another place. The agent knows where it starts and what a
reward is. Of its likelihood A of places it has a weak idea, of its transitions B none at all: both
are learned by Dirichlet counts, by looking back over each episode. One agent also counts as value
what it would learn (novelty), another one does not; an agent that knows the world is the reference.

    python examples/learn_grid.py

Writes runs/examples/learn_grid.png.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.figures.style import CURVES, INK, new_figure, style_axes
from vfejax.inference.active_inference import agent, policy_planner
from vfejax.inference.learning_agents import episode_learner
from vfejax.inference.policies import enumerate_policies
from vfejax.inference.pomdp.learning import Counts, expected_model
from vfejax.problems.environments import process
from vfejax.problems.episodes import learn_episode, run_episode
from vfejax.problems.grid_world import grid_world

MAP = "S...\n.#..\n...1"
NUM_STEPS, HORIZON, GAMMA, REWARD = 15, 3, 4.0, 1


def world():
    """The grid with looks that may show any other place."""
    model = grid_world(MAP, slip=0.1)
    num = model.num_states[0]
    see = 0.9 * jnp.eye(num) + 0.1 / (num - 1) * (1 - jnp.eye(num))
    return model.replace(A=[see, *model.A[1:]])


def ignorance(model) -> Counts:
    """Counts before all data: a weak idea of looks, none of moves; what else there is is known."""
    num = model.num_states[0]
    looks = 0.1 + 0.9 * jnp.eye(num)
    return Counts(
        A=(looks, *(100.0 * a for a in model.A[1:])),
        B=(jnp.full(model.B[0].shape, 0.1), 100.0 * model.B[1]),
    )


@partial(jax.jit, static_argnames=("curious", "num_episodes"))
def learn(model, keys, *, curious: bool, num_episodes: int):
    """Reward in each episode, and errors of A and B after it: half the sum of absolute differences,
    averaged over columns, ``[learners, episodes]``.
    """
    policies, prior = enumerate_policies(model, HORIZON), ignorance(model)

    def planner_fn(counts: Counts):
        return policy_planner(policies, gamma=GAMMA, counts=counts if curious else None)

    learner = episode_learner(model, planner_fn, prior)

    def step(counts, key):
        counts, episode = learn_episode(learner, process(model), counts, key, NUM_STEPS)
        found = expected_model(model, counts)
        errors = [
            0.5 * jnp.mean(jnp.sum(jnp.abs(x[0] - y[0]), axis=0))
            for x, y in ((found.A, model.A), (found.B, model.B))
        ]
        return counts, (jnp.sum(episode.observations[:, 1] == REWARD), *errors)

    def one(key):
        return jax.lax.scan(step, prior, jax.random.split(key, num_episodes))[1]

    return jax.vmap(one)(keys)


@jax.jit
def know(model, keys):
    """Reward of an agent that knows the world, ``[episodes]``."""
    player = agent(model, policy_planner(enumerate_policies(model, HORIZON), gamma=GAMMA))
    episodes = jax.vmap(lambda key: run_episode(player, process(model), key, NUM_STEPS))(keys)
    return jnp.sum(episodes.observations[..., 1] == REWARD, axis=1)


def draw(results: dict, reference: float):
    """Steps on the reward on the left, errors of what was learned on the right."""
    figure = new_figure(3.4)
    left, right = figure.subplots(1, 2)
    for (name, (rewards, looks, moves)), colour in zip(results.items(), CURVES, strict=False):
        episodes = np.arange(1, rewards.shape[1] + 1)
        groups, middles = (
            np.array_split(x, max(len(episodes) // 5, 1), axis=-1) for x in (rewards, episodes)
        )
        blocks = np.array([group.mean(axis=1) for group in groups])  # of five episodes
        middle = [group.mean() for group in middles]
        mean, error = blocks.mean(axis=1), blocks.std(axis=1) / np.sqrt(len(rewards))
        left.plot(middle, mean, color=colour, linewidth=1.6, label=name)
        left.fill_between(middle, mean - 2 * error, mean + 2 * error, color=colour, alpha=0.2)
        right.plot(episodes, moves.mean(axis=0), color=colour, linewidth=1.6, label=f"B, {name}")
        right.plot(episodes, looks.mean(axis=0), ":", color=colour, label=f"A, {name}")
    left.axhline(reference, color=INK, linewidth=1.0, linestyle="--", label="the world is known")
    left.set_ylim(0.0, 1.4 * reference)  # room for the legend
    right.set_ylim(bottom=0.0)
    for ax in (left, right):
        ax.legend(frameon=False, labelcolor=INK)
    title = f"Steps on the reward, of {NUM_STEPS}"
    style_axes(left, xlabel="episode", ylabel="steps", title=title)
    style_axes(right, xlabel="episode", ylabel="total variation", title="Error of what was learned")
    return figure


def main(
    num_learners: int = 16, num_episodes: int = 80, out: Path = Path("runs/examples")
) -> tuple[dict, float]:
    """Print and draw learning curves.

    Args:
        num_learners: agents side by side, of which means are taken.
        num_episodes: of each.
        out: where the picture is written.

    Returns:
        ``{agent: (reward, error of A, error of B)}``, each ``[learners, episodes]``, and the reward
        of an agent that knows the world.
    """
    model, keys = world(), jax.random.split(jax.random.key(0), num_learners)
    results = {
        name: tuple(
            np.asarray(x) for x in learn(model, keys, curious=curious, num_episodes=num_episodes)
        )
        for name, curious in (("with novelty", True), ("without", False))
    }
    reference = float(np.mean(know(model, jax.random.split(jax.random.key(1), 256))))

    print(f"steps on the reward, of {NUM_STEPS}; the world is known: {reference:.1f}")
    quarter = max(num_episodes // 4, 1)
    for name, (rewards, looks, moves) in results.items():
        print(
            f"{name:<14} first episodes {rewards[:, :quarter].mean():.1f}, "
            f"last {rewards[:, -quarter:].mean():.1f}; error of A {looks[:, -1].mean():.2f}, "
            f"of B {moves[:, -1].mean():.2f}"
        )
    out.mkdir(parents=True, exist_ok=True)
    draw(results, reference).savefig(out / "learn_grid.png")
    print(f"wrote {out / 'learn_grid.png'}")
    return results, reference


if __name__ == "__main__":
    main()
