"""The inertia of belief: agents that overshoot, ring, coast and hand their momentum on.

A belief is as heavy as it is precise: its mean has the mass ``M = lambda_self Sigma_p^-1 +
lambda_belief sum_j (beta_ij Sigma_j^-1 + beta_ji Sigma_i^-1)``. For few agents of one component
whose covariances are held, the motion of the means is known in closed form. Here the library's
energies move them, and the closed forms stand beside:

- damping: two agents that disagree return to agreement as ``r'' + c r' + omega^2 r = 0``, over-,
  critically or underdamped;
- resonance: two agents whose priors sway apart with frequency w answer with the amplitude
  ``f / (M sqrt((omega^2 - w^2)^2 + c^2 w^2))``;
- stopping distance: beliefs without a prior that are pushed with momentum p come to rest after
  ``p / (c M)``: the more precise, the sooner;
- transfer: one push goes to and fro between two agents, wholly and with the period ``pi sqrt 2``
  whatever their precision. In a chain of three a part of it reaches the third.

    python examples/inertia.py
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.agents.edges import Edges
from vfejax.agents.free_energy import free_energy
from vfejax.agents.inertia import mean_kinetic_energy
from vfejax.agents.mass import mean_mass
from vfejax.agents.population import Population
from vfejax.beliefs.gaussian import Gaussian
from vfejax.dynamics.implicit import generalized_leapfrog
from vfejax.figures.style import CURVES, INK, new_figure, style_axes
from vfejax.geometry import irreps

SCALAR = irreps.so3((0,))  # one component that no frame turns
# With the prior's weight, the masses are 3 P and the stiffness against disagreement is 5 P.
OMEGA = np.sqrt(5 / 3)
DAMPING = {"underdamped": 0.4 * OMEGA, "critical": 2 * OMEGA, "overdamped": 5 * OMEGA}
CHAIN = Edges(np.array([0, 1, 1, 2]), np.array([1, 0, 2, 1]))


class System(NamedTuple):
    """Energies of the means ``[n, 1]`` of agents whose covariances are held: ``energy_fn(mean,
    prior_mean)`` and ``kinetic_fn(mean, momentum)``.
    """

    energy_fn: Callable
    kinetic_fn: Callable


def system(
    num_agents: int,
    precision: float | jax.Array,
    prior_weight: float | jax.Array,
    edges: Edges | None = None,
) -> System:
    """Agents of one precision, with priors of the same.

    A temperature of 10^9 nats keeps attention even, so that the energy is quadratic.
    """
    chol = jnp.broadcast_to(precision**-0.5, (num_agents, 1, 1))
    options = {"weights": (prior_weight, 1.0, 0.0, 0.0), "temperature": 1e9, "edges": edges}

    def population(mean, prior_mean):
        return Population(
            Gaussian(mean, chol), Gaussian(prior_mean, chol), jnp.zeros((num_agents, 3))
        )

    def energy_fn(mean, prior_mean):
        return free_energy(population(mean, prior_mean), SCALAR, **options)

    def kinetic_fn(mean, momentum):
        mass = mean_mass(population(mean, jnp.zeros_like(mean)), SCALAR, **options)
        return jnp.sum(mean_kinetic_energy(mass, momentum))

    return System(energy_fn, kinetic_fn)


def trajectory(integrator, state, num_steps: int) -> tuple:
    """Positions and momenta after every step."""

    def step(state, _):
        state, _ = integrator.step(state)
        return state, (state.position, state.momentum)

    return jax.lax.scan(step, state, length=num_steps)[1]


@partial(jax.jit, static_argnums=5)
def move(start, push, precision, prior_weight, friction, num_steps: int, dt):
    """Means and momenta ``[num_steps, n]`` of two agents, or of a chain of three, from the means
    ``start [n]`` and the momenta ``push [n]``.
    """
    agents = system(len(start), precision, prior_weight, CHAIN if len(start) == 3 else None)
    flow = generalized_leapfrog(
        lambda x: agents.energy_fn(x, jnp.zeros_like(x)), agents.kinetic_fn, dt, friction
    )
    state = flow.init(start[:, None], push[:, None])
    return tuple(x[..., 0] for x in trajectory(flow, state, num_steps))


def damped(frictions, num_steps: int, dt: float) -> np.ndarray:
    """Disagreement ``[frictions, num_steps]`` of two agents that start 1 apart, at rest."""
    apart, still = np.array([0.5, -0.5]), np.zeros(2)
    means = [move(apart, still, 4.0, 1.0, float(c), num_steps, dt)[0] for c in frictions]
    return np.stack([mean[:, 0] - mean[:, 1] for mean in jax.device_get(means)])


def damped_exact(frictions, times: np.ndarray) -> np.ndarray:
    """``r'' + c r' + omega^2 r = 0`` from r = 1 at rest, in all three regimes."""
    curves = []
    for c in frictions:
        root = np.emath.sqrt(OMEGA**2 - 0.25 * c**2)
        # sin(root t) / root, whose limit at the critical friction is t.
        sine = times * np.sinc(np.real_if_close(root * times / np.pi, tol=1e6))
        if np.iscomplexobj(root):
            sine = np.sinh(root.imag * times) / root.imag
        cosine = np.real(np.cos(root * times))
        curves.append(np.exp(-0.5 * c * times) * (cosine + 0.5 * c * sine))
    return np.array(curves)


