"""The run of ``vfejax simulate --emergence``: a population that organises itself in scales."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.agents import alignment, free_energy, order
from vfejax.agents import hierarchy as hierarchies
from vfejax.agents.hierarchy import Hierarchy, Scales
from vfejax.agents.hierarchy_energy import HierarchyTerms, energy_terms
from vfejax.agents.pairwise import pairwise_kl
from vfejax.agents.population import Population
from vfejax.agents.supports import log_support
from vfejax.cli.fast_compilation import compiled_once
from vfejax.cli.simulate import accuracy, meta_agents
from vfejax.cli.simulate.config import SimulateConfig
from vfejax.cli.simulate.memberships import changes
from vfejax.cli.simulate.places import at_point, most_covered
from vfejax.cli.simulate.problem import Problem, grouped, quadrature
from vfejax.problems.emergent_flow import EmergentInfo, EmergentState, emergent_flow
from vfejax.runs import checkpoint, loop
from vfejax.runs.events import Event
from vfejax.types import Array, Integrator, PyTree

__all__ = ["Emergence", "agents", "build", "program", "refusal", "telling"]

# The order parameters of more rows take more time than the steps from one row of the metrics to the
# next.
_MOST_ORDER = 2048
_OVER_SCALES = (
    *("self_coupling", "hyperprior", "belief_alignment", "prior_alignment", "observation"),
)


class Emergence(NamedTuple):
    """What a run with meta-agents starts from and is moved by.

    Attributes:
        start: agents without meta-agents.
        scales: how the rows are divided.
        flow: the integrator of a step, given its number: temperature and looks for groups depend
            on it.
        temperature: of the attention, in nats, given the number of the step.
    """

    start: Hierarchy
    scales: Scales
    flow: Callable[[Array | np.int32], Integrator]
    temperature: Callable[[Array | np.int32], Array]


def build(config: SimulateConfig, problem: Problem) -> Emergence:
    """Start and dynamics, as the options say.

    Raises:
        UserError: for more scales than the agents can fill.
    """
    population, supports = problem.population, problem.supports
    num_agents = population.phi.shape[0]
    meta_agents.check_fits(config.meta, config.emergence, num_agents)
    scales = Scales(num_agents, config.emergence)
    begin = compiled_once(
        lambda agents, chi: hierarchies.initial_hierarchy(agents, config.emergence, chi)[0]
    )
    start = begin(population, supports)

    def temperature(step: Array | np.int32) -> Array:
        floating = jnp.asarray(step).astype(population.phi.dtype)
        return meta_agents.temperature(config.meta, config.temperature, floating)

    energy_of = functools.partial(
        energy_terms,
        scales=scales,
        generators=problem.group,
        weights=free_energy.Weights(**vars(config.weights)),
        prior_temperature=config.prior_temperature,
        alignment_fn=alignment.ALIGNMENTS[config.alignment],
        meta_alignment_fn=alignment.ALIGNMENTS[config.meta.alignment],
        cross_scale=meta_agents.cross_scale(config.meta),
        observations=problem.observations,
        quadrature=quadrature(config, problem),
        edges=problem.edges,
    )

    def flow(step: Array | np.int32) -> Integrator:
        return emergent_flow(
            functools.partial(energy_of, temperature=temperature(step)),
            scales,
            problem.group,
            config.step_size,
            config.trust_radius,
            grouped(config.rates),
            criteria=meta_agents.criteria(config.meta),
            clocks=meta_agents.clocks(config.meta, len(config.emergence)),
            detect_every=meta_agents.looks(config.meta, step),
            quadrature=quadrature(config, problem),
        )

    return Emergence(start, scales, flow, temperature)


def agents(state: EmergentState, scales: Scales) -> Population:
    """The agents of scale 0."""
    return jax.tree.map(lambda x: x[scales.slices[0]], state.hierarchy.population)


def _energies(terms: HierarchyTerms) -> dict[str, np.ndarray]:
    """Energies by name, each with the axes that the total has: summed over scales, and of each."""
    named = {name: np.asarray(getattr(terms, name)) for name in _OVER_SCALES}
    columns = {name: x.sum(axis=-1) for name, x in named.items()}
    by_scale = np.sum(list(named.values()), axis=0)
    scales = {f"energy_scale_{s}": by_scale[..., s] for s in range(by_scale.shape[-1])}
    return columns | {"total": np.asarray(terms.total)} | scales


def _flows(infos: EmergentInfo | None, scales: Scales) -> dict[str, float]:
    """Information that went from scale to scale since the last row, and groups refused."""
    row: dict[str, float] = {}
    for s in range(len(scales.capacities)):
        for name, which in ((f"{s + 1}_to_{s}", "down"), (f"{s}_to_{s + 1}", "up")):
            drops = 0.0 if infos is None else np.asarray(getattr(infos, which), np.float64)[:, s]
            row[f"information_{name}"] = float(np.sum(drops))
    row["refused"] = 0 if infos is None else int(np.sum(infos.condensed.refused))
    return row


def _order_parameters(
    problem: Problem, emergence: Emergence
) -> Callable[[EmergentState], dict[str, Array]]:
    """How the attention within each scale is organised, at the point that most agents cover."""
    index, _ = most_covered(problem)
    scales = emergence.scales

    def attention(divergence: Array, chi: Array) -> Array:
        itself = jnp.eye(chi.shape[0], dtype=bool)
        log_weight = jnp.where(itself, -jnp.inf, log_support(chi)[None, :])
        divergence = jnp.where(log_weight == -jnp.inf, 0.0, divergence)
        return alignment.attention(divergence, log_weight, alignment.rows())

    def found(state: EmergentState) -> dict[str, Array]:
        population = hierarchies.quiet(state.hierarchy.population, state.active)
        chi = hierarchies.presence(state.hierarchy)
        chi = chi.reshape(chi.shape[0], -1)[:, index]
        divergence = pairwise_kl(*at_point(population, index), problem.group)
        divergence = divergence / emergence.temperature(state.step)
        row = {}
        for s, rows in enumerate(scales.slices):
            beta, there = attention(divergence[rows, rows], chi[rows]), chi[rows] > 0
            row[f"attention_entropy_{s}"] = order.mean_attention_entropy(beta, there)
            row[f"effective_rank_{s}"] = order.effective_rank(beta, there)
            row[f"modularity_{s}"] = order.modularity(beta, state.parent[rows], there)
        return row

    return compiled_once(found) if scales.num_rows <= _MOST_ORDER else lambda state: {}


class _Memory(NamedTuple):
    """What the host carries on: who is whose member, how many groups found no free slot, and the
    first step at which one did, -1 for none.
    """

    parent: np.ndarray
    refused: np.ndarray
    full_at: np.ndarray


def _remembered(step: int, infos: EmergentInfo, memory: _Memory, parent: np.ndarray) -> _Memory:
    refused = np.asarray(infos.condensed.refused, np.int64)
    full_at = memory.full_at
    if full_at < 0 and refused.any():
        full_at = np.asarray(step - len(refused) + 1 + np.flatnonzero(refused)[0])
    return _Memory(parent, np.asarray(memory.refused + refused.sum()), full_at)


def refusal(memory: PyTree) -> str:
    """What there is to tell about groups that found no free slot; empty when all did."""
    if memory.full_at < 0:
        return ""
    return (
        f"from step {memory.full_at} on there was no free slot for a group of agents that agree, "
        "which goes on without a meta-agent; give a larger --emergence"
    )


def telling(program: loop.Program, say: Callable[[str], None]) -> loop.Program:
    """The program, which says once when the slots are exhausted."""

    def observe(
        step: int, state: EmergentState, infos: EmergentInfo | None, memory: PyTree
    ) -> loop.Observation:
        observation = program.observe(step, state, infos, memory)
        if memory.full_at < 0 <= observation.memory.full_at:
            say(refusal(observation.memory))
        return observation

    return program._replace(observe=observe)


def _observer(
    problem: Problem, emergence: Emergence, first: dict[str, float]
) -> Callable[[int, EmergentState, EmergentInfo | None, PyTree], loop.Observation]:
    """What the loop calls after every chunk; ``first`` are the energies at the start."""
    scales = emergence.scales
    order_parameters = _order_parameters(problem, emergence)
    first_agents = compiled_once(functools.partial(agents, scales=scales))

    def observe(
        step: int, state: EmergentState, infos: EmergentInfo | None, memory: PyTree
    ) -> loop.Observation:
        row: dict[str, float] = dict(first)
        events: list[Event] = []
        if infos is not None:
            row = {name: float(value[-1]) for name, value in _energies(infos.terms).items()}
            events, parent = changes(step, infos, memory.parent, scales)
            memory = _remembered(step, infos, memory, parent)
        active = np.asarray(state.active)
        many = [int(active[rows].sum()) for rows in scales.slices[1:]]
        row |= {f"meta_agents_{s}": count for s, count in enumerate(many, 1)}
        row |= _flows(infos, scales)
        row |= {name: float(value) + 0.0 for name, value in order_parameters(state).items()}
        row |= accuracy.errors(problem, first_agents(state))
        shown = {"energy": row["total"], "meta-agents": sum(many)}
        return loop.Observation(row, memory, shown, events=events)

    return observe


def program(
    config: SimulateConfig,
    problem: Problem,
    emergence: Emergence,
    check_start: Callable[[dict[str, float]], None],
) -> loop.Program:
    """The flow as the loop runs it.

    Args:
        config: the command's options.
        problem: what is computed.
        emergence: start and dynamics, from :func:`build`.
        check_start: called with the energies at the start, unless the run goes on from a
            checkpoint; raises UserError when one is not finite.
    """
    scales = emergence.scales
    init = emergence.flow(np.int32(0)).init
    start = compiled_once(init)
    row: dict[str, float] = {}
    if not (config.resume and checkpoint.latest_step(config.out) is not None):
        row = {k: float(x) for k, x in _energies(start(emergence.start).terms).items()}
        check_start(row)

    def step(state: EmergentState, _: PyTree) -> tuple[EmergentState, EmergentInfo]:
        return emergence.flow(state.step + 1).step(state)

    return loop.Program(
        init=lambda: start(emergence.start),
        template=lambda: init(emergence.start),
        step=step,
        observe=_observer(problem, emergence, row),
        memory=_Memory(np.arange(scales.num_rows, dtype=np.int32), np.asarray(0), np.asarray(-1)),
        watched=lambda infos: _energies(infos.terms),
        advice="go on with --resume and a smaller --step-size",
    )
