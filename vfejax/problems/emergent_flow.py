"""Gradient flow of a population that organises itself in scales.

Every step moves all rows of a hierarchy at once down the natural gradient of one energy
(:func:`vfejax.agents.hierarchy_energy.energy_terms`). A scale moves only when its clock says so.
Now and then members that have come to disagree leave, and agents that agree condense into
meta-agents (:mod:`vfejax.agents.emergence`). Between such events the energy falls at small steps.

How far the terms between two scales fall is information that flows from one to the other: down when
the members move towards what is above them, and up when that moves towards them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from vfejax.agents.emergence import Condensed, Criteria, Dissolved, condense, dissolve
from vfejax.agents.hierarchy import Hierarchy, Scales, is_member, presence, quiet, row_mask
from vfejax.agents.hierarchy_energy import HierarchyTerms
from vfejax.agents.population import (
    Population,
    PopulationCoordinates,
    constrain,
    retract,
    unconstrain,
)
from vfejax.beliefs.coordinates import fisher_length
from vfejax.geometry.groups import Generators
from vfejax.numerics import tree_norm
from vfejax.problems.clocks import Clock, every, information
from vfejax.problems.population_flow import BELIEFS_AND_FRAMES, natural_step
from vfejax.types import Array, Integrator, PyTree

__all__ = [
    "Clock",
    "EmergentInfo",
    "EmergentState",
    "HierarchyEnergyFn",
    "emergent_flow",
    "every",
    "information",
]


class HierarchyEnergyFn(Protocol):
    """The energy of a hierarchy: :func:`vfejax.agents.hierarchy_energy.energy_terms` with all but
    the hierarchy given, as ``functools.partial`` does.
    """

    def __call__(self, hierarchy: Hierarchy, /, *, above: Population | None) -> HierarchyTerms:
        """Terms of the energy.

        Args:
            hierarchy: agents and meta-agents.
            above: the rows as those below them see them; None for those of the hierarchy.

        Returns:
            The terms in nats, and their total.
        """
        ...


class EmergentState(NamedTuple):
    """A hierarchy on its way.

    Attributes:
        position: coordinates of the N rows.
        parent: int32 ``[N]``, as in :class:`vfejax.agents.hierarchy.Hierarchy`.
        active: bool ``[N]``.
        supports: ``[N, *grid]`` or None.
        gradient: of the energy at the position.
        terms: of the energy at the position.
        step: int32, how many steps were taken.
        information: what each scale has received from its members since it last moved, ``[S + 1]``,
            in nats.
    """

    position: PopulationCoordinates
    parent: Array
    active: Array
    supports: Array | None
    gradient: PopulationCoordinates
    terms: HierarchyTerms
    step: Array
    information: Array

    @property
    def hierarchy(self) -> Hierarchy:
        """The hierarchy at the position."""
        return Hierarchy(constrain(self.position), self.parent, self.active, self.supports)

    @property
    def between(self) -> Array:
        """Energy between each scale and what is above it, ``[S]``, in nats."""
        return self.terms.between.by_children


class EmergentInfo(NamedTuple):
    """What one step did.

    Attributes:
        energy: total at the position the step arrived at, in nats.
        terms: its terms by scale.
        gradient_norm: Euclidean norm of the gradient there.
        parent: int32 ``[N]``, who is whose member after the step.
        active: bool ``[N]``.
        condensed: slots that were filled at the end of the step, groups that were refused, and
            agents that joined a meta-agent which was there.
        dissolved: members that left, and meta-agents that went.
        moved: bool ``[S + 1]``, which scales' clocks let them move.
        down: drop of the energy between scale s and what is above it by the move of scale s,
            ``[S]``, in nats.
        up: the further drop by the move of what is above, ``[S]``, in nats.
    """

    energy: Array
    terms: HierarchyTerms
    gradient_norm: Array
    parent: Array
    active: Array
    condensed: Condensed
    dissolved: Dissolved
    moved: Array
    down: Array
    up: Array


class _Setting(NamedTuple):
    """What does not change along a flow."""

    energy_fn: HierarchyEnergyFn
    scales: Scales
    group: Generators
    criteria: Criteria
    clocks: tuple[Clock, ...]
    quadrature: Array | None
    detect_every: int | Array
    optimizer_fn: Callable[..., optax.GradientTransformation]


def _select(rows: Array, new: PyTree, old: PyTree) -> PyTree:
    """The new arrays in these rows, the old ones in the others."""
    return jax.tree.map(lambda x, y: jnp.where(row_mask(rows, x), x, y), new, old)


def _weights(hierarchy: Hierarchy, quadrature: Array | None) -> Array:
    chi = presence(hierarchy)
    return chi if quadrature is None else chi * quadrature[None]


def _received(
    state: EmergentState, step: PopulationCoordinates, moving: Array, setting: _Setting
) -> Array:
    """Information that the scales receive from their members' steps, ``[S + 1]``, in nats."""
    weight = _weights(state.hierarchy, setting.quadrature)
    length = fisher_length(state.position.belief, step.belief)
    telling = row_mask(moving & is_member(state.parent), length)
    density = jnp.where(telling, 0.5 * weight * length * length, 0.0)
    gains = [jnp.sum(density[rows]) for rows in setting.scales.slices]
    return jnp.stack([jnp.zeros_like(gains[0]), *gains[:-1]])