def resonance(frequencies, friction: float, num_steps: int, dt: float) -> np.ndarray:
    """Amplitude of the disagreement when the priors sway 1 apart.

    Time is a coordinate here: its momentum enters the Hamiltonian linearly, so it runs at rate 1.
    """
    two = system(2, 4.0, 1.0)
    apart = jnp.array([[0.5], [-0.5]])
    start = {"mean": jnp.zeros((2, 1)), "time": jnp.zeros(())}

    def run(frequency):
        def energy_fn(x):
            return two.energy_fn(x["mean"], apart * jnp.cos(frequency * x["time"]))

        def kinetic_fn(x, p):
            return two.kinetic_fn(x["mean"], p["mean"]) + p["time"]

        flow = generalized_leapfrog(energy_fn, kinetic_fn, dt, friction)
        position, _ = trajectory(flow, flow.init(start), num_steps)
        return position["mean"][:, 0, 0] - position["mean"][:, 1, 0], position["time"]

    found, times = map(np.asarray, jax.jit(jax.vmap(run))(jnp.asarray(frequencies)))
    amplitudes = []
    for w, r, t in zip(frequencies, found, times, strict=True):
        # The last two periods, or the last third of a slow one's time.
        late = t > max(t[-1] - 4 * np.pi / w, t[-1] * 2 / 3)
        waves = np.stack([np.cos(w * t[late]), np.sin(w * t[late])], axis=-1)
        amplitudes.append(np.hypot(*np.linalg.lstsq(waves, r[late])[0]))
    return np.array(amplitudes)


def resonance_exact(frequencies, friction: float) -> np.ndarray:
    """``(f / M) / sqrt((omega^2 - w^2)^2 + c^2 w^2)`` with ``f / M = 1 / 3``."""
    w = np.asarray(frequencies)
    return (1 / 3) / np.sqrt((OMEGA**2 - w**2) ** 2 + (friction * w) ** 2)


def stopping(precisions, friction: float, num_steps: int, dt: float) -> np.ndarray:
    """How far two agents without priors, each pushed with momentum 1, have gone in the end."""
    still, push = np.zeros(2), np.ones(2)
    means = [move(still, push, float(p), 0.0, friction, num_steps, dt)[0] for p in precisions]
    return np.stack([mean[-1].mean() for mean in jax.device_get(means)])


def transfer(num_agents: int, precision: float, num_steps: int, dt: float) -> np.ndarray:
    """Momenta ``[num_steps, n]`` after the first of two agents, or of a chain, is pushed by 1."""
    still = np.zeros(num_agents)
    push = np.eye(num_agents)[0]
    return np.asarray(move(still, push, precision, 0.0, 0.0, num_steps, dt)[1])


