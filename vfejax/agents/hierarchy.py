"""Hierarchies of agents and meta-agents, as arrays of a fixed size.

A hierarchy is one flat population. Its rows are the n agents of scale 0, then the slots of scale 1,
of scale 2, and so on. A slot is active when it holds a meta-agent, whose members are rows one scale
below. Meta-agents come and go by writing into slots. No shape changes, so one compiled step serves
a whole run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.agents.population import Population, check_array, check_population
from vfejax.beliefs.gaussian import Gaussian
from vfejax.geometry.groups import Generators
from vfejax.types import Array

__all__ = [
    "Hierarchy",
    "Place",
    "Scales",
    "ancestors",
    "check_hierarchy",
    "initial_hierarchy",
    "is_member",
    "located",
    "presence",
    "quiet",
    "row_mask",
    "sum_by_scale",
]


@jax.tree_util.register_static
@dataclass(frozen=True)
class Scales:
    """How the rows of a hierarchy are divided into scales: static numbers, no array.

    Attributes:
        num_agents: n, the rows of scale 0.
        capacities: slots of scale 1, 2, ...: the most meta-agents that can be at once.

    >>> scales = Scales(5, (3, 1))
    >>> scales.num_rows, scales.slices
    (9, (slice(0, 5, None), slice(5, 8, None), slice(8, 9, None)))
    """

    num_agents: int
    capacities: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse numbers that are not counts."""
        object.__setattr__(self, "capacities", tuple(self.capacities))
        for name, count in (("num_agents", self.num_agents), *self._named_capacities()):
            if not isinstance(count, int | np.integer) or count < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {count!r}")

    def _named_capacities(self) -> list[tuple[str, int]]:
        return [(f"capacities[{place}]", count) for place, count in enumerate(self.capacities)]

    @property
    def num_scales(self) -> int:
        """Number of scales, that of the agents included."""
        return 1 + len(self.capacities)

    @property
    def num_rows(self) -> int:
        """Number of rows N."""
        return self.num_agents + sum(self.capacities)

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """The rows of each scale."""
        ends = np.cumsum([self.num_agents, *self.capacities]).tolist()
        return tuple(slice(start, end) for start, end in zip([0, *ends], ends, strict=False))

    @cached_property
    def of_rows(self) -> np.ndarray:
        """The scale of each row, integers ``[N]``."""
        return np.repeat(np.arange(self.num_scales), [self.num_agents, *self.capacities])


class Hierarchy(NamedTuple):
    """Agents and meta-agents of all scales.

    Attributes:
        population: beliefs, priors and frames of the N rows, as points or as fields.
        parent: int32 ``[N]``, the row of the meta-agent one scale up; a row's own number where
            there is none.
        active: bool ``[N]``, True for agents and for slots that hold a meta-agent. Whatever another
            slot holds plays no part.
        supports: chi ``[N, *grid]`` in [0, 1], or None for everywhere.
    """

    population: Population
    parent: Array
    active: Array
    supports: Array | None = None


def row_mask(rows: Array, x: Array) -> Array:
    """A mask ``[N]`` with axes of length 1 behind it, as many as ``x [N, ...]`` has.

    >>> row_mask(jnp.array([True, False]), jnp.ones((2, 3))).shape
    (2, 1)
    """
    return jnp.reshape(rows, rows.shape + (1,) * (x.ndim - rows.ndim))


def quiet(population: Population, rows: Array) -> Population:
    """The population with unit Gaussians and frames at 0 in the other rows.

    Args:
        population: N rows, as points or as fields.
        rows: bool ``[N]``, True where the population stays.

    Returns:
        A population of the same shapes. What the other rows held is not read: no NaN of theirs
        passes, and their gradient is 0.

    >>> one = Gaussian(jnp.full((1, 3), jnp.nan), jnp.full((1, 3, 3), 2.0))
    >>> quiet(Population(one, one, jnp.ones((1, 3))), jnp.array([False])).belief.mean
    Array([[0., 0., 0.]], dtype=float32)
    """

    def keep(x: Array, otherwise: Array) -> Array:
        return jnp.where(row_mask(rows, x), x, otherwise)

    def gaussian(q: Gaussian) -> Gaussian:
        eye = jnp.eye(q.mean.shape[-1], dtype=q.chol.dtype)
        eye = jnp.reshape(eye, (1,) * (q.chol.ndim - 2) + eye.shape)
        return Gaussian(keep(q.mean, jnp.zeros((), q.mean.dtype)), keep(q.chol, eye))

    phi = keep(population.phi, jnp.zeros((), population.phi.dtype))
    return Population(gaussian(population.belief), gaussian(population.prior), phi)


def initial_hierarchy(
    population: Population, capacities: Sequence[int], supports: Array | None = None
) -> tuple[Hierarchy, Scales]:
    """The hierarchy in which no meta-agent has appeared yet.

    Args:
        population: n agents, as points or as fields ``[n, *grid, ...]``.
        capacities: slots of scale 1, 2, ...
        supports: chi of the agents ``[n, *grid]``; everywhere by default.

    Returns:
        The hierarchy, and how its rows are divided.

    Raises:
        ValueError: when the supports do not fit or a capacity is not a positive number.

    >>> unit = Gaussian(jnp.zeros((4, 3)), jnp.tile(jnp.eye(3), (4, 1, 1)))
    >>> start, scales = initial_hierarchy(Population(unit, unit, jnp.zeros((4, 3))), (2, 1))
    >>> start.active.tolist(), start.parent.tolist()
    ([True, True, True, True, False, False, False], [0, 1, 2, 3, 4, 5, 6])
    """
    num, *grid = population.phi.shape[:-1]
    scales = Scales(num, tuple(capacities))
    slots = scales.num_rows - num
    active = jnp.asarray(scales.of_rows == 0)

    def pad(x: Array) -> Array:
        return jnp.concatenate([x, jnp.zeros((slots, *x.shape[1:]), x.dtype)])

    if supports is not None:
        check_array("supports", supports, (num, *grid), population.belief.mean.dtype)
        supports = pad(supports)
    rows = quiet(jax.tree.map(pad, population), active)
    return Hierarchy(rows, jnp.arange(scales.num_rows, dtype=jnp.int32), active, supports), scales