class _Events(NamedTuple):
    """What came apart and what came together, and ``between`` of the time before that."""

    dissolved: Dissolved
    condensed: Condensed
    between: Array


def _reorganise(state: EmergentState, setting: _Setting) -> tuple[EmergentState, _Events]:
    """Let members leave and agents condense. Rows that no event touches keep their bits."""
    between = setting.energy_fn(state.hierarchy, above=None).between.by_children
    rules = (setting.scales, setting.group, setting.criteria)
    hierarchy, dissolved = dissolve(state.hierarchy, *rules, quadrature=setting.quadrature)
    hierarchy, condensed = condense(hierarchy, *rules, quadrature=setting.quadrature)
    position = _select(
        dissolved.dissolved | condensed.formed, unconstrain(hierarchy.population), state.position
    )
    _, parent, active, supports = hierarchy
    state = state._replace(position=position, parent=parent, active=active, supports=supports)
    return state, _Events(dissolved, condensed, between)


def _unchanged(state: EmergentState) -> tuple[EmergentState, _Events]:
    none = jnp.zeros_like(state.active)
    events = _Events(
        Dissolved(none, none),
        Condensed(none, jnp.zeros((), jnp.int32), none),
        jnp.zeros_like(state.between),
    )
    return state, events


def _evaluated(hierarchy: Hierarchy, position: PopulationCoordinates, setting: _Setting) -> dict:
    """The gradient and the terms of the energy at a position, fields of a state."""

    def energy(position: PopulationCoordinates) -> tuple[Array, HierarchyTerms]:
        here = hierarchy._replace(population=constrain(position))
        terms = setting.energy_fn(here, above=None)
        return terms.total, terms

    (_, terms), gradient = jax.value_and_grad(energy, has_aux=True)(position)
    return {"gradient": gradient, "terms": terms}


def _start(hierarchy: Hierarchy, setting: _Setting) -> EmergentState:
    population, parent, active, supports = hierarchy
    # What a slot that is not active holds may have no coordinates, and then no gradient.
    position = unconstrain(quiet(population, active))
    received = jnp.zeros((setting.scales.num_scales,), position.phi.dtype)
    return EmergentState(
        position,
        parent,
        active,
        supports,
        step=jnp.zeros((), jnp.int32),
        information=received,
        **_evaluated(hierarchy, position, setting),
    )


def _descend(state: EmergentState, setting: _Setting) -> tuple[EmergentState, Array]:
    """A step down the natural gradient, and which scales' clocks let them move."""
    index = state.step + 1
    ticks = [clock(index, state.information[1 + s]) for s, clock in enumerate(setting.clocks)]
    moved = jnp.stack([jnp.asarray(True), *ticks])
    moving = moved[setting.scales.of_rows] & state.active
    plain = state.supports is None and setting.quadrature is None
    measure = None if plain else _weights(state.hierarchy, setting.quadrature)
    optimizer = setting.optimizer_fn(measure=measure)
    step, _ = optimizer.update(state.gradient, optimizer.init(state.position), state.position)
    received = jnp.where(moved, 0.0, state.information)
    received = received + _received(state, step, moving, setting)
    position = _select(moving, retract(state.position, step, setting.group), state.position)
    return state._replace(position=position, step=index, information=received), moved


def _step(state: EmergentState, setting: _Setting) -> tuple[EmergentState, EmergentInfo]:
    after, moved = _descend(state, setting)
    # Members after the step and what is above them before it, with the parents of both times.
    mixed = setting.energy_fn(after.hierarchy, above=state.hierarchy.population)
    half_way = mixed.between.by_children
    look = after.step % setting.detect_every == 0
    after, events = jax.lax.cond(look, lambda s: _reorganise(s, setting), _unchanged, after)
    after = after._replace(**_evaluated(after.hierarchy, after.position, setting))
    info = EmergentInfo(
        energy=after.terms.total,
        terms=after.terms,
        gradient_norm=tree_norm(after.gradient),
        parent=after.parent,
        active=after.active,
        condensed=events.condensed,
        dissolved=events.dissolved,
        moved=moved,
        down=state.between - half_way,
        up=half_way - jnp.where(look, events.between, after.between),
    )
    return after, info