def transfer_exact(num_agents: int, times: np.ndarray) -> np.ndarray:
    """Sums of normal modes: masses (2, 2) and (1.5, 3, 1.5) with springs 2 and 1.5, times P."""
    slow, fast = np.cos(times), np.cos(np.sqrt(2.0) * times)
    if num_agents == 2:
        return np.stack([1 + fast, 1 - fast], axis=-1) / 2
    return np.stack([1 + 2 * slow + fast, 2 - 2 * fast, 1 - 2 * slow + fast], axis=-1) / 4


def draw(times, curves, exact, swept, momenta):
    """Damping, resonance, and the momenta of two and of three agents."""
    figure = new_figure(7.2)
    axes = figure.subplots(2, 2).ravel()
    for (name, _), found, theory, colour in zip(
        DAMPING.items(), curves, exact, CURVES, strict=False
    ):
        axes[0].plot(times, theory, color=INK, linewidth=0.8, linestyle="--")
        axes[0].plot(times, found, color=colour, linewidth=1.8, label=name)
    axes[0].legend(frameon=False, fontsize=8)
    style_axes(axes[0], xlabel="time", ylabel="disagreement", title="Two agents return")
    frequencies, amplitudes, theory = swept
    axes[1].plot(frequencies, theory, color=INK, linewidth=0.8, linestyle="--")
    axes[1].plot(frequencies, amplitudes, "o", color=CURVES[0], markersize=4)
    style_axes(axes[1], xlabel="frequency", ylabel="amplitude", title="Priors that sway")
    for place, (num, found) in zip(axes[2:], momenta.items(), strict=True):
        for agent in range(num):
            place.plot(times, found[:, agent], color=CURVES[agent], label=f"agent {agent + 1}")
        place.plot(times, transfer_exact(num, times), color=INK, linewidth=0.8, linestyle="--")
        place.legend(frameon=False, fontsize=8)
        style_axes(place, xlabel="time", ylabel="momentum", title=f"A push among {num}")
    return figure


def main(num_steps: int = 600, dt: float = 0.02, out: Path = Path("runs/examples")) -> dict:
    """Run everything, print it beside the closed forms, draw it.

    Args:
        num_steps: steps of the damped and the free motion; the driven one takes three times as
            many, of twice the length.
        dt: time of a step.
        out: folder of the picture.

    Returns:
        ``{name: (found, closed form)}`` as arrays.
    """
    times = dt * np.arange(1, num_steps + 1)
    frequencies, friction = np.linspace(0.4, 2.4, 21), 0.5
    precisions = np.array([1.0, 4.0, 16.0])
    frictions = list(DAMPING.values())
    rows = {
        "damping": (damped(frictions, num_steps, dt), damped_exact(frictions, times)),
        "resonance": (
            resonance(frequencies, friction, 3 * num_steps, 2 * dt),
            resonance_exact(frequencies, friction),
        ),
        # Each agent has the mass 2 P; after 12 times 1 / c all but 6e-6 of the way is done.
        "stopping distance": (
            stopping(precisions, 12 / (num_steps * dt), num_steps, dt),
            num_steps * dt / 12 / (2 * precisions),
        ),
        "transfer, 2 agents": (transfer(2, 4.0, num_steps, dt), transfer_exact(2, times)),
        "transfer, 3 agents": (transfer(3, 4.0, num_steps, dt), transfer_exact(3, times)),
    }
    print(f"{'motion':<22}{'largest value':>15}{'off the closed form by':>25}")
    for name, (found, exact) in rows.items():
        print(f"{name:<22}{np.max(found):>15.4f}{np.max(np.abs(found - exact)):>25.1e}")
    peak = frequencies[np.argmax(rows["resonance"][0])]
    print(f"resonance near {peak:.2f}; omega is {OMEGA:.3f}")
    third = rows["transfer, 3 agents"][0][:, 2].max()
    print(f"of a push, the third of a chain gets up to {third:.2f}")
    momenta = {num: rows[f"transfer, {num} agents"][0] for num in (2, 3)}
    swept = frequencies, *rows["resonance"]
    out.mkdir(parents=True, exist_ok=True)
    draw(times, *rows["damping"], swept, momenta).savefig(out / "inertia.png")
    print(f"wrote {out / 'inertia.png'}")
    return rows


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