def check_hierarchy(hierarchy: Hierarchy, scales: Scales, generators: Generators) -> None:
    """Refuse a hierarchy whose arrays do not fit.

    Args:
        hierarchy: agents and meta-agents.
        scales: how the rows are divided.
        generators: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``.

    Raises:
        ValueError: naming the array whose shape or dtype does not fit.

    >>> from vfejax.geometry import irreps
    >>> unit = Gaussian(jnp.zeros((4, 3)), jnp.tile(jnp.eye(3), (4, 1, 1)))
    >>> start, _ = initial_hierarchy(Population(unit, unit, jnp.zeros((4, 3))), (2, 1))
    >>> check_hierarchy(start, Scales(4, (2,)), irreps.so3((1,)))
    Traceback (most recent call last):
        ...
    ValueError: the hierarchy must have 6 rows to fit scales, got 7
    """
    population, parent, active, supports = hierarchy
    check_population(population, generators)
    shape = jnp.shape(population.phi)[:-1]
    if shape[0] != scales.num_rows:
        raise ValueError(
            f"the hierarchy must have {scales.num_rows} rows to fit scales, got {shape[0]}"
        )
    check_array("parent", parent, shape[:1], jnp.dtype("int32"))
    check_array("active", active, shape[:1], jnp.dtype(bool))
    if supports is not None:
        check_array("supports", supports, shape, population.belief.mean.dtype)


def is_member(parent: Array) -> Array:
    """Which rows have a parent, bool ``[N]``.

    >>> is_member(jnp.array([3, 3, 2, 3])).tolist()
    [True, True, False, False]
    """
    return parent != jnp.arange(parent.shape[0], dtype=parent.dtype)


def ancestors(parent: Array, num: int) -> Array:
    """Parents, grandparents and so on of every row.

    Args:
        parent: int ``[N]``, a row's own number where there is none.
        num: how many generations.

    Returns:
        int ``[num, N]``; a row's own number where there is no such ancestor.

    >>> ancestors(jnp.array([2, 2, 3, 3]), 3).tolist()
    [[2, 2, 3, 3], [3, 3, 2, 3], [0, 1, 2, 3]]
    """
    rows = jnp.arange(parent.shape[0], dtype=parent.dtype)
    found, here, present = [], rows, jnp.ones_like(rows, bool)
    for _ in range(num):
        above = parent[here]
        present = present & (above != here)
        here = above
        found.append(jnp.where(present, here, rows))
    return jnp.stack(found) if found else jnp.zeros((0, rows.size), parent.dtype)


def presence(hierarchy: Hierarchy) -> Array:
    """Where every row is, ``[N, *grid]``: its support, and 0 for a slot that is not active.

    >>> unit = Gaussian(jnp.zeros((2, 3)), jnp.tile(jnp.eye(3), (2, 1, 1)))
    >>> presence(initial_hierarchy(Population(unit, unit, jnp.zeros((2, 3))), (1,))[0])
    Array([1., 1., 0.], dtype=float32)
    """
    mean, chi = hierarchy.population.belief.mean, hierarchy.supports
    if chi is None:
        chi = jnp.ones(mean.shape[:-1], mean.dtype)
    return jnp.where(row_mask(hierarchy.active, chi), chi, jnp.zeros((), chi.dtype))


class Place(NamedTuple):
    """Where rows are: their presence chi and the weight ``chi w`` of their terms, ``[N, *grid]``;
    whether chi of every agent is 1.
    """

    chi: Array
    weight: Array
    everywhere: bool


def located(hierarchy: Hierarchy, quadrature: Array | None = None) -> Place:
    """Where the rows of a hierarchy are.

    Args:
        hierarchy: agents and meta-agents.
        quadrature: w of each point of the base manifold ``[*grid]``; 1 by default.

    Raises:
        ValueError: when the quadrature is not that of the grid.

    >>> unit = Gaussian(jnp.zeros((2, 3)), jnp.tile(jnp.eye(3), (2, 1, 1)))
    >>> located(initial_hierarchy(Population(unit, unit, jnp.zeros((2, 3))), (1,))[0]).weight
    Array([1., 1., 0.], dtype=float32)
    """
    chi = presence(hierarchy)
    everywhere = hierarchy.supports is None
    if quadrature is None:
        return Place(chi, chi, everywhere)
    check_array("quadrature", quadrature, chi.shape[1:], chi.dtype)
    return Place(chi, chi * quadrature[None], everywhere)


def sum_by_scale(density: Array, scales: Scales) -> Array:
    """Sums over the rows of each scale and over all points, ``[N, *grid] -> [S + 1]``.

    >>> sum_by_scale(jnp.ones(7), Scales(4, (2, 1)))
    Array([4., 2., 1.], dtype=float32)
    """
    return jnp.stack([jnp.sum(density[rows]) for rows in scales.slices])
