"""Two networks learn how a pendulum swings, from noisy states and their derivatives. One has an
energy.

Both see the same 1,125 samples and have as many weights. The plain network is the vector field
itself: nothing in it says that energy is kept, and along its path the energy wanders. The
Hamiltonian network is an energy ``V(q) + T(p)`` whose gradients are the field. Stoermer-Verlet
keeps *its* energy for as long as one likes, and so keeps the true one as nearly as the network
knows it. On the derivatives themselves both are equally good: what tells them apart is what they
conserve.

    python examples/hamiltonian_network.py

Source: Greydanus, Dzamba, Yosinski, Hamiltonian neural networks (2019).
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vfejax.dynamics.phase_space import energy, flow, joined, path
from vfejax.dynamics.runge_kutta import runge_kutta4
from vfejax.figures.style import CURVES, GREY, label_right, new_figure, style_axes
from vfejax.models.hamiltonian.learning import derivative_loss, fit
from vfejax.models.hamiltonian.networks import HamiltonianConfig, PhaseModel, plain, separable
from vfejax.problems.mechanics import SYSTEMS, Samples, sample
from vfejax.training.optimizer import warmup_cosine

PENDULUM = SYSTEMS["pendulum"]
DT, STEPS_BETWEEN = 0.02, 10  # of the paths, and between two states that are shown
START = np.array([1.8, 0.0])


def learned(model: PhaseModel, samples: Samples, num_steps: int) -> tuple:
    """Weights after training."""
    optimizer = optax.adam(warmup_cosine(3e-3, 50, num_steps, 0.01))
    run = jax.jit(lambda key: fit(model, optimizer, samples, key, num_steps, 0).params)
    return run(jax.random.key(0))


def paths(model: PhaseModel, params: tuple, num_times: int) -> np.ndarray:
    """States ``[num_times, 2]`` from one start."""
    start = jnp.asarray(START, jnp.float32)

    @jax.jit
    def run(params: tuple) -> jax.Array:
        if model.hamiltonian is None:
            scheme = runge_kutta4(partial(model.vector_field, params), DT)
            return path(scheme, start, num_times, STEPS_BETWEEN, lambda z: z)
        scheme = flow(model.hamiltonian(params), DT)
        return path(scheme, scheme.init(start), num_times, STEPS_BETWEEN, joined)

    return np.asarray(run(params))


def draw(samples: Samples, found: dict[str, np.ndarray], energies: dict[str, np.ndarray]):
    """Phase portraits, and the energy over time."""
    figure = new_figure(6.4)
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 2))
    place, momentum = np.meshgrid(np.linspace(-3, 3, 80), np.linspace(-3, 3, 80))
    points = jnp.stack([place, momentum], axis=-1).reshape(-1, 2)
    levels = jax.jit(jax.vmap(partial(energy, PENDULUM.hamiltonian)))(points).reshape(place.shape)
    for column, (name, colour) in enumerate(zip(found, CURVES, strict=False)):
        axes = figure.add_subplot(grid[0, column])
        axes.contour(place, momentum, levels, levels=8, colors="#d9d9d9", linewidths=0.8)
        axes.plot(*np.asarray(samples.states).T, ".", color=GREY, markersize=2)
        axes.plot(*found[name].T, color=colour, linewidth=1.0)
        axes.set(xlim=(-3, 3), ylim=(-3, 3))
        style_axes(axes, xlabel="angle (radians)", ylabel="momentum", title=name)
    below = figure.add_subplot(grid[1, :])
    times = np.arange(len(next(iter(energies.values())))) * DT * STEPS_BETWEEN
    for values, colour in zip(energies.values(), CURVES, strict=False):
        below.plot(times, values, color=colour, linewidth=1.2)
    ends = [(name, y[-1], c) for (name, y), c in zip(energies.items(), CURVES, strict=False)]
    label_right(below, ends)
    style_axes(below, xlabel="time", ylabel="true energy", title="Energy along the path")
    return figure


def main(num_steps: int = 1500, num_times: int = 500, out: Path = Path("runs/examples")) -> dict:
    """Learn both, print and draw; returns ``{network: (test loss, energy error)}``.

    Args:
        num_steps: updates of each network.
        num_times: states of a path.
        out: folder of the picture.
    """
    rng = np.random.default_rng(0)
    parts = [jax.jit(partial(sample, PENDULUM, rng, num))() for num in (PENDULUM.num_paths, 10)]
    train, test = jax.tree.map(lambda x: x.astype(jnp.float32), parts)
    models = {
        "Hamiltonian network": separable(2, HamiltonianConfig(hidden=45)),
        "plain network": plain(2, HamiltonianConfig(hidden=64)),
    }
    rows, found, energies = {}, {}, {}
    print(f"{'':<22}{'weights':>9}{'test loss':>11}{'energy error':>14}")
    for name, model in models.items():
        params = learned(model, train, num_steps)
        found[name] = paths(model, params, num_times)
        values = jax.jit(jax.vmap(partial(energy, PENDULUM.hamiltonian)))(found[name])
        energies[name] = np.asarray(values)
        error = float(np.mean((energies[name] - energies[name][0]) ** 2))
        loss = float(jax.jit(partial(derivative_loss, model))(params, test))
        weights = sum(x.size for x in jax.tree.leaves(params))
        print(f"{name:<22}{weights:>9,}{loss:>11.4f}{error:>14.2g}")
        rows[name] = (loss, error)
    out.mkdir(parents=True, exist_ok=True)
    draw(train, found, energies).savefig(out / "hamiltonian_network.png")
    print(f"wrote {out / 'hamiltonian_network.png'}")
    return rows


if __name__ == "__main__":
    main()
