"""Variational free energy of a population of Gaussian agents.

    F = lambda_self   sum_i KL(q_i || p_i)
      + lambda_belief sum_ij beta_ij  KL(q_i || Omega_ij q_j)
      + lambda_prior  sum_ij gamma_ij KL(p_i || Omega_ij p_j)
      + lambda_obs    sum_i E_{q_i}[-log p(o_i | x)]

with attention beta, gamma = softmax_j(-KL / tau) over j != i. The attention between priors may have
a temperature of its own. (Where papers of the field write kappa_beta and kappa_gamma, both are such
temperatures.) On a base manifold every term is integrated with the quadrature weights and the
support chi_i of the agent. The supports of its neighbours weigh its softmax, ``beta_ij ~ chi_j
exp(-KL_ij / tau)``. Its alignment counts as far as neighbours are present, ``c_i = 1 - prod_{j !=
i} (1 - chi_j)``. So every force on an agent vanishes with its own support, as it must. Two agents
pay exactly ``chi_i chi_j KL_ij``, and for sharp supports this is the plain softmax over the agents
present at the point. (A hard mask with the weight chi_i chi_j outside would let a neighbour of
vanishing support take attention away from the others.)
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.agents import alignment, pairwise
from vfejax.agents.alignment import AlignmentFn
from vfejax.agents.edges import Edges, check_edges, edge_alignment_energy
from vfejax.agents.links import check_links
from vfejax.agents.observation import Observations, expected_negative_log_likelihood
from vfejax.agents.pairwise import FrameField, Method
from vfejax.agents.points import at_points, receivers_per_block, sum_over_points
from vfejax.agents.population import Population, check_population
from vfejax.agents.supports import log_support, measure, neighbours_present
from vfejax.beliefs.gaussian import Gaussian, kl_divergence
from vfejax.geometry.groups import Generators
from vfejax.types import Array

__all__ = [
    "FreeEnergyTerms",
    "Weights",
    "checked_weights",
    "free_energy",
    "free_energy_terms",
    "is_zero",
]


class Weights(NamedTuple):
    """Dimensionless weight lambda of each term."""

    self_coupling: float | Array = 1.0
    belief_alignment: float | Array = 1.0
    prior_alignment: float | Array = 0.0
    observation: float | Array = 1.0


def checked_weights(weights: Weights | tuple) -> Weights:
    """Weights from a tuple in their order; a mapping would be read as its names.

    Raises:
        ValueError: for a mapping, a single number, or more than four entries.

    >>> checked_weights((1.0, 0.5)).belief_alignment
    0.5
    """
    if isinstance(weights, Mapping) or not np.iterable(weights):
        raise ValueError(
            f"weights must be Weights(...) or a tuple in its order, got {type(weights).__name__}; "
            "Weights(**weights) is that of a dict"
        )
    if len(weights) > len(Weights._fields):
        raise ValueError(f"weights must have at most 4 entries, got {len(weights)}")
    return Weights(*weights)


class FreeEnergyTerms(NamedTuple):
    """Weighted terms of the free energy and their sum, scalars in nats."""

    self_coupling: Array
    belief_alignment: Array
    prior_alignment: Array
    observation: Array
    total: Array


class _Pairing(NamedTuple):
    """How pairs of agents are compared, the same at every point."""

    alignment_fn: AlignmentFn
    edges: Edges | None
    block_size: int | None
    compute_dtype: jax.typing.DTypeLike | None
    method: Method


class _Place(NamedTuple):
    """Where agents are: the weight ``chi_i w`` of each agent and its support chi_i; None means
    1.
    """

    weight: Array | None
    support: Array | None


def is_zero(weight: float | Array) -> bool:
    """True for a weight that is the Python number 0: its term is not even computed.

    >>> is_zero(0), is_zero(jnp.zeros(()))
    (True, False)
    """
    return isinstance(weight, int | float) and weight == 0


def _alignment(
    gaussian: Gaussian,
    field: FrameField,
    place: _Place,
    links: FrameField | None,
    *,
    temperature: float | Array,
    pairing: _Pairing,
) -> Array:
    """Alignment energy at one point: n agents, one Gaussian each."""
    coefficient, chi = place
    log_weight = None
    if chi is not None:
        present = neighbours_present(chi, *(pairing.edges or (None, None)))
        coefficient = present if coefficient is None else coefficient * present
        log_weight = log_support(chi)
    if pairing.edges is not None:
        return edge_alignment_energy(
            gaussian,
            field,
            pairing.edges,
            temperature,
            coefficient=coefficient,
            log_weight=log_weight,
            alignment_fn=pairing.alignment_fn,
            links=links,
        )
    return pairing.method(
        pairwise.pair_features(gaussian, field, chi),
        temperature,
        coefficient=coefficient,
        log_weight=log_weight,
        alignment_fn=pairing.alignment_fn,
        block_size=pairing.block_size,
        compute_dtype=pairing.compute_dtype,
    )


def _checked_edges(
    edges: Edges | None, links: Array | None, phi: Array, method: Method
) -> Edges | None:
    """The neighbour list, which fits the population, its links and the method."""
    if edges is not None:
        edges = Edges(*edges)
        check_edges(edges, phi.shape[0])
        if method is not pairwise.alignment_energy:
            raise ValueError("method must be left out with edges: it is for all pairs")
    check_links(links, edges, phi)
    return edges


def free_energy_terms(
    population: Population,
    generators: Generators,
    *,
    weights: Weights | tuple = Weights(),  # noqa: B008 (an immutable tuple)
    temperature: float | Array = 1.0,
    prior_temperature: float | Array | None = None,
    alignment_fn: AlignmentFn = alignment.weighted,
    observations: Observations | None = None,
    supports: Array | None = None,
    quadrature: Array | None = None,
    edges: Edges | None = None,
    links: Array | None = None,
    block_size: int | None = None,
    compute_dtype: jax.typing.DTypeLike | None = None,
    method: Method = pairwise.alignment_energy,
) -> FreeEnergyTerms:
    """Free energy of a population, term by term.

    Args:
        population: beliefs, priors and frames of n agents, as points or as fields ``[n, *grid,
            ...]``; all arrays in one floating dtype.
        generators: a :class:`vfejax.geometry.groups.Group` such as ``irreps.so3((1,))``, or a basis
            of the Lie algebra ``[a, k, k]``, which means the general exponential.
        weights: lambda of each term; a term whose weight is the number 0 is not computed.
        temperature: tau of the attention, in nats, positive.
        prior_temperature: tau of the attention between priors, in nats, positive; that of the
            beliefs by default.
        alignment_fn: alignment energy, :func:`vfejax.agents.alignment.weighted` (default),
            ``entropic``, ``saturating`` or your own.
        observations: what the agents measured; without it the observation term is 0.
        supports: chi_i in [0, 1], ``[n, *grid]``; 1 by default. The gradient in chi_i is exact
            where ``chi_i > 0``. At 0 it is finite but leaves out the attention agent i would draw.
        quadrature: weight of each point of the base manifold ``[*grid]``; 1 by default.
        edges: neighbour list; by default every agent listens to all others.
        links: coordinates of a group element V_e on each edge, ``[e, *grid, a]``. The transport
            along it is then ``U_i V_e U_j^{-1}``, by default ``U_i U_j^{-1}``. Links need edges.
        block_size: receivers per block of pairs. It changes memory and speed, never the result.
        compute_dtype: dtype of the operands of the products over all pairs (``jnp.bfloat16``); they
            accumulate in the population's dtype.
        method: how the energy of all pairs is computed; :func:`vfejax.agents.ring.ring` makes one
            for agents that are shared out over devices.

    Returns:
        Weighted terms and their total, scalars in nats. NaN in an agent makes the total NaN.
        Complexity O(n^2 k^2) time, O(n k^2) memory at a point.

    Raises:
        ValueError: when shapes or dtypes do not fit, or edges are not those of the population,
            naming the array; for links without edges, and for edges with a method; for a
            temperature of 0 or less that is not traced; for weights in a mapping.

    >>> from vfejax.geometry import irreps
    >>> belief = Gaussian(jnp.eye(3), jnp.tile(jnp.eye(3), (3, 1, 1)))  # three agents, k = 3
    >>> prior = Gaussian(jnp.zeros((3, 3)), belief.chol)
    >>> agents = Population(belief, prior, jnp.zeros((3, 3)))
    >>> terms = jax.jit(free_energy_terms)(agents, irreps.so3((1,)), temperature=10.0)
    >>> {name: round(float(value), 3) for name, value in terms._asdict().items() if value}
    {'self_coupling': 1.5, 'belief_alignment': 3.0, 'total': 4.5}
    """
    check_population(population, generators)
    alignment.check_temperatures(temperature=temperature, prior_temperature=prior_temperature)
    population, supports = jax.tree.map(jnp.asarray, (population, supports))
    belief, prior, phi = population
    edges = _checked_edges(edges, links, phi, method)
    weights = checked_weights(weights)
    place = _Place(measure(population, supports, quadrature), supports)
    size = receivers_per_block(phi.shape[0], phi.shape[1:-1], block_size)
    pairing = _Pairing(alignment_fn, edges, size, compute_dtype, method)
    dtype, num_grid_axes = belief.mean.dtype, phi.ndim - 2
    aligned = not (is_zero(weights.belief_alignment) and is_zero(weights.prior_alignment))
    field = pairwise.frame_field(phi, generators) if aligned else None
    linked = pairwise.frame_field(links, generators) if aligned and links is not None else None
    prior_tau = temperature if prior_temperature is None else prior_temperature

    def term(weight: float | Array, energy: Callable[[], Array]) -> Array:
        if is_zero(weight):
            return jnp.zeros((), dtype)
        return jnp.asarray(weight, dtype) * energy()

    def integral(density: Array) -> Array:
        return jnp.sum(density if place.weight is None else place.weight * density)

    def align(gaussian: Gaussian, tau: float | Array) -> Array:
        at_point = functools.partial(_alignment, temperature=tau, pairing=pairing)
        return sum_over_points(at_point, (gaussian, field, place, linked), num_grid_axes)

    def surprise() -> Array:
        if observations is None:
            return jnp.zeros((), dtype)
        return integral(expected_negative_log_likelihood(belief, observations))

    def complexity() -> Array:
        return integral(at_points(kl_divergence, (belief, prior), num_grid_axes))

    terms = (
        term(weights.self_coupling, complexity),
        term(weights.belief_alignment, lambda: align(belief, temperature)),
        term(weights.prior_alignment, lambda: align(prior, prior_tau)),
        term(weights.observation, surprise),
    )
    return FreeEnergyTerms(*terms, total=terms[0] + terms[1] + terms[2] + terms[3])


def free_energy(
    population: Population,
    generators: Generators,
    *,
    weights: Weights | tuple = Weights(),  # noqa: B008 (an immutable tuple)
    temperature: float | Array = 1.0,
    prior_temperature: float | Array | None = None,
    alignment_fn: AlignmentFn = alignment.weighted,
    observations: Observations | None = None,
    supports: Array | None = None,
    quadrature: Array | None = None,
    edges: Edges | None = None,
    links: Array | None = None,
    block_size: int | None = None,
    compute_dtype: jax.typing.DTypeLike | None = None,
    method: Method = pairwise.alignment_energy,
) -> Array:
    """Total free energy of a population.

    Args:
        population: beliefs, priors and frames of n agents, as points or as fields ``[n, *grid,
            ...]``; all arrays in one floating dtype.
        generators: a :class:`vfejax.geometry.groups.Group` such as ``irreps.so3((1,))``, or a basis
            of the Lie algebra ``[a, k, k]``, which means the general exponential.
        weights: lambda of each term; a term whose weight is the number 0 is not computed.
        temperature: tau of the attention, in nats, positive.
        prior_temperature: tau of the attention between priors, in nats, positive; that of the
            beliefs by default.
        alignment_fn: alignment energy, :func:`vfejax.agents.alignment.weighted` (default),
            ``entropic``, ``saturating`` or your own.
        observations: what the agents measured; without it the observation term is 0.
        supports: chi_i in [0, 1], ``[n, *grid]``; 1 by default. The gradient in chi_i is exact
            where ``chi_i > 0``. At 0 it is finite but leaves out the attention agent i would draw.
        quadrature: weight of each point of the base manifold ``[*grid]``; 1 by default.
        edges: neighbour list; by default every agent listens to all others.
        links: coordinates of a group element V_e on each edge, ``[e, *grid, a]``. The transport
            along it is then ``U_i V_e U_j^{-1}``, by default ``U_i U_j^{-1}``. Links need edges.
        block_size: receivers per block of pairs. It changes memory and speed, never the result.
        compute_dtype: dtype of the operands of the products over all pairs (``jnp.bfloat16``); they
            accumulate in the population's dtype.
        method: how the energy of all pairs is computed; :func:`vfejax.agents.ring.ring` makes one
            for agents that are shared out over devices.

    Returns:
        A scalar in nats; NaN when there is a NaN in an agent.

    Raises:
        ValueError: when shapes or dtypes do not fit, or edges are not those of the population,
            naming the array; for links without edges, and for edges with a method.

    >>> from vfejax.geometry import irreps
    >>> belief = Gaussian(jnp.eye(3), jnp.tile(jnp.eye(3), (3, 1, 1)))
    >>> agents = Population(belief, belief, jnp.zeros((3, 3)))
    >>> value_and_gradient = jax.jit(jax.value_and_grad(free_energy))
    >>> energy, gradient = value_and_gradient(agents, irreps.so3((1,)))
    >>> round(float(energy), 3), gradient.phi.shape
    (3.0, (3, 3))
    """
    terms = free_energy_terms(
        population,
        generators,
        weights=weights,
        temperature=temperature,
        prior_temperature=prior_temperature,
        alignment_fn=alignment_fn,
        observations=observations,
        supports=supports,
        quadrature=quadrature,
        edges=edges,
        links=links,
        block_size=block_size,
        compute_dtype=compute_dtype,
        method=method,
    )
    return terms.total
