"""``vfejax simulate``: a population of Gaussian agents minimises its variational free energy.

Without arguments: 64 sensors that measure three landmarks, each in its own unknown orientation,
recover the landmarks and their relative rotations by aligning their beliefs.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from vfejax.agents import population as populations
from vfejax.agents.population import Population
from vfejax.cli import drawing, executable_cache
from vfejax.cli import session as sessions
from vfejax.cli.background import compile_beside, import_beside
from vfejax.cli.distributed import check_group, joined
from vfejax.cli.fast_compilation import compiled_once, compiled_plainly
from vfejax.cli.simulate import accuracy, devices, emergence
from vfejax.cli.simulate import problem as simulate_problem
from vfejax.cli.simulate.config import SimulateConfig, check_values, parse
from vfejax.cli.simulate.problem import Problem
from vfejax.data import hierarchy_arrays, population_arrays
from vfejax.errors import UserError
from vfejax.runs import checkpoint, loop, processes
from vfejax.types import Array, PyTree

__all__ = ["main", "simulate"]

_LATER = ("orbax.checkpoint", "vfejax.cli.simulate.report")


def main(arguments: Sequence[str]) -> int:
    """Parse, run, and return the exit status."""
    config = parse(arguments)
    check_values(config)
    check_group(config)
    if config.precision == "float64":
        jax.config.update("jax_enable_x64", True)
    with joined(config, "simulate", lambda: _inputs(config)):
        return simulate(config)


def _energies(infos: Any) -> dict[str, Array]:
    """Energies by name, each ``[num_steps]``."""
    columns = dict(infos.aux._asdict())
    if hasattr(infos, "kinetic"):
        columns |= {"kinetic": infos.kinetic, "hamiltonian": infos.total}
    if hasattr(infos, "residual"):
        columns |= {"solver_residual": infos.residual}
    return columns


def _unsolved(infos: Any) -> dict[str, np.ndarray]:
    """Steps whose implicit equations were not solved."""
    if not hasattr(infos, "converged"):
        return {}
    return {"the implicit equations did not converge": ~np.asarray(infos.converged)}


def _program(
    config: SimulateConfig, problem: Problem, mesh: Mesh | None
) -> tuple[loop.Program, bool]:
    """The dynamics as the loop runs it, and whether a thread compiles its steps.

    Args:
        config: the command's options.
        problem: what is computed.
        mesh: the devices that share the agents; None for one.

    Raises:
        UserError: when the energy is not finite at the start.
    """
    place = devices.placed(mesh, problem.population.phi.shape[0])
    gathered = devices.gathered(mesh)
    method = devices.method(mesh, problem)
    energy_fn = simulate_problem.energy_function(config, problem, method)
    integrator = simulate_problem.integrator(config, energy_fn, problem)
    position = place(compiled_once(populations.unconstrain)(problem.population))
    constrain = compiled_once(populations.constrain)
    start = compiled_once(lambda x: (integrator.init(x), energy_fn(x)[1]))

    def step(state: PyTree, _: None) -> tuple[PyTree, PyTree]:
        return integrator.step(state)

    begun = False
    if config.steps and not config.resume:
        executable_cache.begin(start, position)
        length = min(config.log_every, config.steps)
        begun = compile_beside(
            step, executable_cache.shapes(start, position)[0], length, compiled_plainly
        )
    import_beside(*_LATER)  # not before: it would take turns with what is traced
    first: dict[str, float] = {}
    if not (config.resume and checkpoint.latest_step(config.out) is not None):
        first = _first_row(config, start(position)[1]._asdict())

    def observe(step: int, state: PyTree, infos: Any, memory: PyTree) -> loop.Observation:
        row = first
        if infos is not None:
            row = {name: float(np.asarray(x)[-1]) for name, x in _energies(infos).items()}
        if problem.truth is not None:
            row = row | accuracy.errors(problem, constrain(gathered(state.position)))
        return loop.Observation(row, memory, {"energy": row["total"]})

    program = loop.Program(
        init=lambda: start(position)[0],
        template=lambda: integrator.init(position),
        step=step,
        observe=observe,
        watched=_energies,
        failed=_unsolved,
        advice="go on with --resume and a smaller --step-size",
        place=place,
    )
    return program, begun


def _first_row(config: SimulateConfig, terms: dict[str, Array]) -> dict[str, float]:
    """What the metrics say of the start, where nothing moves yet."""
    row = {name: float(value) for name, value in terms.items()}
    _check_start(config, row)
    if config.dynamics == "hamiltonian":
        row |= {"kinetic": 0.0, "hamiltonian": row["total"]}
    if config.mass == "belief":
        row |= {"solver_residual": 0.0}
    return row


def _check_start(config: SimulateConfig, terms: dict[str, float]) -> None:
    bad = [name for name, value in terms.items() if not np.isfinite(value)]
    if bad:
        source = config.initial or config.observations
        given = f"{source}, " if source else "--contrast, " if config.scenes > 1 else ""
        raise UserError(
            f"the energy is not finite at the start ({', '.join(bad[:-1] or bad)}); check {given}"
            "--temperature, --noise-std and --prior-std, or try --precision float64"
        )


def _arrays(population: Population) -> dict[str, np.ndarray]:
    arrays = population_arrays.to_arrays(population)
    return {name: np.asarray(value) for name, value in arrays.items()}


def _announce(session: sessions.Session, problem: Problem, mesh: Mesh | None) -> None:
    """Say how many devices are used, where there are several."""
    config, num_agents = cast(SimulateConfig, session.config), problem.population.phi.shape[0]
    used = 1 if mesh is None else mesh.size
    remark = devices.remark(config, used, jax.device_count(), num_agents)
    if remark:
        session.note(remark)


def _simulate_hierarchy(
    config: SimulateConfig, problem: Problem, inputs: dict[str, Path | None]
) -> int:
    """As :func:`simulate`, with meta-agents."""
    from vfejax.cli.simulate import report as simulate_report

    import_beside(*_LATER)
    references = accuracy.references(problem)
    emerging = emergence.build(config, problem)
    check_start = functools.partial(_check_start, config)
    program = emergence.program(config, problem, emerging, check_start)
    with sessions.begin(config, "simulate", inputs) as session:
        run = session.run
        _announce(session, problem, None)
        population_arrays.save_npz(run.file("initial.npz"), _arrays(problem.population))
        outcome = session.advance(emergence.telling(program, session.say), jit_fn=compiled_plainly)
        hierarchy = compiled_once(lambda state: state.hierarchy)(outcome.state)
        arrays = hierarchy_arrays.to_arrays(hierarchy, emerging.scales)
        population_arrays.save_npz(run.file("final.npz"), arrays)
        session.say("drawing the pictures")
        report, summary = simulate_report.build(
            config,
            problem,
            references,
            emergence.agents(outcome.state, emerging.scales),
            run,
            simulate_report.Grouped(hierarchy, emerging.scales, emergence.refusal(outcome.memory)),
        )
        return session.finish(outcome, report, summary, simulate_report.summary_text)


def _inputs(config: SimulateConfig) -> dict[str, Path | None]:
    """Files that the run is computed from, by option."""
    return {name.replace("_", "-"): getattr(config, name) for name in config.INPUTS}


def simulate(config: SimulateConfig) -> int:
    """Run the simulation that ``config`` describes, write its directory, and return the exit
    status.
    """
    drawing.begin()
    inputs = _inputs(config)
    sessions.compare(config, inputs)
    problem = simulate_problem.build(config)
    if config.emergence:
        return _simulate_hierarchy(config, problem, inputs)
    mesh = devices.shared(config, problem)
    references = accuracy.references(problem)
    program, begun = _program(config, problem, mesh)
    with sessions.begin(config, "simulate", inputs) as session:
        run = session.run
        _announce(session, problem, mesh)
        leads = processes.leads()
        if leads:
            population_arrays.save_npz(run.file("initial.npz"), _arrays(problem.population))
        if begun:
            from vfejax.cli.simulate import pictures

            pictures.prepare(config, problem)
        outcome = session.advance(program, jit_fn=compiled_plainly)
        from vfejax.cli.simulate import report as simulate_report

        position = devices.gathered(mesh)(outcome.state.position)
        if not leads:
            return session.finish(outcome, None, {}, simulate_report.summary_text)
        population = compiled_once(populations.constrain)(position)
        population_arrays.save_npz(run.file("final.npz"), _arrays(population))
        session.say("drawing the pictures")
        report, summary = simulate_report.build(config, problem, references, population, run)
        return session.finish(outcome, report, summary, simulate_report.summary_text)
