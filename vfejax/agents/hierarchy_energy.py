"""One energy over all scales of a hierarchy, each term paid once.

A term belongs to the scale of the agent that pays for it:

    F_s = lambda_self   sum_i [(1 - w_i) KL(q_i || p_i) + w_i KL(q_i || Omega_iM q_M)]
        + lambda_self   sum_i sum_d decay^d KL(q_i || Omega_iA q_A)
        + lambda_belief sum_ij beta_ij  KL(q_i || Omega_ij q_j)
        + lambda_prior  sum_ij gamma_ij KL(p_i || Omega_ij p_j)
        + observations

with i and j at scale s. M is the parent of i, ``w_i`` the blend (0 without a parent), and A the
ancestor d scales above the parent. At scale 0 the observations are the agents' own. A meta-agent M
observes its members, ``bottom_up sum_{i in M} w_i E_{q_M}[-log N(Omega_Mi mu_i | x, Omega_Mi
Sigma_i Omega_Mi^T)]``: each belief is a reading with its own covariance, transported to the frame
of M. That is ``KL(q_M || Omega_Mi q_i)`` plus the entropy of ``q_M``. So a parent pulls on its
members as their prior, and they pull on it as its data.

Evidence. Their prior already ties members and parent both ways: with ``bottom_up = 0`` and blend 1,
n members that agree end at n times the precision of their own observations, each counted once. With
a larger one what goes up comes down as prior and counts again. The precision of a member is then
``P / (1 - x)`` with ``n x^2 - (n - 1) x = bottom_up``, P that of its own observations, and from
``bottom_up = 1`` on it grows without end.

On a base manifold every term is integrated with the support of the agent that pays
(:mod:`vfejax.agents.free_energy`). Terms between scales are divergences along edges, O(N k^3).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.agents import alignment, pairwise
from vfejax.agents.alignment import AlignmentFn
from vfejax.agents.edges import (
    CommonFrame,
    Edges,
    check_edges,
    common_frame,
    divergence_between,
    edge_alignment_energy,
)
from vfejax.agents.free_energy import Weights
from vfejax.agents.hierarchy import (
    Hierarchy,
    Scales,
    ancestors,
    check_hierarchy,
    is_member,
    presence,
    quiet,
    row_mask,
)
from vfejax.agents.observation import Observations, expected_negative_log_likelihood
from vfejax.agents.pairwise import FrameField, PairFeatures
from vfejax.agents.points import sum_over_points
from vfejax.agents.population import Population, check_array
from vfejax.agents.supports import log_support, neighbours_present
from vfejax.beliefs.gaussian import Gaussian, entropy, kl_divergence
from vfejax.geometry.groups import Generators
from vfejax.numerics import matmul
from vfejax.types import Array

__all__ = ["CrossScale", "CrossScaleTerms", "HierarchyTerms", "energy_terms"]


class CrossScale(NamedTuple):
    """How scales act on one another.

    Attributes:
        blend: w in [0, 1], the share of the parent in the prior of its members; 1 replaces it.
        bottom_up: precision with which a meta-agent reads its members, dimensionless; 0 switches it
            off, so that no evidence counts twice.
        decay: factor per scale of the hyperpriors.
        depth: how many scales above the parent reach down as hyperpriors, a static number.
    """

    blend: float | Array = 1.0
    bottom_up: float | Array = 0.0
    decay: float | Array = 0.5
    depth: int = 0


class CrossScaleTerms(NamedTuple):
    """Weighted terms between scales, each ``[S + 1]`` by the scale of the agent that pays, in
    nats.
    """

    self_coupling: Array
    hyperprior: Array
    observation: Array

    @property
    def by_children(self) -> Array:
        """The terms between the rows at scale s and all that is above them, ``[S]``."""
        return (self.self_coupling + self.hyperprior)[:-1] + self.observation[1:]


class HierarchyTerms(NamedTuple):
    """Weighted terms, each ``[S + 1]`` by the scale of the agent that pays, and the sum of all of
    them, a scalar, in nats.

    ``between`` says how much of them is between scales; it is not added to the total again.
    """

    self_coupling: Array
    hyperprior: Array
    belief_alignment: Array
    prior_alignment: Array
    observation: Array
    total: Array
    between: CrossScaleTerms

    @property
    def by_scale(self) -> Array:
        """Energy of each scale, ``[S + 1]``."""
        own, above, beliefs, priors, observed, *_ = self
        return own + above + beliefs + priors + observed


class _Place(NamedTuple):
    """Where rows are: their presence chi and the weight ``chi w`` of their terms, ``[N, *grid]``;
    whether chi of every agent is 1.
    """

    chi: Array
    weight: Array
    everywhere: bool


class _Pairing(NamedTuple):
    """How agents of one scale are compared, the same at every point."""

    alignment_fn: AlignmentFn
    edges: Edges | None
    block_size: int | None
    temperature: float | Array


def _is_zero(weight: float | Array) -> bool:
    """True for a weight that is the Python number 0: its term is not even computed."""
    return isinstance(weight, int | float) and weight == 0


def _place(hierarchy: Hierarchy, quadrature: Array | None) -> _Place:
    chi = presence(hierarchy)
    everywhere = hierarchy.supports is None
    if quadrature is None:
        return _Place(chi, chi, everywhere)
    check_array("quadrature", quadrature, chi.shape[1:], chi.dtype)
    return _Place(chi, chi * quadrature[None], everywhere)


def _by_scale(density: Array, scales: Scales) -> Array:
    """Sums over the rows of each scale, ``[N, *grid] -> [S + 1]``."""
    return jnp.stack([jnp.sum(density[rows]) for rows in scales.slices])


def _shares(chi: Array, parent: Array) -> Array:
    """Share of each row in what its parent observes, ``chi_i / sum_{j in M} chi_j [N, *grid]``; 0
    without a parent, and where no member is.
    """
    present = jnp.where(row_mask(is_member(parent), chi), chi, jnp.zeros((), chi.dtype))
    total = jax.ops.segment_sum(present, parent, parent.shape[0])[parent]
    nowhere = total <= 0
    return jnp.where(nowhere, 0.0, present / jnp.where(nowhere, 1.0, total))


class _Seen(NamedTuple):
    """Beliefs as other scales see them: in the common frame, and their entropy ``[N, *grid]``."""

    frame: CommonFrame
    entropy: Array


def _seen(belief: Gaussian, field: FrameField) -> _Seen:
    return _Seen(common_frame(belief, field), entropy(belief))


def _between(
    rows: _Seen,
    slots: _Seen,
    parent: Array,
    place: _Place,
    scales: Scales,
    lambda_self: float | Array,
    cross_scale: CrossScale,
) -> CrossScaleTerms:
    """Terms between all rows, as members, and what is above them: always slots."""
    blend, bottom_up, decay, depth = cross_scale
    dtype = place.chi.dtype
    zero = jnp.zeros((scales.num_scales,), dtype)
    if not scales.capacities:
        return CrossScaleTerms(zero, zero, zero)
    own = jnp.arange(scales.num_rows, dtype=parent.dtype)
    generations = ancestors(parent, 1 + max(0, min(depth, scales.num_scales - 2)))
    seen = [
        jax.tree.map(lambda x, i=i: x[jnp.maximum(i - scales.num_agents, 0)], slots)
        for i in generations
    ]

    def paid(weight: Array, density: Array, ancestor: Array) -> Array:
        there = row_mask(ancestor != own, density)
        return _by_scale(jnp.where(there, weight * density, 0.0), scales)

    coupling, decay = jnp.asarray(lambda_self, dtype), jnp.asarray(decay, dtype)
    above, *towers = [
        paid(place.weight, divergence_between(rows.frame, x.frame), ancestor)
        for x, ancestor in zip(seen, generations, strict=True)
    ]
    towers = [decay ** (d + 1) * energy for d, energy in enumerate(towers)]
    observation = zero
    if not _is_zero(bottom_up):
        read = divergence_between(seen[0].frame, rows.frame) + seen[0].entropy
        share = _shares(place.chi, parent) * place.weight[parent]
        members = jnp.asarray(bottom_up, dtype) * paid(share, read, parent)
        observation = jnp.concatenate([zero[:1], members[:-1]])
    return CrossScaleTerms(
        coupling * jnp.asarray(blend, dtype) * above,
        coupling * functools.reduce(jnp.add, towers, zero),
        observation,
    )


def _agents_aligned(
    gaussian: Gaussian, field: FrameField, pairs: PairFeatures, place: _Place, pairing: _Pairing
) -> Array:
    """Alignment energy of scale 0 at one point: streamed, or along a neighbour list."""
    chi, coefficient, everywhere = place
    alignment_fn, edges, block_size, temperature = pairing
    log_weight = None
    if not everywhere:
        coefficient = coefficient * neighbours_present(chi, *(edges or (None, None)))
        log_weight = log_support(chi)
    if edges is not None:
        return edge_alignment_energy(
            gaussian,
            field,
            edges,
            temperature,
            coefficient=coefficient,
            log_weight=log_weight,
            alignment_fn=alignment_fn,
        )
    return pairwise.alignment_energy(
        pairs,
        temperature,
        coefficient=coefficient,
        log_weight=log_weight,
        alignment_fn=alignment_fn,
        block_size=block_size,
    )


def _slots_aligned(pairs: PairFeatures, place: _Place, scales: Scales, pairing: _Pairing) -> Array:
    """Alignment energies of all slots at one point, ``[C]``, all scales in one array of pairs."""
    chi, coefficient, everywhere = place
    of_slots = scales.of_rows[scales.num_agents :]
    neighbours = (of_slots[:, None] == of_slots[None, :]) & ~np.eye(of_slots.size, dtype=bool)
    if everywhere:
        count = jnp.sum(jnp.where(neighbours, chi[None, :], 0.0), axis=1)
        present = jnp.where(count > 0, 1.0, count)
    else:
        ends = [rows.stop - scales.num_agents for rows in scales.slices[:-1]]
        present = jnp.concatenate([neighbours_present(x) for x in jnp.split(chi, ends)[1:]])
    temperature = jnp.asarray(pairing.temperature, chi.dtype)
    log_weight = jnp.where(neighbours, log_support(chi)[None, :], -jnp.inf)
    divergence = matmul(pairs.receiver, pairs.sender.T) / temperature
    # A pair that does not count has divergence 0, whatever it would be: see AlignmentFn.
    divergence = jnp.where(log_weight == -jnp.inf, 0.0, divergence)
    energies = pairing.alignment_fn(divergence, log_weight, alignment.rows())
    return temperature * coefficient * present * energies


def _aligned(
    gaussian: Gaussian, field: FrameField, place: _Place, scales: Scales, pairing: _Pairing
) -> Array:
    """Alignment energy of every scale at one point, ``[S + 1]``."""
    chi, weight, everywhere = place
    features = pairwise.pair_features(gaussian, field, chi)

    def part(start: int, stop: int | None) -> tuple[Gaussian, FrameField, PairFeatures, _Place]:
        arrays = (gaussian, field, features, (chi, weight))
        *cut, (here, there) = jax.tree.map(lambda x: x[start:stop], arrays)
        return *cut, _Place(here, there, everywhere)

    agents = _agents_aligned(*part(0, scales.num_agents), pairing)[None]
    if not scales.capacities:
        return agents
    _, _, pairs, there = part(scales.num_agents, None)
    energies = _slots_aligned(pairs, there, scales, pairing)
    ends = np.cumsum(scales.capacities)[:-1]
    return jnp.concatenate([agents, jnp.stack([jnp.sum(x) for x in jnp.split(energies, ends)])])


def _block_size(population: Population, scales: Scales, requested: int | None) -> int | None:
    """Receivers per block of pairs when the blocks of all points of a grid are alive at once."""
    points = math.prod(population.phi.shape[1:-1])
    if requested is not None or points <= 1:
        return requested
    return max(1, pairwise.BLOCK_ENTRIES // (scales.num_agents * points))


def _own_prior(
    population: Population,
    parent: Array,
    place: _Place,
    scales: Scales,
    cross_scale: CrossScale,
) -> Array:
    """``sum_i (1 - w_i) KL(q_i || p_i)`` of every scale, ``[S + 1]``."""
    member = row_mask(is_member(parent), place.chi).astype(place.chi.dtype)
    share = 1.0 - jnp.asarray(cross_scale.blend, place.chi.dtype) * member
    density = kl_divergence(population.belief, population.prior)
    return _by_scale(place.weight * share * density, scales)


def _surprise(
    belief: Gaussian, place: _Place, scales: Scales, observations: Observations | None
) -> Array:
    """What the agents of scale 0 pay for their observations, ``[S + 1]``."""
    zero = jnp.zeros((scales.num_scales,), place.chi.dtype)
    if observations is None:
        return zero
    agents = scales.slices[0]
    here = Gaussian(belief.mean[agents], belief.chol[agents])
    energy = place.weight[agents] * expected_negative_log_likelihood(here, observations)
    return jnp.concatenate([jnp.sum(energy)[None], zero[1:]])


def energy_terms(
    hierarchy: Hierarchy,
    scales: Scales,
    generators: Generators,
    *,
    above: Population | None = None,
    weights: Weights | tuple = Weights(),  # noqa: B008 (an immutable tuple)
    temperature: float | Array = 1.0,
    prior_temperature: float | Array | None = None,
    alignment_fn: AlignmentFn = alignment.weighted,
    cross_scale: CrossScale = CrossScale(),  # noqa: B008 (an immutable tuple)
    observations: Observations | None = None,
    quadrature: Array | None = None,
    edges: Edges | None = None,
    block_size: int | None = None,
) -> HierarchyTerms:
    """Free energy of a hierarchy, term by term and scale by scale.

    Args:
        hierarchy: agents and meta-agents, N rows, as points or as fields.
        scales: how the rows are divided.
        generators: a :class:`vfejax.geometry.groups.Group` such as ``irreps.so3((1,))``, or a basis
            of the Lie algebra ``[a, k, k]``, which means the general exponential.
        above: the N rows as those below them see them; those of the hierarchy by default. With the
            rows before a step here, and those after it in the hierarchy, ``between`` is what it
            would be had only the members moved.
        weights: lambda of each term; a term whose weight is the number 0 is not computed.
        temperature: tau of the attention, in nats, positive.
        prior_temperature: tau of the attention between priors, in nats, positive; that of the
            beliefs by default.
        alignment_fn: alignment energy, :func:`vfejax.agents.alignment.weighted` (default),
            ``entropic`` or your own.
        cross_scale: how scales act on one another.
        observations: what the agents of scale 0 measured; without it they observe nothing.
        quadrature: weight of each point of the base manifold ``[*grid]``; 1 by default.
        edges: neighbour list of scale 0; by default every agent listens to all others. Meta-agents
            of one scale listen to all others of theirs.
        block_size: receivers per block of pairs. It changes memory and speed, never the result.

    Returns:
        Weighted terms in nats, each ``[S + 1]``, and their total. Without active meta-agents the
        total is that of :func:`vfejax.agents.free_energy.free_energy_terms`. NaN in an active row
        makes the total NaN.

    Raises:
        ValueError: when shapes or dtypes do not fit, naming the array.

    >>> from vfejax.agents.hierarchy import ground
    >>> from vfejax.geometry import irreps
    >>> belief = Gaussian(jnp.eye(3), jnp.tile(jnp.eye(3), (3, 1, 1)))
    >>> prior = Gaussian(jnp.zeros((3, 3)), belief.chol)
    >>> start, scales = ground(Population(belief, prior, jnp.zeros((3, 3))), (2,))
    >>> terms = jax.jit(energy_terms)(start, scales, irreps.so3((1,)), temperature=10.0)
    >>> terms.by_scale.round(4), round(float(terms.total), 4)
    (Array([4.5, 0. ], dtype=float32), 4.5)
    """
    check_hierarchy(hierarchy, scales, generators)
    if edges is not None:
        edges = Edges(*edges)
        check_edges(edges, scales.num_agents)
    weights = Weights(*weights)
    population = quiet(hierarchy.population, hierarchy.active)
    parent, place = hierarchy.parent, _place(hierarchy, quadrature)
    field = pairwise.frame_field(population.phi, generators)
    rows = _seen(population.belief, field)
    slots = jax.tree.map(lambda x: x[scales.num_agents :], rows)
    if above is not None:
        above, active = jax.tree.map(lambda x: x[scales.num_agents :], (above, hierarchy.active))
        above = quiet(above, active)
        slots = _seen(above.belief, pairwise.frame_field(above.phi, generators))
    between = _between(rows, slots, parent, place, scales, weights.self_coupling, cross_scale)
    block_size = _block_size(population, scales, block_size)
    pairing = functools.partial(_Pairing, alignment_fn, edges, block_size)
    prior_tau = temperature if prior_temperature is None else prior_temperature

    def term(weight: float | Array, energy_fn: Callable[..., Array], *arguments: Any) -> Array:
        if _is_zero(weight):
            return jnp.zeros((scales.num_scales,), population.phi.dtype)
        return jnp.asarray(weight, population.phi.dtype) * energy_fn(*arguments)

    def align(gaussian: Gaussian, tau: float | Array) -> Array:
        def at_point(gaussian: Gaussian, field: FrameField, chi: Array, weight: Array) -> Array:
            there = _Place(chi, weight, place.everywhere)
            return _aligned(gaussian, field, there, scales, pairing(tau))

        arrays = (gaussian, field, place.chi, place.weight)
        return sum_over_points(at_point, arrays, population.phi.ndim - 2)

    own = term(weights.self_coupling, _own_prior, population, parent, place, scales, cross_scale)
    observed = term(weights.observation, _surprise, population.belief, place, scales, observations)
    terms = (
        own + between.self_coupling,
        between.hyperprior,
        term(weights.belief_alignment, align, population.belief, temperature),
        term(weights.prior_alignment, align, population.prior, prior_tau),
        observed + between.observation,
    )
    return HierarchyTerms(*terms, total=jnp.sum(jnp.stack(terms)), between=between)