def emergent_flow(
    energy_fn: HierarchyEnergyFn,
    scales: Scales,
    group: Generators,
    step_size: float | Array = 0.02,
    trust_radius: float | Array = 0.3,
    rates: PyTree = BELIEFS_AND_FRAMES,
    *,
    criteria: Criteria = Criteria(),  # noqa: B008 (an immutable tuple)
    clocks: Sequence[Clock] = (),
    detect_every: int | Array = 10,
    damping: float | Array = 1.0,
    quadrature: Array | None = None,
) -> Integrator:
    """Natural gradient flow of a hierarchy in which meta-agents form and dissolve.

    A step is that of :func:`vfejax.problems.population_flow.population_flow` on all active rows of
    the scales whose clocks let them move. At every ``detect_every``-th step members leave and
    agents condense at its end. The gradient is carried, so a step costs one value and gradient of
    the energy, and the terms between scales twice more.

    Args:
        energy_fn: the energy of a hierarchy, such as ``functools.partial(energy_terms,
            scales=scales, generators=group, temperature=10.0)``.
        scales: how the rows are divided, from :func:`vfejax.agents.hierarchy.initial_hierarchy`.
        group: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``.
        step_size: fraction of the natural gradient that one step takes.
        trust_radius: longest step of one belief or prior (Fisher length) and of one frame
            (radians).
        rates: multiples of the step size, a tree prefix of the coordinates; 0 freezes its leaves.
        criteria: when agents join and when they part.
        clocks: one for each scale above 0, such as :func:`every` or :func:`information`; every step
            by default. Agents of scale 0 always move.
        detect_every: number of steps from one look for groups to the next.
        damping: nats per radian squared added to the frames' metric; see
            :func:`vfejax.agents.metric.natural_direction`.
        quadrature: weight of each point of the base manifold ``[*grid]``, as in the energy.

    Returns:
        ``init(hierarchy) -> EmergentState`` and ``step(state) -> (EmergentState, EmergentInfo)``.
        Under ``jax.vmap`` over states a look for groups costs its time at every step.

    Raises:
        ValueError: when the number of clocks is not that of the scales above 0.

    >>> from functools import partial
    >>> from vfejax.agents.hierarchy import initial_hierarchy
    >>> from vfejax.agents.hierarchy_energy import energy_terms
    >>> from vfejax.beliefs.gaussian import Gaussian
    >>> from vfejax.dynamics.rollout import rollout
    >>> from vfejax.geometry import irreps
    >>> group = irreps.so3((1,))
    >>> places = jnp.array([[0.0, 0, 0], [0.1, 0, 0], [9.0, 0, 0], [9.1, 0, 0]])
    >>> belief = Gaussian(places, jnp.tile(jnp.eye(3), (4, 1, 1)))
    >>> start, scales = initial_hierarchy(Population(belief, belief, jnp.zeros((4, 3))), (3,))
    >>> energy_fn = partial(energy_terms, scales=scales, generators=group, temperature=1.0)
    >>> flow = emergent_flow(energy_fn, scales, group, detect_every=4)
    >>> state, info = jax.jit(lambda x: rollout(flow, flow.init(x), 8))(start)
    >>> info.active.sum(axis=1).tolist()  # two meta-agents after the fourth step
    [4, 4, 4, 6, 6, 6, 6, 6]
    """
    clocks = tuple(clocks) or (every(1),) * len(scales.capacities)
    if len(clocks) != len(scales.capacities):
        raise ValueError(
            f"clocks must be one for each of the {len(scales.capacities)} scales above 0, got "
            f"{len(clocks)}"
        )
    optimizer_fn = functools.partial(
        natural_step, group, step_size, trust_radius, rates, damping=damping
    )
    setting = _Setting(
        energy_fn, scales, group, criteria, clocks, quadrature, detect_every, optimizer_fn
    )

    def init(hierarchy: Hierarchy) -> EmergentState:
        return _start(hierarchy, setting)

    def step(state: EmergentState, key: Array | None = None) -> tuple[EmergentState, EmergentInfo]:
        del key
        return _step(state, setting)

    return Integrator(init, step)
