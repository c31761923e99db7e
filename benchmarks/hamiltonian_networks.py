"""Networks that learn a Hamiltonian, beside a plain network of the same size: how well they predict
derivatives, what energy their paths keep, and how it drifts over 1e5 steps.

Data, noise and spans of time are those of Greydanus et al. (2019), but for the double pendulum. The
energy error of a path is the mean square of ``H(z_t) - H(z_0)`` with the true H, over 15 paths from
first states that were not learned from.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vfejax.dynamics.phase_space import Hamiltonian, energy, flow, joined, path, vector_field
from vfejax.dynamics.runge_kutta import runge_kutta4
from vfejax.models.hamiltonian.learning import derivative_loss, fit
from vfejax.models.hamiltonian.networks import (
    HamiltonianConfig,
    PhaseModel,
    general,
    plain,
    separable,
)
from vfejax.problems.mechanics import SYSTEMS, Samples, sample
from vfejax.training.optimizer import warmup_cosine
from vfejax.types import Integrator, PyTree

Row = dict[str, Any]
SEEDS = (0, 1, 2)
ARMS = {"plain": (plain, 128), "general": (general, 128), "separable": (separable, 90)}
TEST_PATHS, ROLLOUTS, TIMES, STEPS_BETWEEN = 25, 15, 100, 10
DRIFT_STEPS, DRIFT_STATES = 100_000, 4


class Task(NamedTuple):
    """How a system is learned and rolled out.

    Attributes:
        num_steps: updates.
        batch_size: samples of an update; 0 for all.
        horizon: time of a path whose energy is watched.
        drift_dt: step of the long paths; None for none.
        published: test loss and energy error, plain and Hamiltonian.
    """

    num_steps: int
    batch_size: int
    horizon: float
    drift_dt: float | None = None
    published: tuple[str, str] = ("", "")


TASKS = {
    "mass-spring": Task(2000, 0, 20.0, None, ("3.67e-2 / 3.59e-2", "1.71e-1 / 3.84e-4")),
    "pendulum": Task(2000, 0, 20.0, 0.1, ("3.53e-2 / 3.56e-2", "4.15e-2 / 2.49e-2")),
    "double pendulum": Task(10_000, 200, 20.0, 0.15),
    "two-body": Task(10_000, 200, 20.0, None, ("2.96e-5 / 2.82e-6", "6.33e-2 / 3.88e-5")),
    "three-body": Task(10_000, 200, 5.0, None, ("3.80e-1 / 4.88e-1", "1.09e2 / 4.19e-2")),
}


def arms_of(system: str) -> list[str]:
    """A separable network cannot be right where the energy is not."""
    fits = SYSTEMS[system].hamiltonian.separable
    return [arm for arm in ARMS if fits or arm != "separable"]


@cache
def data(name: str, seed: int) -> tuple[Samples, Samples, np.ndarray]:
    """Samples to learn from and to test on, and first states of paths."""
    system, rng = SYSTEMS[name], np.random.default_rng(seed)
    parts = [sample(system, rng, num) for num in (system.num_paths, TEST_PATHS)]
    train, test = jax.tree.map(lambda x: np.asarray(x, np.float32), parts)
    return train, test, system.initial_fn(rng, ROLLOUTS)


def model_of(name: str, arm: str, dtype: Any = jnp.float32) -> PhaseModel:
    """A network of about 17,000 weights."""
    build, hidden = ARMS[arm]
    return build(SYSTEMS[name].dim, HamiltonianConfig(hidden), dtype)


@cache
def learned(name: str, arm: str, seed: int) -> PyTree:
    """Weights after training."""
    task, model = TASKS[name], model_of(name, arm)
    optimizer = optax.adam(warmup_cosine(3e-3, 50, task.num_steps, 0.01))

    @jax.jit
    def run(key: jax.Array, samples: Samples) -> PyTree:
        return fit(model, optimizer, samples, key, task.num_steps, task.batch_size).params

    return jax.block_until_ready(run(jax.random.key(seed), data(name, seed)[0]))


def scheme_of(
    model: PhaseModel, params: PyTree, dt: float, symplectic: bool = True
) -> tuple[Integrator, Callable]:
    """An integrator of a network, and how a state is read."""
    if model.hamiltonian is None or not symplectic:
        return runge_kutta4(lambda z: model.vector_field(params, z), dt), lambda z: z
    return flow(model.hamiltonian(params), dt), joined


def network_row(name: str, arm: str, seed: int) -> Row:
    """Test loss and energy errors of one trained network."""
    system, task, model = SYSTEMS[name], TASKS[name], model_of(name, arm)
    _, test, starts = data(name, seed)
    params = learned(name, arm, seed)

    def error(params: PyTree, z: jax.Array) -> jax.Array:
        scheme, read = scheme_of(model, params, task.horizon / (TIMES * STEPS_BETWEEN))
        states = path(scheme, scheme.init(z), TIMES + 1, STEPS_BETWEEN, read)
        energies = jax.vmap(partial(energy, system.hamiltonian))(states)
        return jnp.mean((energies - energies[0]) ** 2)

    errors = jax.jit(jax.vmap(error, (None, 0)))(params, jnp.asarray(starts, jnp.float32))
    loss = jax.jit(partial(derivative_loss, model))(params, test)
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "test loss": float(loss),
        "energy error": float(jnp.mean(errors)),
        "median": float(jnp.median(errors)),
        "largest": float(jnp.max(errors)),
    }


def drift_row(name: str, of: str, scheme: str, seed: int) -> Row:
    """Largest energy error over the first and the last hundredth of 1e5 steps, in float64."""
    system, dt = SYSTEMS[name], TASKS[name].drift_dt
    starts = data(name, seed)[2][:DRIFT_STATES]
    params = None if of == "true" else jax.device_get(learned(name, of, seed))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        if params is None:
            model = PhaseModel(
                None,
                lambda _, z: vector_field(system.hamiltonian, z),
                lambda _: system.hamiltonian,
                0,
            )
        else:
            model = model_of(name, of, jnp.float64)
        times = DRIFT_STEPS // STEPS_BETWEEN

        def energies(params: PyTree, z: jax.Array) -> tuple[jax.Array, ...]:
            integrator, read = scheme_of(model, params, dt, scheme != "Runge-Kutta")

            def watched(state: Any) -> tuple[jax.Array, ...]:
                z = read(state)
                kept: list[Hamiltonian] = [system.hamiltonian]
                if model.hamiltonian is not None:
                    kept.append(model.hamiltonian(params))
                return tuple(energy(h, z) for h in kept)

            return path(integrator, integrator.init(z), times, STEPS_BETWEEN, watched)

        found = jax.jit(jax.vmap(energies, (None, 0)))(wide, jnp.asarray(starts))
        errors = [np.abs(np.asarray(e) - np.asarray(e)[:, :1]).max(axis=0) for e in found]
    names = ("of the true energy", "of its own energy")
    span = times // 100
    return {
        f"{which} {words}": float(part.max())
        for words, error in zip(names, errors, strict=False)
        for which, part in (("first", error[:span]), ("last", error[-span:]))
    }


def runs(pieces: list[str], result: Callable[[Row, Callable[[], Row]], Row]) -> Iterator[Row]:
    """Every run that was asked for."""
    for seed in SEEDS:
        for name in TASKS if "networks" in pieces else ():
            for arm in arms_of(name):
                job = {"piece": "networks", "system": name, "arm": arm, "seed": seed}
                yield result(job, partial(network_row, name, arm, seed))
        for name, task in TASKS.items() if "drift" in pieces else ():
            if task.drift_dt is None:
                continue
            hamiltonian = "separable" if SYSTEMS[name].hamiltonian.separable else "general"
            symplectic = "Verlet" if hamiltonian == "separable" else "midpoint"
            for of in ("true", hamiltonian, "plain"):
                for scheme in (symplectic, "Runge-Kutta") if of != "plain" else ("Runge-Kutta",):
                    job = {"piece": "drift", "system": name, "of": of, "scheme": scheme}
                    yield result(job | {"seed": seed}, partial(drift_row, name, of, scheme, seed))
