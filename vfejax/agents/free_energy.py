"""Variational free energy of a population of Gaussian agents.

    F = lambda_self   sum_i KL(q_i || p_i)
      + lambda_belief sum_ij beta_ij  KL(q_i || Omega_ij q_j)
      + lambda_prior  sum_ij gamma_ij KL(p_i || Omega_ij p_j)
      + lambda_obs    sum_i E_{q_i}[-log p(o_i | x)]

with attention beta, gamma = softmax_j(-KL / tau) over j != i. On a base manifold every term is
integrated with the quadrature weights and the support chi_i of the agent. The supports of its
neighbours weigh its softmax, ``beta_ij ~ chi_j exp(-KL_ij / tau)``, and its alignment counts as far
as there is company, ``c_i = 1 - prod_{j != i} (1 - chi_j)``. So every force on an agent vanishes
with its own support, as it must: two agents pay exactly ``chi_i chi_j KL_ij``, and for sharp
supports this is the plain softmax over the agents present at the point. (A hard mask with the
weight chi_i chi_j outside would let a neighbour of vanishing support take attention away from the
others.)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfejax.agents import alignment, pairwise
from vfejax.agents.alignment import AlignmentFn
from vfejax.agents.observation import Observations, expected_negative_log_likelihood
from vfejax.agents.pairwise import FrameField
from vfejax.agents.population import Population, check_shapes
from vfejax.beliefs.gaussian import Gaussian, kl_divergence
from vfejax.geometry.groups import Generators
from vfejax.types import Array

__all__ = ["Edges", "FreeEnergyTerms", "Weights", "free_energy", "free_energy_terms", "measure"]


class Weights(NamedTuple):
    """Dimensionless weight lambda of each term."""

    self_coupling: float | Array = 1.0
    belief_alignment: float | Array = 1.0
    prior_alignment: float | Array = 0.0
    observation: float | Array = 1.0


class FreeEnergyTerms(NamedTuple):
    """Weighted terms of the free energy and their sum, scalars in nats."""

    self_coupling: Array
    belief_alignment: Array
    prior_alignment: Array
    observation: Array
    total: Array


class Edges(NamedTuple):
    """Neighbour list: agent ``receivers[e]`` listens to agent ``senders[e]``, integers ``[e]``."""

    receivers: Array
    senders: Array


def _is_zero(weight: float | Array) -> bool:
    """True for a weight that is the Python number 0: its term is not even computed."""
    return isinstance(weight, int | float) and weight == 0


def _log_support(chi: Array) -> Array:
    """``log chi``, -inf outside the support; the gradient there is 0, where that of a bare
    logarithm is NaN.
    """
    inside = chi > 0
    return jnp.where(inside, jnp.log(jnp.where(inside, chi, 1.0)), -jnp.inf)


def _absence_of_senders(absent: Array, edges: Edges) -> Array:
    """``prod_j absent_j`` over the edges of each receiver, 1 without any; ``jax.ops.segment_prod``
    has no gradient.
    """
    num = absent.shape[0]
    order = jnp.argsort(edges.receivers)
    receivers, senders = edges.receivers[order], edges.senders[order]

    def join(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        return jnp.where(right[1], right[0], left[0] * right[0]), left[1] | right[1]

    factors = jnp.where(receivers == senders, 1.0, absent[senders])
    products, _ = jax.lax.associative_scan(join, (factors, jnp.diff(receivers, prepend=-1) != 0))
    last = jnp.diff(receivers, append=num) != 0
    return 1.0 + jax.ops.segment_sum(jnp.where(last, products - 1.0, 0.0), receivers, num)


def _company(chi: Array, edges: Edges | None) -> Array:
    """How far agent i has anyone to align with, ``1 - prod_{j != i} (1 - chi_j)`` over its
    neighbours, ``[n]``.
    """
    absent = 1.0 - chi
    if edges is not None:
        return 1.0 - _absence_of_senders(absent, edges)
    one = jnp.ones_like(chi[:1])
    before = jnp.concatenate([one, jnp.cumprod(absent)[:-1]])
    after = jnp.concatenate([jnp.cumprod(absent[::-1])[::-1][1:], one])
    return 1.0 - before * after


def _alignment(
    gaussian: Gaussian,
    field: FrameField,
    temperature: float | Array,
    coefficient: Array | None,
    chi: Array | None,
    edges: Edges | None,
    alignment_fn: AlignmentFn,
    block_size: int | None,
    compute_dtype: Any,
) -> Array:
    """Alignment energy at one point: n agents, one Gaussian each."""
    features = pairwise.pair_features(gaussian, field)
    options = {"coefficient": coefficient, "log_weight": None, "alignment_fn": alignment_fn}
    if chi is not None:
        options |= {
            "coefficient": coefficient * _company(chi, edges),
            "log_weight": _log_support(chi),
        }
    if edges is not None:
        return pairwise.edge_alignment_energy(
            features, edges.receivers, edges.senders, temperature, **options
        )
    return pairwise.alignment_energy(
        features, temperature, **options, block_size=block_size, compute_dtype=compute_dtype
    )


def _flatten_grid(x: Array, num_grid_axes: int) -> Array:
    return jnp.reshape(x, (x.shape[0], -1, *x.shape[1 + num_grid_axes :]))


def measure(
    population: Population, supports: Array | None, quadrature: Array | None
) -> Array | None:
    """Weight chi_i(c) w(c) of agent i at point c, ``[n, *grid]``: support times quadrature weight.

    Args:
        population: gives the shape ``[n, *grid]`` and the precision.
        supports: chi ``[n, *grid]``, 1 by default.
        quadrature: w ``[*grid]``, 1 by default.

    Returns:
        ``[n, *grid]``, or None when every weight is 1.

    Raises:
        ValueError: when a shape does not fit, naming the array.
    """
    shape = population.phi.shape[:-1]
    for name, array, want in (("supports", supports, shape), ("quadrature", quadrature, shape[1:])):
        if array is not None and array.shape != want:
            raise ValueError(
                f"{name} must have shape {want} to fit the population, got {array.shape}"
            )
    if supports is None and quadrature is None:
        return None
    ones = jnp.ones(shape, population.belief.mean.dtype)
    chi = ones if supports is None else supports
    return chi if quadrature is None else chi * quadrature[None]


def free_energy_terms(
    population: Population,
    generators: Generators,
    *,
    weights: Weights | tuple = Weights(),  # noqa: B008 (an immutable tuple)
    temperature: float | Array = 1.0,
    alignment_fn: AlignmentFn = alignment.weighted,
    observations: Observations | None = None,
    supports: Array | None = None,
    quadrature: Array | None = None,
    edges: Edges | None = None,
    block_size: int | None = None,
    compute_dtype: Any = None,
) -> FreeEnergyTerms:
    """Free energy of a population, term by term.

    Args:
        population: beliefs, priors and frames of n agents, as points or as fields ``[n, *grid,
            ...]``.
        generators: Lie-algebra basis ``[a, k, k]``, or a group such as ``irreps.so3(spins)``, whose
            closed form for rotations is faster.
        weights: lambda of each term; a term whose weight is the number 0 is not computed.
        temperature: tau of the attention, in nats, positive.
        alignment_fn: alignment energy, :func:`vfejax.agents.alignment.weighted` (default) or
            ``entropic``.
        observations: what the agents measured; without it the observation term is 0.
        supports: chi_i in [0, 1], ``[n, *grid]``; 1 by default. The gradient in chi_i is exact
            where ``chi_i > 0``; at 0 it is finite
            but leaves out the attention agent i would draw.
        quadrature: weight of each point of the base manifold ``[*grid]``; 1 by default.
        edges: neighbour list; by default every agent listens to all others.
        block_size: receivers per block of pairs.
        compute_dtype: dtype of the operands of the pairwise products (``jnp.bfloat16``); they
            accumulate in the population's dtype.

    Returns:
        Weighted terms and their total, scalars in nats. Complexity O(n^2 k^2) time, O(n k^2) memory
        at a point.

    Raises:
        ValueError: when shapes do not fit, naming the array.
    """
    check_shapes(population, generators)
    weights = Weights(*weights)
    num_grid_axes = population.phi.ndim - 2
    weight_field = measure(population, supports, quadrature)

    def integrate(density: Array) -> Array:
        return jnp.sum(density if weight_field is None else weight_field * density)

    zero = jnp.zeros((), population.belief.mean.dtype)
    need_frames = not (_is_zero(weights.belief_alignment) and _is_zero(weights.prior_alignment))
    field = pairwise.frame_field(population.phi, generators) if need_frames else None

    def align(gaussian: Gaussian, weight: float | Array) -> Array:
        if _is_zero(weight):
            return zero
        points = population.phi[0, ..., 0].size
        size = block_size
        if size is None and points > 1:
            size = max(1, pairwise.BLOCK_ENTRIES // (gaussian.mean.shape[0] * points))

        def at_point(gaussian, field, coefficient, chi):
            return _alignment(
                gaussian,
                field,
                temperature,
                coefficient,
                chi,
                edges,
                alignment_fn,
                size,
                compute_dtype,
            )

        arrays = (gaussian, field, weight_field, supports)
        if num_grid_axes == 0:
            # Not a vmap over one point: XLA on CPU has fast products of matrices, slow ones of
            # stacks of one.
            return weight * at_point(*arrays)
        flat = jax.tree.map(lambda x: _flatten_grid(x, num_grid_axes), arrays)
        return weight * jnp.sum(jax.vmap(at_point, in_axes=1)(*flat))

    self_coupling = zero
    if not _is_zero(weights.self_coupling):
        self_coupling = weights.self_coupling * integrate(
            kl_divergence(population.belief, population.prior)
        )
    observation = zero
    if observations is not None and not _is_zero(weights.observation):
        accuracy = expected_negative_log_likelihood(population.belief, observations)
        observation = weights.observation * integrate(accuracy)
    belief_alignment = align(population.belief, weights.belief_alignment)
    prior_alignment = align(population.prior, weights.prior_alignment)
    total = self_coupling + belief_alignment + prior_alignment + observation
    return FreeEnergyTerms(self_coupling, belief_alignment, prior_alignment, observation, total)


def free_energy(population: Population, generators: Generators, **options: Any) -> Array:
    """Total free energy in nats; arguments as in :func:`free_energy_terms`."""
    return free_energy_terms(population, generators, **options).total
