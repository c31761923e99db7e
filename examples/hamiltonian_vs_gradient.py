"""One free energy, four ways down (or around) it: natural gradient, friction, and two symplectic
schemes.

Ten sensors in unknown orientations start from their own beliefs, thousands of nats above consensus.
All flows get the same number of gradient evaluations. Without friction the Hamiltonian H = F + T is
conserved: the flow never settles, and the drift of H measures the scheme. Per evaluation,
Stoermer-Verlet drifts as dt^2 and Yoshida's scheme (three evaluations per step, hence steps three
times as long) as dt^4: short steps favour the second, long steps the first. (Equal numbers of
evaluations: longer steps cover more time.) With friction H falls and the flow settles, more slowly
than natural gradient flow, which knows the metric.

    python examples/hamiltonian_vs_gradient.py
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.agents import free_energy, observation
from vfejax.agents import population as populations
from vfejax.agents.population import Population, PopulationCoordinates
from vfejax.beliefs.gaussian import Gaussian
from vfejax.dynamics.hamiltonian import HamiltonianInfo, HamiltonianState, velocity_verlet, yoshida4
from vfejax.dynamics.rollout import rollout
from vfejax.figures.style import CURVES, INK, label_right, log_axis, new_figure, style_axes
from vfejax.geometry import irreps
from vfejax.problems import sensor_network
from vfejax.problems.population_flow import population_flow

SPINS = (1, 1)  # two landmarks
GROUP = irreps.so3(SPINS)
# Infinite mass: priors stay.
MASS = PopulationCoordinates(belief=100.0, prior=float("inf"), phi=1000.0)
# Time per gradient evaluation of the conservative runs.
STEPS = (0.00125, 0.0025, 0.005, 0.01, 0.02)
# Time per evaluation of the run with friction, and its rate per unit of time.
LONG_STEP, FRICTION = 0.04, 0.2


def problem(num_agents: int) -> tuple[Callable, PopulationCoordinates]:
    """The energy of a small sensor network and where it starts."""
    rng = np.random.default_rng(0)
    observations, _ = sensor_network.simulate(
        rng, num_agents, num_landmarks=len(SPINS), dtype=jnp.float64
    )
    k = 3 * len(SPINS)
    prior = Gaussian(
        jnp.zeros((num_agents, k)), jnp.broadcast_to(3.0 * jnp.eye(k), (num_agents, k, k))
    )
    belief = jax.jit(observation.posterior)(prior, observations)

    def energy_fn(coordinates: PopulationCoordinates) -> jax.Array:
        return free_energy.free_energy(
            populations.constrain(coordinates),
            GROUP,
            temperature=1000.0,
            observations=observations,
        )

    return energy_fn, populations.unconstrain(Population(belief, prior, jnp.zeros((num_agents, 3))))


def hamiltonian_runs(
    scheme, energy_fn, state: HamiltonianState, num_steps: int, step_sizes, frictions
) -> HamiltonianInfo:
    """One run per step size and friction, side by side; energies ``[runs, num_steps]``."""

    def run(step_size, friction):
        return rollout(scheme(energy_fn, step_size, MASS, friction), state, num_steps)[1]

    return jax.jit(jax.vmap(run))(jnp.asarray(step_sizes), jnp.asarray(frictions))


def natural_run(energy_fn, start, num_steps: int) -> jax.Array:
    """Energies ``[num_steps]`` along natural gradient flow."""
    flow = population_flow(energy_fn, GROUP)
    return jax.jit(lambda x: rollout(flow, flow.init(x), num_steps)[1].energy)(start)


def draw(curves: dict[str, tuple[np.ndarray, np.ndarray]], drifts: dict[str, np.ndarray]):
    """Potential energy against gradient evaluations, and drift against the time per evaluation."""
    figure = new_figure(6.4)
    left, right = figure.subplots(2, 1)
    for (name, (evaluations, potential)), colour in zip(curves.items(), CURVES, strict=False):
        left.plot(evaluations, potential, color=colour, linewidth=1.8, label=name)
    left.set_yscale("log")
    log_axis(left.yaxis)
    style_axes(
        left,
        xlabel="gradient evaluations",
        ylabel="free energy F (nats)",
        title="Where each flow gets",
    )
    label_right(
        left, [(name, y[-1], c) for (name, (_, y)), c in zip(curves.items(), CURVES, strict=False)]
    )
    for (name, drift), colour in zip(drifts.items(), CURVES, strict=False):
        right.plot(STEPS, drift, "o-", color=colour, linewidth=1.8)
        order = np.log2(drift[1] / drift[0])
        right.annotate(
            f"{name}, slope {order:.1f}",
            (STEPS[1], drift[1]),
            xytext=(8, -12),
            textcoords="offset points",
            color=INK,
            fontsize=9,
        )
    right.set(xscale="log", yscale="log")
    right.set_xticks(STEPS, [f"{dt:g}" for dt in STEPS])
    right.minorticks_off()
    style_axes(
        right,
        xlabel="time per gradient evaluation",
        ylabel="largest |H - H$_0$| (nats)",
        title="Drift of the conserved energy at equal cost",
        grid="both",
    )
    return figure


def print_table(rows: dict[str, tuple[float, float | None, int]]) -> None:
    print(f"{'flow':<30}{'F reached (nats)':>18}{'change of H (nats)':>20}{'gradients':>11}")
    for name, (reached, change, gradients) in rows.items():
        shown = "" if change is None else f"{change:.3g}"
        print(f"{name:<30}{reached:>18.1f}{shown:>20}{gradients:>11}")


def main(
    num_agents: int = 10, num_gradients: int = 1200, out: Path = Path("runs/examples")
) -> dict:
    """Run all flows, print a table, draw it; returns ``{flow: (free energy reached, largest change
    of H, gradients)}`` in nats.

    Args:
        num_agents: sensors.
        num_gradients: gradient evaluations of every flow, a multiple of 3.
        out: folder of the picture.
    """
    energy_fn, start = problem(num_agents)
    initial = float(jax.jit(energy_fn)(start))
    # Position, momentum and force: every scheme starts from them.
    at_rest = jax.jit(velocity_verlet(energy_fn, LONG_STEP).init)(start)
    without = [0.0] * len(STEPS)
    verlet = hamiltonian_runs(
        velocity_verlet,
        energy_fn,
        at_rest,
        num_gradients,
        [*STEPS, LONG_STEP],
        [*without, FRICTION],
    )
    triple = [3 * dt for dt in STEPS]  # one Yoshida step costs three gradients
    yoshida = hamiltonian_runs(yoshida4, energy_fn, at_rest, num_gradients // 3, triple, without)
    natural = np.asarray(natural_run(energy_fn, start, num_gradients))

    drift = {
        "Verlet": np.max(np.abs(np.asarray(verlet.total) - initial), axis=1)[:-1],
        "Yoshida": np.max(np.abs(np.asarray(yoshida.total) - initial), axis=1),
    }
    rows = {
        "natural gradient": (float(natural[-1]), None, num_gradients),
        f"Verlet, friction {FRICTION}": (
            float(verlet.potential[-1, -1]),
            float(verlet.total[-1, -1] - initial),
            num_gradients,
        ),
    }
    for name, run in (("Verlet", verlet), ("Yoshida", yoshida)):
        for i, dt in enumerate(STEPS):
            reached, strayed = float(run.potential[i, -1]), float(drift[name][i])
            rows[f"{name}, {dt:g} per gradient"] = (reached, strayed, num_gradients)
    print(f"{num_agents} sensors, free energy {initial:.6g} nats at the start")
    print_table(rows)

    every = np.arange(1, num_gradients + 1)
    curves = {
        "natural gradient": (every, natural),
        "with friction": (every, np.asarray(verlet.potential[-1])),
        "conserved": (every, np.asarray(verlet.potential[STEPS.index(0.01)])),
    }
    out.mkdir(parents=True, exist_ok=True)
    draw(curves, drift).savefig(out / "hamiltonian_vs_gradient.png")
    print(f"wrote {out / 'hamiltonian_vs_gradient.png'}")
    return rows


if __name__ == "__main__":
    # Drifts far below a nat, of energies of thousands, drown in float32's rounding.
    jax.config.update("jax_enable_x64", True)
    main()
