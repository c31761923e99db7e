"""Reflexes: agents that act by making what they sense what they expect, beside control laws.

A mass on a spring is to be moved from 0 to 1, and expects a critically damped approach. Beside the
reflex stand three laws that a designer computes from mass and spring: proportional and derivative
gains (PD) that give the same approach, those with an integral (PID), and the linear quadratic
regulator (LQR). All know a mass of 1, a stiffness of 1 and no load; the world has others.

There world and agent are one flow in continuous time. Once more with what a machine has: samples,
whose derivatives are embedded, and forces that are held from sample to sample.

A car in a valley is to get up a hill that its engine is too weak for. The agent expects that its
energy becomes that of the goal, and its reflex finds that it must swing back; beside it stands the
law that pushes with all force in the direction of the motion.

    python examples/reflex.py
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.figures.style import BLUE, CURVES, GREY, INK, new_figure, style_axes
from vfejax.inference.generalized_filtering import (
    Observation,
    natural_metric,
    rest,
    zero_hyperparameters,
)
from vfejax.inference.generalized_filtering.active_filtering import active_filter, forward_model
from vfejax.inference.generalized_filtering.embedded_samples import EmbeddingState, embedding
from vfejax.inference.generalized_filtering.local_linearization import ozaki_step
from vfejax.inference.generalized_filtering.path_energy import log_normalizer
from vfejax.problems.closed_loop import (
    World,
    closed_loop,
    noise_paths,
    run_feedback,
    run_loop,
)
from vfejax.problems.mass_spring import goal_model, mass_spring, regulator_gain, tracking_gain
from vfejax.problems.mountain_car import GOAL, mountain_car, pumping, swing_model

DT, NUM, SMOOTHNESS = 0.1, 400, 0.3
KNOWN = mass_spring()
# Noise of the sensors, mass, stiffness, load.
WORLDS = {
    "as known": (0.0, 1.0, 1.0, 0.0),
    "load": (0.0, 1.0, 1.0, 0.5),
    "stiffness x 2": (0.0, 1.0, 2.0, 0.0),
    "mass x 4": (0.0, 4.0, 1.0, 0.0),
    "noise": (0.1, 1.0, 1.0, 0.0),
    "noise, load": (0.1, 1.0, 1.0, 0.5),
}
CARS = {
    "as known": (0.0, 0.125),
    "friction x 1.6": (0.0, 0.2),
    "noise 0.02": (0.02, 0.125),
    "noise 0.05": (0.05, 0.125),
}


def reflex(world, model, start, noise, *, known, rate, action_rate, prior):
    """States of the world, actions, and F above the least that it can be, ``[t, ...]``."""
    forward_fn = forward_model(known.motion_fn, known.sensor_fn, model.order)
    agent = active_filter(
        model, forward_fn, DT, rate=rate, action_rate=action_rate, metric_fn=natural_metric
    )
    path = rest(model)
    path = path._replace(states=(path.states[0].at[0].set(start),))
    hyper, loop = zero_hyperparameters(model), closed_loop(world, agent, DT)
    state = loop.init(start, (None,), hyper, jnp.zeros(1), path)
    outside = Observation(noise, jnp.broadcast_to(prior, (len(noise), *prior.shape)))
    _, info = run_loop(loop, state, outside)
    errors = info.belief.energy + log_normalizer(model, hyper)
    return info.state.world, info.state.agent.action, errors


def many_springs(controller):
    """``controller(world, noise, gain)`` for many series in one world, compiled once for all
    worlds and gains: ``(noise, mass, stiffness, load, gain)``.
    """

    def run(noise, mass, stiffness, load, gain):
        return controller(mass_spring(mass, stiffness, 0.2, load), noise, gain)

    return jax.jit(jax.vmap(run, (0, None, None, None, None)))


def spring_reflex(world, noise, _):
    """The reflex on the spring."""
    model = goal_model(smoothness=SMOOTHNESS)
    options = {"known": KNOWN, "rate": 10.0, "action_rate": 100.0, "prior": jnp.ones((1, 1))}
    return reflex(world, model, jnp.zeros(2), noise, **options)


def spring_law(world, noise, gain):
    """A control law of gains on place, velocity and the integral of the distance, ``[3]``."""

    def motion_fn(x, a):
        return jnp.append(world.motion_fn(x[:2], a[:1]), a[1])

    def policy_fn(y):
        off = y - jnp.array([1.0, 0.0, 0.0])
        return jnp.stack([1.0 - jnp.sum(gain * off), off[0]])

    noise = jnp.pad(noise, ((0, 0), (0, 0), (0, 1)))
    extended = World(motion_fn, lambda x: x)
    states, actions = run_feedback(extended, policy_fn, jnp.zeros(3), noise, DT)
    return states[:, :2], actions[:, :1], jnp.zeros(len(noise))


GAINS = {
    "reflex": np.zeros(3),
    "PD": np.append(tracking_gain(1.0, 1.0, 1.0, 0.2), 0.0),
    "PID": np.array([2.0, 2.8, 1.0]),  # three poles at -1
    "LQR": np.append(regulator_gain(1.0, 1.0, 0.2, 1.0, 1.0), 0.0),
}


def spring_table(num_series: int) -> tuple[dict, dict]:
    """Distance from the goal in the second half, root mean square, and time until it stays below
    0.05 (NaN where it does not), by world and controller; and the runs.
    """
    rng = np.random.default_rng(0)
    noise = [noise_paths(rng, NUM, DT, 2, SMOOTHNESS, 2) for _ in range(num_series)]
    noise, rows, runs = np.array(noise), {}, {}
    act, obey = many_springs(spring_reflex), many_springs(spring_law)
    for name, gain in GAINS.items():
        run = act if name == "reflex" else obey
        for case, (scale, *world) in WORLDS.items():
            found = [np.asarray(x) for x in run(scale * noise, *world, gain)]
            off = np.abs(found[0][..., 0] - 1)
            late = np.sqrt(np.mean(off[:, NUM // 2 :] ** 2))
            times = DT * (NUM - np.argmax(off[:, ::-1] > 0.05, axis=1))
            settled = np.nan if scale or times[0] > DT * (NUM - 1) else times[0]
            rows[case, name], runs[case, name] = (late, settled), found
    return rows, runs


def held(world, policy_fn, memory, noise):
    """Places and forces ``[t]`` under a controller ``policy_fn(memory, sample) -> (memory, force)``
    that is called every DT.
    """

    def step(carry, noise):
        x, memory = carry
        memory, action = policy_fn(memory, world.sensor_fn(x) + noise)
        flow, slope = world.motion_fn(x, action), jax.jacfwd(world.motion_fn)(x, action)
        return (x + ozaki_step(slope, flow, DT), memory), (x[0], action[0])

    return jax.lax.scan(step, (jnp.zeros(2), memory), noise)[1]


def sampled_reflex(world, noise, _):
    """The reflex, whose observation is a line through the last four samples."""
    model, window = goal_model(smoothness=SMOOTHNESS), 4
    forward_fn = forward_model(KNOWN.motion_fn, KNOWN.sensor_fn, model.order)
    rates = {"rate": 10.0, "action_rate": 100.0, "metric_fn": natural_metric}
    agent = active_filter(model, forward_fn, DT, **rates)
    embed = embedding(model.order, DT, window=window, lag=0)

    def policy_fn(memory, sample):
        samples, own = memory
        samples, sensed = embed.step(samples, sample)
        own, _ = agent.step(own, Observation(sensed, jnp.ones((1, 1))))
        return (samples, own), own.action

    # It has been at rest for a while.
    samples = EmbeddingState(jnp.zeros((window, 2)), jnp.asarray(window, jnp.int32))
    own = agent.init((None,), zero_hyperparameters(model), jnp.zeros(1))
    return held(world, policy_fn, (samples, own), noise)


def sampled_pid(world, noise, gain):
    """The PID law on samples."""

    def policy_fn(total, sample):
        off = sample[0] - 1.0
        force = 1.0 - jnp.sum(gain * jnp.stack([off, sample[1], total]))
        return total + DT * off, force[None]

    return held(world, policy_fn, jnp.zeros(()), noise)


def sampled_table(num_series: int) -> dict:
    """Distance from the goal and deviation of the force in the second half, root mean square, by
    world and controller. The noise is independent from sample to sample.
    """
    noise = np.random.default_rng(2).standard_normal((num_series, NUM, 2))
    rows = {}
    for name, controller in {"reflex": sampled_reflex, "PID": sampled_pid}.items():
        run = many_springs(controller)
        for case, (scale, *world) in WORLDS.items():
            found = run(scale * noise, *world, GAINS[name])
            place, force = (np.asarray(x)[:, NUM // 2 :] for x in found)
            rows[case, name] = np.sqrt(np.mean((place - 1) ** 2)), np.std(force)
    return rows


def car_reflex(friction, noise):
    """The reflex in the car. It does not know of friction."""
    options = {"rate": 100.0, "action_rate": 3000.0, "prior": jnp.zeros((1, 0))}
    known, world = mountain_car(friction=0.0), mountain_car(friction=friction)
    model = swing_model(smoothness=SMOOTHNESS)
    return reflex(world, model, jnp.array([-0.4, 0.0]), noise, known=known, **options)


def car_law(policy_fn, friction, noise):
    """A control law in the car."""
    world, start = mountain_car(friction=friction), jnp.array([-0.4, 0.0])
    return *run_feedback(world, policy_fn, start, noise, DT), jnp.zeros(len(noise))


DRIVERS = {
    "reflex": car_reflex,
    "pumping": lambda *x: car_law(pumping, *x),
    "full force": lambda *x: car_law(lambda y: jnp.full(1, 5.0), *x),
}


def car_table(num_series: int) -> tuple[dict, dict]:
    """Share of runs that end within 0.1 of the goal, mean time until they first come so near, and
    mean square of the force in units of its bound, by world and driver; and the runs.
    """
    rng = np.random.default_rng(1)
    noise = [noise_paths(rng, NUM, DT, 2, SMOOTHNESS, 2) for _ in range(num_series)]
    noise, rows, runs = np.array(noise), {}, {}
    for name, driver in DRIVERS.items():
        both = jax.jit(jax.vmap(driver, (None, 0)))
        for case, (scale, friction) in CARS.items():
            found = [np.asarray(x) for x in both(friction, scale * noise)]
            near = np.abs(found[0][..., 0] - GOAL) < 0.1
            there = near[:, -1]
            times = DT * np.argmax(near, axis=1)[there]
            time = times.mean() if there.any() else np.nan
            effort = np.mean(np.tanh(found[1]) ** 2)
            rows[case, name], runs[case, name] = (there.mean(), time, effort), found
    return rows, runs


def draw(springs: dict, cars: dict, path: Path) -> None:
    """Springs above, cars below: where they are, what they do, and F."""
    figure = new_figure(5.6)
    axes, times = figure.subplots(2, 3), DT * np.arange(NUM)
    for colour, name in zip(CURVES, GAINS, strict=False):
        states, actions, _ = springs["load", name]
        axes[0, 0].plot(times, states[0, :, 0], color=colour, label=name)
        axes[0, 1].plot(times, actions[0, :, 0], color=colour)
    axes[0, 0].axhline(1.0, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    axes[0, 0].legend(frameon=False, fontsize=8, labelcolor=INK)
    for colour, name in zip(CURVES, DRIVERS, strict=False):
        states, actions, _ = cars["as known", name]
        axes[1, 0].plot(times, states[0, :, 0], color=colour, label=name)
        axes[1, 1].plot(times, np.tanh(actions[0, :, 0]), color=colour)
    axes[1, 0].axhline(GOAL, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    axes[1, 0].legend(frameon=False, fontsize=8, labelcolor=INK)
    for ax, runs, case in ((axes[0, 2], springs, "load"), (axes[1, 2], cars, "as known")):
        ax.semilogy(times, runs[case, "reflex"][2][0], color=BLUE)
        ax.set_ylim(bottom=1e-6)  # rounding
    labels = ("place", "force", "F above its least [nats]")
    for row, title in zip(axes, ("Spring with an unknown load", "Mountain car"), strict=True):
        for ax, label in zip(row, labels, strict=True):
            style_axes(ax, xlabel="time", ylabel=label, title=title if ax is row[0] else "")
    axes[0, 0].set_xlim(0, 15)
    axes[0, 1].set_xlim(0, 15)
    axes[0, 2].set_xlim(0, 15)
    figure.savefig(path)


def main(num_series: int = 16, out: Path = Path()) -> tuple[dict, dict, dict]:
    """Tables and picture."""
    springs, spring_runs = spring_table(num_series)
    print("spring: distance from the goal in the second half, settling time")
    for case in WORLDS:
        cells = [
            f"{name} {springs[case, name][0]:.3f} {springs[case, name][1]:4.1f}" for name in GAINS
        ]
        print(f"{case:>14}: " + ",  ".join(cells))
    sampled = sampled_table(num_series)
    print("spring, sampled: distance from the goal and deviation of the force in the second half")
    for case in WORLDS:
        cells = [
            "{} {:.3f} {:.2f}".format(name, *sampled[case, name]) for name in ("reflex", "PID")
        ]
        print(f"{case:>14}: " + ",  ".join(cells))
    cars, car_runs = car_table(num_series)
    print("car: share at the goal, time, mean square force")
    for case in CARS:
        cells = ["{} {:.2f} {:4.1f} {:.2f}".format(name, *cars[case, name]) for name in DRIVERS]
        print(f"{case:>14}: " + ",  ".join(cells))
    draw(spring_runs, car_runs, out / "reflex.png")
    return springs, sampled, cars


if __name__ == "__main__":
    main()
