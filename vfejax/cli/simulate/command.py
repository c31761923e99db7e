"""``vfejax simulate``: a population of Gaussian agents minimises its variational free energy.

Without arguments: 64 sensors that measure three landmarks, each in its own unknown orientation,
recover the landmarks and their relative rotations by aligning their beliefs.
"""

import functools
import json
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from vfejax.agents import population as populations
from vfejax.agents.population import Population
from vfejax.cli import options as configuration
from vfejax.cli.simulate import problem as simulate_problem
from vfejax.cli.simulate import report as simulate_report
from vfejax.cli.simulate.config import SimulateConfig, check_values, parse
from vfejax.data import population_arrays
from vfejax.dynamics.rollout import rollout
from vfejax.errors import UserError
from vfejax.runs import checkpoint
from vfejax.runs import directory as run_directory
from vfejax.runs.interrupt import Interrupt
from vfejax.runs.progress import progress
from vfejax.types import Integrator, PyTree

__all__ = ["main", "simulate"]


def main(arguments: Sequence[str]) -> int:
    """Parse, run, and return the exit status."""
    config = parse(arguments)
    check_values(config)
    if config.precision == "float64":
        jax.config.update("jax_enable_x64", True)
    return simulate(config)


class _Start(NamedTuple):
    """Where a run begins: the state, the step it is at, and the metrics row of a fresh start."""

    state: PyTree
    step: int
    row: dict[str, float] | None


def _start(
    config: SimulateConfig, integrator: Integrator, energy_fn: Any, position: PyTree
) -> _Start:
    """The newest checkpoint of a resumed run, else the initial state."""
    latest = checkpoint.latest_step(config.out) if config.resume else None
    if latest is not None:
        if latest > config.steps:
            raise UserError(
                f"--steps {config.steps}: the run in {config.out} is at step {latest} already; give at least that"
            )
        template = jax.eval_shape(integrator.init, position)
        state, _ = checkpoint.restore(config.out, template)
        return _Start(state, latest, None)

    # Runs once, so what counts is how fast it compiles: at optimisation level 0 in half the time.
    begin = jax.jit(
        lambda x: (integrator.init(x), energy_fn(x)),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    state, (energy, terms) = begin(position)
    row = {name: float(value) for name, value in terms._asdict().items()}
    if not np.isfinite(energy):
        raise UserError(
            f"the energy is not finite at the start ({_culprits(row)}); check the data and the initial state"
        )
    if config.dynamics == "hamiltonian":
        row |= {"kinetic": 0.0, "hamiltonian": row["total"]}
    return _Start(state, 0, row)


def _culprits(row: dict[str, float]) -> str:
    bad = [name for name, value in row.items() if not np.isfinite(value)]
    return ", ".join([name for name in bad if name != "total"] or bad) or "the state"


def _rows(infos: Any) -> dict[str, np.ndarray]:
    """Per-step energies of a chunk as host arrays."""
    columns = {name: np.asarray(value) for name, value in infos.aux._asdict().items()}
    if hasattr(infos, "kinetic"):
        columns |= {"kinetic": np.asarray(infos.kinetic), "hamiltonian": np.asarray(infos.total)}
    return columns


def _advance(
    config: SimulateConfig,
    run: run_directory.RunDirectory,
    integrator: Integrator,
    start: _Start,
    errors_fn: Any,
    interrupt: Interrupt,
) -> PyTree:
    """Run to the last step or an interruption, writing metrics and checkpoints; returns the last
    state.
    """
    state, step = start.state, start.step

    @functools.partial(jax.jit, static_argnums=1, donate_argnums=0)
    def chunk(state: PyTree, num_steps: int) -> tuple[PyTree, Any]:
        return rollout(integrator, state, num_steps)

    def log(step: int, row: dict[str, float], position: PyTree) -> None:
        row = {"step": step, **row, **errors_fn(position)}
        run_directory.append_metrics(run, list(row), [list(row.values())])

    if start.row is not None:
        log(0, start.row, state.position)
        checkpoint.save(run.path, 0, state, {})
    with progress(config.steps, quiet=config.quiet, description="simulate", start=step) as update:
        while step < config.steps and not interrupt.requested:
            num_steps = min(config.log_every, config.steps - step)
            state, infos = chunk(state, num_steps)
            columns = _rows(infos)
            finite = np.isfinite(columns["total"])
            if not finite.all():
                first = int(np.argmin(finite))
                row = {name: float(values[first]) for name, values in columns.items()}
                raise UserError(
                    f"the run diverged: the energy is not finite at step {step + first + 1} ({_culprits(row)}). The last good checkpoint "
                    f"is step {checkpoint.latest_step(run.path)} in {run.path}; try a smaller --step-size"
                )
            step += num_steps
            row = {name: float(values[-1]) for name, values in columns.items()}
            log(step, row, state.position)
            update(step, {"energy": row["total"]})
            if step % config.checkpoint_every == 0 or step == config.steps or interrupt.requested:
                checkpoint.save(run.path, step, state, {})
    return state


def _state_arrays(population: Population) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(value) for name, value in population_arrays.to_arrays(population).items()
    }


def simulate(config: SimulateConfig) -> int:
    """Run the simulation that ``config`` describes, write its directory, and return the exit
    status.
    """
    began = time.perf_counter()
    problem = simulate_problem.build(config)
    energy_fn = simulate_problem.energy_function(config, problem)
    integrator = simulate_problem.integrator(config, energy_fn, problem)
    yardsticks = simulate_report.yardsticks(problem)

    constrain = jax.jit(populations.constrain)

    def errors_fn(position: PyTree) -> dict[str, float]:
        return simulate_report.errors(problem, constrain(position))

    settings = configuration.settings(config)
    with configuration.open_run(config) as run, Interrupt() as interrupt:
        start = _start(
            config, integrator, energy_fn, jax.jit(populations.unconstrain)(problem.population)
        )
        if config.resume:
            run_directory.write_config(run, settings)
            run_directory.truncate_metrics(run, start.step if start.row is None else -1)
        population_arrays.save_npz(run.path / "initial.npz", _state_arrays(problem.population))
        state = _advance(config, run, integrator, start, errors_fn, interrupt)
        population = constrain(state.position)
        population_arrays.save_npz(run.path / "final.npz", _state_arrays(population))
        summary = simulate_report.write(config, problem, yardsticks, population, run, settings)
    summary["seconds"] = round(time.perf_counter() - began, 1)
    run_directory.atomic_write(config.out / "summary.json", json.dumps(summary, indent=2) + "\n")
    if not config.quiet:
        print(simulate_report.summary_text(summary))
        print(f"report: {config.out / 'report.html'}")
    if interrupt.requested:
        raise KeyboardInterrupt
    return 0
