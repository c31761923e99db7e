"""A discrete planner above a hand that reaches: where to look first, and what was found there.

Above, a T-maze: a target is on the left or on the right, and a cue tells which. The planner chooses
the next place. What it expects of place, touch and light goes down as the prior of the causes of a
continuous model, whose reflex moves a hand through the plane, with smooth noise in all senses. Up
comes the evidence of each outcome in the second half of a movement, by Bayesian model reduction: no
place, touch or light is ever handed to the planner. The light is so noisy that one look may leave
it in doubt, and then it looks again.

The baseline plans by utility alone.

    python examples/mixed_hierarchy.py
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.figures.style import CURVES, GREY, INK, leave_room, new_figure, style_axes
from vfejax.inference.active_inference import agent, sophisticated_planner, utility_planner
from vfejax.inference.generalized_filtering import (
    Level,
    Model,
    Observation,
    natural_metric,
    zero_hyperparameters,
)
from vfejax.inference.generalized_filtering.active_filtering import (
    ActiveFilter,
    active_filter,
    forward_model,
)
from vfejax.inference.mixed_models import (
    cause_belief,
    expected_causes,
    outcome_weights,
    reduced_log_evidence,
)
from vfejax.inference.policies import enumerate_policies
from vfejax.inference.pomdp.prediction import predict_observations
from vfejax.problems.closed_loop import LoopState, World, closed_loop, noise_paths, run_loop
from vfejax.problems.environments import t_maze

DT, STEPS, MOVEMENTS, ORDER, SMOOTHNESS = 0.1, 60, 3, 2, 0.3
NOISE = np.array([0.05, 0.05, 0.05, 0.05, 0.8, 0.8])  # of place, velocity, touch and light
PLACES = np.array([[0.0, 0.0], [-1.0, 1.0], [1.0, 1.0], [0.0, -1.0]])
NAMES = ("centre", "left", "right", "cue")
SIGNS = np.array([[0.0], [1.0], [-1.0]])
# Where outcomes are: of the place; nothing, reward, punishment; no light, left, right.
VALUES = (jnp.asarray(PLACES), jnp.asarray(SIGNS), jnp.asarray(SIGNS))
PRECISION = np.diag([400.0, 400.0, 16.0, 16.0])  # of the causes about these values
RADIUS = 0.2  # of touch and light
MAZE = t_maze()


class Trials(NamedTuple):
    """What happened in each trial.

    ``hand [trials, movements, steps, 2]``, ``light [trials, movements, steps]``, the log evidence
    of right over left; ``right [trials, movements + 1]``, the probability of right before each
    movement and in the end.
    """

    hand: np.ndarray
    light: np.ndarray
    right: np.ndarray


def hand_world(side: jax.Array | float) -> World:
    """A hand of mass 1, a touch at the arms and a light at the cue: 1 for left, -1 for right."""
    left = 1.0 - 2.0 * side

    def motion_fn(x, a):
        return jnp.concatenate([x[2:], a - 0.5 * x[2:]])

    def near(x, place):
        return jnp.exp(-0.5 * jnp.sum((x[:2] - PLACES[place]) ** 2) / RADIUS**2)

    def sensor_fn(x):
        touch = left * (near(x, 1) - near(x, 2))
        return jnp.concatenate([x, jnp.stack([touch, left * near(x, 3)])])

    return World(motion_fn, sensor_fn)


def limb() -> tuple[Model, ActiveFilter]:
    """A hand that is pulled to the first two causes; the others are touch and light themselves."""

    def motion_fn(x, v, _):
        return jnp.concatenate([x[2:], 4.0 * (v[:2] - x[:2]) - 4.0 * x[2:]])

    def output_fn(x, v, _):
        return jnp.concatenate([x, v[2:]])

    def own_sensor_fn(x):  # touch and light do not follow the hand, as far as it knows
        return jnp.concatenate([x, jnp.zeros(2, x.dtype)])

    level = Level(motion_fn, output_fn, np.diag(NOISE**-2)[None], 100.0 * np.eye(4)[None])
    model = Model((level,), PRECISION, ORDER, 1, SMOOTHNESS)
    forward_fn = forward_model(hand_world(0.0).motion_fn, own_sensor_fn, ORDER)
    metrics = {"metric_fn": natural_metric, "action_metric_fn": natural_metric}
    return model, active_filter(model, forward_fn, DT, rate=100.0, action_rate=100.0, **metrics)


MODEL, LIMB = limb()


@jax.jit
@jax.vmap
def reach(state: LoopState, side, prior, noise) -> tuple:
    """One movement: the state after it, the hand, and the log evidence of all outcomes."""
    outside = Observation(noise, jnp.broadcast_to(prior, (STEPS, 1, prior.size)))
    after, info = run_loop(closed_loop(hand_world(side), LIMB, DT), state, outside)

    def weigh(path, covariance):
        precision = jnp.asarray(PRECISION, prior.dtype)
        return reduced_log_evidence(cause_belief(path, covariance), prior, precision, VALUES)

    evidence = jax.vmap(weigh)(info.state.agent.belief.path, info.belief.covariance)
    return after, info.state.world[:, :2], evidence


def plan(planner, own, seen, key) -> tuple:
    """What the planner believes of the side, and what it expects of the causes next."""
    own, decision = agent(MAZE, planner, temperature=0).step(own, seen, key)
    prior = expected_causes(predict_observations(MAZE, own.prior), VALUES)
    return own, decision.beliefs[1][1], prior


def late_weights(evidence: tuple) -> tuple:
    """What the second half of a movement says of the outcomes."""
    late = tuple(each[STEPS // 2 :] for each in evidence)
    return outcome_weights(late, DT, SMOOTHNESS)


def run_trials(planner, sides: np.ndarray, noise: np.ndarray) -> Trials:
    """Trials side by side, ``noise [movements, trials, steps, order, 6]``."""
    num = len(sides)
    start = LIMB.init((None,), zero_hyperparameters(MODEL), jnp.zeros(2))
    first = (agent(MAZE, planner).init(), LoopState(jnp.zeros(4), start))
    first = (*first, tuple(jnp.eye(size)[0] for size in MAZE.num_observations))
    own, state, seen = jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *x.shape)), first)
    think, weigh = jax.jit(jax.vmap(partial(plan, planner))), jax.jit(jax.vmap(late_weights))
    keys = jax.random.split(jax.random.key(0), (MOVEMENTS + 1, num))
    hands, lights, beliefs = [], [], []
    for k in range(MOVEMENTS + 1):
        own, right, prior = think(own, seen, keys[k])
        beliefs.append(right)
        if k < MOVEMENTS:
            state, hand, evidence = reach(state, jnp.asarray(sides, float), prior, noise[k])
            seen = weigh(evidence)
            hands.append(hand)
            lights.append(evidence[2][..., 2] - evidence[2][..., 1])
    return Trials(*(np.stack(x, axis=1) for x in (hands, lights, beliefs)))


PLANNERS = {
    "expected free energy": sophisticated_planner(2),
    "utility alone": utility_planner(enumerate_policies(MAZE, 2)),
}


def draw(trials: Trials, sides: np.ndarray, path: Path) -> None:
    """Some hands, what the light said to all, and what they believed."""
    figure = new_figure(3.5)
    where, light, belief = figure.subplots(1, 3)
    for name, place in zip(NAMES, PLACES, strict=True):
        where.plot(*place, "o", color=GREY, markersize=16, alpha=0.3, markeredgewidth=0)
        style = {"textcoords": "offset points", "va": "center", "fontsize": 8.5, "color": INK}
        where.annotate(name, place, (12, -8), **style)
    late = slice(STEPS // 2, STEPS)
    share = DT / (2 * np.sqrt(np.pi) * SMOOTHNESS)  # of an independent observation
    for side, label in enumerate(("target left", "target right")):
        those = np.flatnonzero(sides == side)
        style = {"color": CURVES[side], "linewidth": 1.0}
        for i in those[:4]:
            where.plot(*trials.hand[i].reshape(-1, 2).T, **style)
        told = np.cumsum(share * trials.light[those, 0, late], axis=1)
        light.plot(DT * np.arange(STEPS)[late], told.T, **style)
        belief.plot(range(MOVEMENTS + 1), trials.right[those].T, "o-", markersize=3, **style)
        where.plot([], [], label=label, **style)
    where.set_aspect("equal")
    where.set(xlim=(-1.5, 1.7), ylim=(-1.4, 2.0))
    where.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="upper center", ncols=2)
    belief.set_xticks(range(MOVEMENTS + 1))
    style_axes(where, title="Hands", grid="")
    style_axes(light, xlabel="time", ylabel="right over left [nats]", title="Evidence at the cue")
    style_axes(belief, xlabel="movements made", ylabel="probability of right", title="Belief")
    leave_room(figure)
    figure.savefig(path)


def main(num_trials: int = 32, out: Path = Path()) -> dict[str, tuple[float, float, float]]:
    """For each planner: share of trials that end at the target, share at the other arm, and the
    probability of the true side after the first movement.
    """
    rng, sides = np.random.default_rng(0), np.arange(num_trials) % 2
    noise = noise_paths(rng, num_trials * MOVEMENTS * STEPS, DT, ORDER, SMOOTHNESS, 6) * NOISE
    noise = noise.reshape(num_trials, MOVEMENTS, STEPS, ORDER, 6).swapaxes(0, 1)
    rows, index = {}, np.arange(num_trials)
    for name, planner in PLANNERS.items():
        trials = run_trials(planner, sides, noise)
        arms = np.linalg.norm(trials.hand[:, -1, -1, None] - PLACES[1:3], axis=-1) < 2 * RADIUS
        sure = np.mean(np.where(sides == 1, trials.right[:, 1], 1 - trials.right[:, 1]))
        ends = np.mean(arms[index, sides]), np.mean(arms[index, 1 - sides])
        rows[name] = float(ends[0]), float(ends[1]), float(sure)
        print(
            f"{name}: at the target {ends[0]:.2f}, at the other arm {ends[1]:.2f}; "
            f"after one movement the true side has probability {sure:.2f}"
        )
        if name == "expected free energy":
            draw(trials, sides, out / "mixed_hierarchy.png")
    return rows


if __name__ == "__main__":
    main()
