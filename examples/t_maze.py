"""What information is worth: a T-maze whose cue tells the truth more or less often.

A reward of 3 nats waits in one arm and a punishment of 6 in the other. A cue below tells which, and
is right with the probability on the horizontal axis. Three agents have three actions: one by
expected free energy, one by preferences alone that plans a fixed sequence of actions, and the best
that there is, from the exact values of all beliefs. What the best one expects beyond the fixed
plan is what the cue is worth. Expected free energy gives the answer a value of its own, and asks
once too often where the cue is right in three of four cases.

    python examples/t_maze.py

Writes runs/examples/t_maze.png.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.figures.style import CURVES, INK, new_figure, style_axes
from vfejax.inference.active_inference import agent, sophisticated_planner, utility_planner
from vfejax.inference.policies import enumerate_policies
from vfejax.problems.belief_mdp import evaluate, solve
from vfejax.problems.environments import process, t_maze
from vfejax.problems.episodes import run_episode

HORIZON, REWARD, CUE = 3, 1, 3  # the observation of a reward, and the place of the cue
PLANNERS = {
    # No action leads to more than two outcomes.
    "expected free energy": sophisticated_planner(HORIZON, num_outcomes=2),
    "preferences alone": utility_planner(enumerate_policies(t_maze(), HORIZON)),
}


@partial(jax.jit, static_argnums=0)
def play(planner, model, keys):
    """Utility, whether the reward was found, and whether the cue was asked first, of each episode.

    The last step is a look at what the third action brought.
    """
    player, world = agent(model, planner, temperature=0), process(model)
    episodes = jax.vmap(lambda key: run_episode(player, world, key, HORIZON + 1))(keys)
    outcomes = episodes.observations[:, 1:, 1]
    utility = jnp.sum(model.C[1][outcomes], axis=1)
    return utility, jnp.any(outcomes == REWARD, axis=1), episodes.states[:, 1, 0] == CUE


def best(model) -> tuple[float, float, float]:
    """The same of the optimal policy, exactly."""
    solution = solve(model, HORIZON)
    found = evaluate(model, solution, (1, REWARD))
    first = solution.graph.controls[solution.actions[0, solution.find(model.D)], 0]
    return found.utility.sum(), found.success[-1], first == CUE


def draw(validities: np.ndarray, rows: dict):
    """Utility on the left, the reward found on the right."""
    figure = new_figure(3.4)
    left, right = figure.subplots(1, 2)
    for (name, row), colour in zip(rows.items(), CURVES, strict=False):
        mean, error = row[:, 0], row[:, 3]
        for ax, values in ((left, mean), (right, row[:, 1])):
            dashes = "--" if name == "optimal" else "-"
            ax.plot(validities, values, dashes, color=colour, linewidth=1.6, label=name)
        left.fill_between(validities, mean - 2 * error, mean + 2 * error, color=colour, alpha=0.2)
    left.legend(frameon=False, loc="upper left", labelcolor=INK)
    label = "probability that the cue is right"
    style_axes(left, xlabel=label, ylabel="nats", title="Utility of three actions")
    style_axes(right, xlabel=label, ylabel="probability", title="The reward is found")
    return figure


def main(num_episodes: int = 1000, num_cues: int = 11, out: Path = Path("runs/examples")) -> dict:
    """Print and draw what the agents get.

    Args:
        num_episodes: of each agent with each cue.
        num_cues: probabilities from 0.5 to 1 that the cue is right.
        out: where the picture is written.

    Returns:
        ``{agent: [cues, 4]}``: utility in nats, part of the episodes with the reward, part that
        asked first, and the standard error of the utility.
    """
    validities = np.linspace(0.5, 1.0, num_cues)
    keys = jax.random.split(jax.random.key(0), num_episodes)
    rows: dict = {name: [] for name in ("optimal", *PLANNERS)}
    for validity in validities:
        model = t_maze(validity=float(validity))
        rows["optimal"].append((*best(model), 0.0))
        for name, planner in PLANNERS.items():
            utility, *parts = (np.asarray(x) for x in play(planner, model, keys))
            error = utility.std() / np.sqrt(num_episodes)
            rows[name].append((utility.mean(), *(part.mean() for part in parts), error))
    rows = {name: np.array(row, float) for name, row in rows.items()}

    print(f"{'cue is right':<16}" + "".join(f"{name:>24}" for name in rows))
    for i, validity in enumerate(validities):
        cells = (f"{row[i, 0]:>12.2f} nats{row[i, 1]:>6.0%}" for row in rows.values())
        print(f"{validity:<16.2f}" + "".join(f"{cell:>24}" for cell in cells))
    worth = rows["optimal"][-1, 0] - rows["optimal"][0, 0]
    print(f"a cue that is always right is worth {worth:.2f} nats")

    out.mkdir(parents=True, exist_ok=True)
    draw(validities, rows).savefig(out / "t_maze.png")
    print(f"wrote {out / 't_maze.png'}")
    return rows


if __name__ == "__main__":
    main()
