"""The mass of a belief's mean: how sharply the free energy confines it.

A precise belief is heavy. The mass of agent i's mean is the diagonal block of the Gauss-Newton
Hessian of F in the means, at frozen attention:

    M_i = lambda_self Sigma_pi^-1 + lambda_obs m_i C^T R^-1 C
        + lambda_belief sum_j (beta_ij (Omega_ij Sigma_qj Omega_ij^T)^-1 + beta_ji Sigma_qi^-1)

with m_i observations present. The last term is the recoil: whoever is listened to is held by the
listeners. On a base manifold each term has the weight it has in F. In the common frame
(:mod:`vfejax.agents.pairwise`) the third term is one product of beta with the packed precisions
``U_j^T Sigma_qj^-1 U_j``, so no n x n matrices of size k are formed.

(For a group that is not orthogonal the transported precision is ``Omega^-T Sigma^-1 Omega^-1``, the
inverse of the transported covariance, and not ``Omega Sigma^-1 Omega^T``.)
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp

from vfejax.agents import pairwise
from vfejax.agents.alignment import check_temperatures
from vfejax.agents.edges import Edges, check_edges, edge_attention_sums
from vfejax.agents.free_energy import Weights, checked_weights, is_zero
from vfejax.agents.observation import Observations, precision_of_observations
from vfejax.agents.packing import pack, unpack
from vfejax.agents.pairwise import FrameField
from vfejax.agents.points import at_points, receivers_per_block
from vfejax.agents.population import Population, check_population
from vfejax.agents.supports import log_support, measure, neighbours_present
from vfejax.beliefs.gaussian import Gaussian, precision
from vfejax.geometry.groups import Generators
from vfejax.numerics import matmul, transpose, triangular_inverse
from vfejax.types import Array

__all__ = ["mean_mass"]


class _Place(NamedTuple):
    """Coefficient of each receiver and log weight of each sender at a point; None means 1 and 0."""

    coefficient: Array | None
    log_weight: Array | None


class _Pairing(NamedTuple):
    """How agents attend to one another, the same at every point."""

    temperature: float | Array
    edges: Edges | None
    block_size: int | None


def _places(chi: Array, weight: Array | None, edges: Edges | None) -> _Place:
    """Coefficients ``chi_i w c_i`` and log weights ``log chi_j`` of the agents at one point."""
    present = neighbours_present(chi, *(edges or (None, None)))
    return _Place(present if weight is None else weight * present, log_support(chi))


def _alignment_mass(
    gaussian: Gaussian, field: FrameField, chi: Array | None, weight: Array | None, pair: _Pairing
) -> Array:
    """Both sums over neighbours at one point, ``[n, k, k]``, without the weight lambda."""
    k = gaussian.mean.shape[-1]
    place = _Place(weight, None) if chi is None else _places(chi, weight, pair.edges)
    inverse = matmul(triangular_inverse(gaussian.chol), field.outward)
    values = pack(matmul(transpose(inverse), inverse))
    if pair.edges is None:
        features = pairwise.pair_features(gaussian, field, chi)
        sums = pairwise.attention_sums(
            features, pair.temperature, values, **place._asdict(), block_size=pair.block_size
        )
    else:
        sums = edge_attention_sums(
            gaussian, field, pair.edges, pair.temperature, values, **place._asdict()
        )
    received, given = sums
    common = unpack(received + given[:, None] * values, k)
    return matmul(matmul(transpose(field.inward), common), field.inward)


def mean_mass(
    population: Population,
    generators: Generators,
    *,
    weights: Weights | tuple = Weights(),  # noqa: B008 (an immutable tuple)
    temperature: float | Array = 1.0,
    observations: Observations | None = None,
    supports: Array | None = None,
    quadrature: Array | None = None,
    edges: Edges | None = None,
    block_size: int | None = None,
) -> Array:
    """Mass of every agent's mean: the diagonal block of the Gauss-Newton Hessian of the free energy
    in the means, at frozen attention.

    Args:
        population: beliefs, priors and frames of n agents, as points or as fields ``[n, *grid,
            ...]``.
        generators: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``, which means
            the general exponential.
        weights: lambda of each term; the prior alignment has no part in it.
        temperature: tau of the attention, in nats, positive.
        observations: what the agents measured.
        supports: chi_i in [0, 1], ``[n, *grid]``; 1 by default.
        quadrature: weight of each point of the base manifold ``[*grid]``; 1 by default. As in the
            energy, the mass at a point is a density times the point's weight.
        edges: neighbour list; by default every agent listens to all others.
        block_size: receivers per block of pairs. It changes memory and speed, never the result.

    Returns:
        ``[n, *grid, k, k]`` in nats per squared unit of the means, symmetric; 0 where an agent has
        no support. Complexity O(n^2 k^2) time, O(n k^2) memory at a point.

    Raises:
        ValueError: when shapes or dtypes do not fit, naming the array; for a temperature of 0 or
            less that is not traced; for weights in a mapping.

    >>> from vfejax.geometry import irreps
    >>> precise = Gaussian(jnp.eye(3), jnp.tile(0.5 * jnp.eye(3), (3, 1, 1)))
    >>> agents = Population(precise, precise, jnp.zeros((3, 3)))
    >>> mass = mean_mass(agents, irreps.so3((1,)), temperature=1e6)
    >>> mass.shape, round(float(mass[0, 0, 0]), 3)  # prior, neighbours and recoil: 4 + 4 + 4
    ((3, 3, 3), 12.0)
    """
    check_population(population, generators)
    belief, prior, phi = population
    if edges is not None:
        edges = Edges(*edges)
        check_edges(edges, phi.shape[0])
    weights = checked_weights(weights)
    check_temperatures(temperature=temperature)
    dtype, grid = belief.mean.dtype, phi.shape[1:-1]
    here = measure(population, supports, quadrature)

    def term(weight: float | Array, mass: Array) -> Array:
        scaled = jnp.asarray(weight, dtype) * mass
        return scaled if here is None else here[..., None, None] * scaled

    total = jnp.zeros_like(belief.chol)
    if not is_zero(weights.self_coupling):
        total = total + term(weights.self_coupling, precision(prior))
    if observations is not None and not is_zero(weights.observation):
        seen = precision_of_observations(belief.mean, observations)
        total = total + term(weights.observation, seen)
    if not is_zero(weights.belief_alignment):
        size = receivers_per_block(phi.shape[0], grid, block_size)
        pair = _Pairing(temperature, edges, size)
        arrays = belief, pairwise.frame_field(phi, generators), supports, here
        aligned = at_points(partial(_alignment_mass, pair=pair), arrays, len(grid))
        total = total + jnp.asarray(weights.belief_alignment, dtype) * aligned
    return total
