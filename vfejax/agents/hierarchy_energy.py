"""One energy over all scales of a hierarchy, each term counted once.

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
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfejax.agents import alignment, pairwise
from vfejax.agents.alignment import AlignmentFn
from vfejax.agents.cross_scale import CrossScale, CrossScaleTerms, Seen, seen, terms_between
from vfejax.agents.edges import Edges, check_edges
from vfejax.agents.free_energy import Weights, checked_weights, is_zero
from vfejax.agents.hierarchy import (
    Hierarchy,
    Place,
    Scales,
    check_hierarchy,
    is_member,
    located,
    quiet,
    row_mask,
    sum_by_scale,
)
from vfejax.agents.observation import Observations, expected_negative_log_likelihood
from vfejax.agents.pairwise import FrameField
from vfejax.agents.points import receivers_per_block, sum_over_points
from vfejax.agents.population import Population
from vfejax.agents.scale_alignment import Pairing, alignment_by_scale
from vfejax.beliefs.gaussian import Gaussian, kl_divergence
from vfejax.geometry.groups import Generators
from vfejax.types import Array

__all__ = ["CrossScale", "CrossScaleTerms", "HierarchyTerms", "energy_terms"]


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


def _own_prior(
    population: Population,
    parent: Array,
    place: Place,
    scales: Scales,
    cross_scale: CrossScale,
) -> Array:
    """``sum_i (1 - w_i) KL(q_i || p_i)`` of every scale, ``[S + 1]``."""
    member = row_mask(is_member(parent), place.chi).astype(place.chi.dtype)
    share = 1.0 - jnp.asarray(cross_scale.blend, place.chi.dtype) * member
    density = kl_divergence(population.belief, population.prior)
    return sum_by_scale(place.weight * share * density, scales)


def _surprise(
    belief: Gaussian, place: Place, scales: Scales, observations: Observations | None
) -> Array:
    """What the agents of scale 0 pay for their observations, ``[S + 1]``."""
    zero = jnp.zeros((scales.num_scales,), place.chi.dtype)
    if observations is None:
        return zero
    agents = scales.slices[0]
    here = Gaussian(belief.mean[agents], belief.chol[agents])
    energy = place.weight[agents] * expected_negative_log_likelihood(here, observations)
    return jnp.concatenate([jnp.sum(energy)[None], zero[1:]])


def _seen_parents(
    rows: Seen, above: Population | None, active: Array, scales: Scales, generators: Generators
) -> Seen:
    """Meta-agents as their members see them: those of ``above``, or of the rows themselves."""
    if above is None:
        return jax.tree.map(lambda x: x[scales.num_agents :], rows)
    above, active = jax.tree.map(lambda x: x[scales.num_agents :], (above, active))
    above = quiet(above, active)
    return seen(above.belief, pairwise.frame_field(above.phi, generators))


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
    meta_alignment_fn: AlignmentFn | None = None,
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
            ``entropic``, ``saturating`` or your own.
        meta_alignment_fn: that of meta-agents among themselves; by default the same. With a
            saturating one, those that are far from one another do not pull.
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
        ValueError: when shapes or dtypes do not fit, naming the array; for a temperature of 0 or
            less that is not traced; for weights in a mapping.

    >>> from vfejax.agents.hierarchy import initial_hierarchy
    >>> from vfejax.geometry import irreps
    >>> belief = Gaussian(jnp.eye(3), jnp.tile(jnp.eye(3), (3, 1, 1)))
    >>> prior = Gaussian(jnp.zeros((3, 3)), belief.chol)
    >>> start, scales = initial_hierarchy(Population(belief, prior, jnp.zeros((3, 3))), (2,))
    >>> terms = jax.jit(energy_terms)(start, scales, irreps.so3((1,)), temperature=10.0)
    >>> terms.by_scale.round(4), round(float(terms.total), 4)
    (Array([4.5, 0. ], dtype=float32), 4.5)
    """
    check_hierarchy(hierarchy, scales, generators)
    if edges is not None:
        edges = Edges(*edges)
        check_edges(edges, scales.num_agents)
    weights = checked_weights(weights)
    alignment.check_temperatures(temperature=temperature, prior_temperature=prior_temperature)
    population = quiet(hierarchy.population, hierarchy.active)
    parent, place = hierarchy.parent, located(hierarchy, quadrature)
    field = pairwise.frame_field(population.phi, generators)
    rows = seen(population.belief, field)
    parents = _seen_parents(rows, above, hierarchy.active, scales, generators)
    between = terms_between(
        rows, parents, parent, place, scales, weights.self_coupling, cross_scale
    )
    block_size = receivers_per_block(scales.num_agents, population.phi.shape[1:-1], block_size)
    pairing = functools.partial(
        Pairing, alignment_fn, meta_alignment_fn or alignment_fn, edges, block_size
    )
    prior_tau = temperature if prior_temperature is None else prior_temperature

    def term(weight: float | Array, energy_fn: Callable[..., Array], *arguments: Any) -> Array:
        if is_zero(weight):
            return jnp.zeros((scales.num_scales,), population.phi.dtype)
        return jnp.asarray(weight, population.phi.dtype) * energy_fn(*arguments)

    def align(gaussian: Gaussian, tau: float | Array) -> Array:
        def at_point(gaussian: Gaussian, field: FrameField, chi: Array, weight: Array) -> Array:
            there = Place(chi, weight, place.everywhere)
            return alignment_by_scale(gaussian, field, there, scales, pairing(tau))

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
