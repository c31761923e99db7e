"""Slow, plain reference for the agents' energies: every pair is formed, every formula is the
textbook one.

It takes weights (not their logarithms), shifts no exponent, streams nothing, and is differentiated
by ``jax.grad``. Meant for few agents with divergences of a few temperatures, in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.agents import alignment
from vfejax.agents.population import Population
from vfejax.beliefs.gaussian import Gaussian, kl_divergence, push_forward
from vfejax.geometry.groups import as_group
from vfejax.geometry.irreps import so3
from vfejax.geometry.transport import transport_operator

ROTATIONS = {"vector": so3((1,)), "sum": so3((0, 1, 2))}
# A group that is neither compact nor volume-preserving: a dilation, a boost and a shear of the
# plane.
GENERAL = np.array([[[0.3, 0.0], [0.0, 0.3]], [[0.0, 0.4], [0.4, 0.0]], [[0.0, 0.5], [0.0, 0.0]]])


def random_gaussian(rng, shape, k, dtype=np.float64):
    """Gaussians with factors of condition number below 10; the triangle above the diagonal holds
    numbers that must not matter.
    """
    chol = 0.25 * rng.normal(size=(*shape, k, k))
    diagonal = np.arange(k)
    chol[..., diagonal, diagonal] = rng.uniform(0.7, 1.4, (*shape, k))
    return Gaussian(*(jnp.asarray(x.astype(dtype)) for x in (rng.normal(size=(*shape, k)), chol)))


def random_population(rng, num, generators, grid=(), dtype=np.float64):
    num_generators, k, _ = as_group(generators).generators.shape
    shape = (num, *grid)
    return Population(
        random_gaussian(rng, shape, k, dtype),
        random_gaussian(rng, shape, k, dtype),
        jnp.asarray(rng.normal(size=(*shape, num_generators)).astype(dtype)),
    )


def to_double(tree):
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), tree)


def pairwise_kl(gaussian, phi, generators):
    """``KL(q_i || Omega_ij q_j)`` with the n x n x k x k transports written out, by the general
    exponential.
    """
    num = phi.shape[0]

    def across(x, axis):
        return jnp.broadcast_to(jnp.expand_dims(x, axis), (num, num, *x.shape[1:]))

    omega = transport_operator(across(phi, 1), across(phi, 0), as_group(generators).generators)
    receiver = Gaussian(across(gaussian.mean, 1), across(gaussian.chol, 1))
    sender = Gaussian(across(gaussian.mean, 0), across(gaussian.chol, 0))
    return kl_divergence(receiver, push_forward(sender, omega))


def attention(divergence, temperature, weight, neighbours):
    """``beta_ij = w_j exp(-KL_ij / tau) / sum_l w_l exp(-KL_il / tau)`` over the pairs with
    ``neighbours[i, j]``; 0 without any.
    """
    factors = neighbours * weight[None, :] * jnp.exp(-divergence / temperature)
    total = jnp.sum(factors, axis=1, keepdims=True)
    return factors / jnp.where(total > 0, total, 1.0)


def weighted(divergence, temperature, weight, neighbours):
    return jnp.sum(attention(divergence, temperature, weight, neighbours) * divergence, axis=1)


def _mean_factor(divergence, temperature, weight, neighbours):
    """Mean of ``exp(-KL_ij / tau)`` over the neighbours; 1 without any."""
    measure = neighbours * weight[None, :]
    mass = jnp.sum(measure, axis=1)
    mean = jnp.sum(measure * jnp.exp(-divergence / temperature), axis=1) / jnp.where(
        mass > 0, mass, 1.0
    )
    return jnp.where(mass > 0, mean, 1.0)


def entropic(divergence, temperature, weight, neighbours):
    return -temperature * jnp.log(_mean_factor(divergence, temperature, weight, neighbours))


def saturating(divergence, temperature, weight, neighbours, limit=20.0):
    somebody = _mean_factor(divergence, temperature, weight, neighbours)
    nobody = np.exp(-limit)
    return -temperature * jnp.log((1 - nobody) * somebody + nobody)


# One twin for each energy of the package's own table: a new energy without one fails here.
_TWINS = {"weighted": weighted, "entropic": entropic, "saturating": saturating}
ENERGIES = {fn: _TWINS[name] for name, fn in alignment.ALIGNMENTS.items()}
# With one neighbour these are its divergence, and they have no bound; the saturating one has.
UNBOUNDED = [energy_fn for energy_fn in ENERGIES if energy_fn is not alignment.saturating]


def mixture(divergence, log_weight, over):
    """Every energy of the table at once, each with a factor of its own, as an alignment energy:
    tests that compile much hold one program of the mixture against the oracle.
    """
    return sum(
        0.7**place * energy_fn(divergence, log_weight, over)
        for place, energy_fn in enumerate(ENERGIES)
    )


def _mixture(divergence, temperature, weight, neighbours):
    return sum(
        0.7**place * twin(divergence, temperature, weight, neighbours)
        for place, twin in enumerate(ENERGIES.values())
    )


TWINS = {**ENERGIES, mixture: _mixture}


def alignment_energy(
    divergence,
    temperature=1.0,
    *,
    alignment_fn=alignment.weighted,
    coefficient=None,
    weight=None,
    neighbours=None,
):
    """``sum_i coefficient_i E_i``; ``neighbours [n, n]`` is 1 where i listens to j, everyone else
    by default.
    """
    num = divergence.shape[0]
    everyone = 1.0 - jnp.eye(num)
    neighbours = everyone if neighbours is None else neighbours * everyone
    weight = jnp.ones(num) if weight is None else weight
    coefficient = jnp.ones(num) if coefficient is None else coefficient
    return jnp.sum(coefficient * TWINS[alignment_fn](divergence, temperature, weight, neighbours))


def observation(belief, observations):
    """``E_q[-log p(o | x)]`` of each agent at one point, by inverse and determinant of R."""
    values, present, matrix, noise_chol = observations
    noise = jnp.tril(noise_chol) @ jnp.tril(noise_chol).T
    inverse = jnp.linalg.inv(noise)
    residual = values - jnp.einsum("ok,nk->no", matrix, belief.mean)[:, None]
    chol = jnp.tril(belief.chol)
    trace = jnp.einsum("op,ok,nkl,nml,pm->n", inverse, matrix, chol, chol, matrix)
    squares = jnp.einsum("nmo,op,nmp->nm", residual, inverse, residual)
    constant = jnp.log(jnp.linalg.det(2 * jnp.pi * noise))
    return jnp.sum(present * 0.5 * (squares + trace[:, None] + constant), axis=1)


def neighbours_present(supports, neighbours):
    """``1 - prod_j (1 - chi_j)`` over the neighbours j of each agent."""
    num = supports.shape[0]
    neighbours = neighbours * (1.0 - jnp.eye(num))
    return 1.0 - jnp.prod(1.0 - neighbours * jnp.broadcast_to(supports[None], (num, num)), axis=1)


def free_energy_terms(
    population, generators, weights, temperature, alignment_fn, observations, supports, neighbours
):
    """The four weighted terms at one point where agent i has the support chi_i."""
    belief, prior, phi = population
    options = {
        "alignment_fn": alignment_fn,
        "coefficient": supports * neighbours_present(supports, neighbours),
        "weight": supports,
        "neighbours": neighbours,
    }
    # Beliefs and priors are compared with the same transports.
    both = jax.tree.map(lambda *x: jnp.stack(x), belief, prior)
    of_beliefs, of_priors = jax.vmap(lambda q: pairwise_kl(q, phi, generators))(both)
    return jnp.stack(
        [
            weights[0] * jnp.sum(supports * kl_divergence(belief, prior)),
            weights[1] * alignment_energy(of_beliefs, temperature, **options),
            weights[2] * alignment_energy(of_priors, temperature, **options),
            weights[3] * jnp.sum(supports * observation(belief, observations)),
        ]
    )
