"""Plain NumPy reference for hierarchies: loops over rows, textbook formulas, float64."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers import agents_oracle
from scipy.linalg import expm

from vfejax.agents.hierarchy import initial_hierarchy
from vfejax.agents.population import Population
from vfejax.beliefs.gaussian import Gaussian

VECTOR = agents_oracle.ROTATIONS["vector"]
GENERATORS = np.asarray(VECTOR.generators, np.float64)


def frame(phi):
    return expm(np.einsum("a,akl->kl", np.asarray(phi), GENERATORS))


def moments(gaussian, i):
    chol = np.tril(np.asarray(gaussian.chol[i]))
    return np.asarray(gaussian.mean[i]), chol @ chol.T


def transported(gaussian, phi, i, to):
    """Moments of row i in the frame with coordinates ``to``."""
    omega = frame(to) @ np.linalg.inv(frame(phi[i]))
    mean, cov = moments(gaussian, i)
    return omega @ mean, omega @ cov @ omega.T


def kl(q, p):
    (mu, cov), (nu, other) = q, p
    inverse = np.linalg.inv(other)
    ratio = np.log(np.linalg.det(other) / np.linalg.det(cov))
    difference = nu - mu
    return 0.5 * (np.trace(inverse @ cov) + difference @ inverse @ difference - mu.size + ratio)


def across(gaussian, phi, i, j):
    """``KL(q_i || Omega_ij q_j)``."""
    return kl(moments(gaussian, i), transported(gaussian, phi, j, phi[i]))


def reading(gaussian, phi, parent, i):
    """``E_{q_M}[-log N(Omega_Mi mu_i | x, Omega_Mi Sigma_i Omega_Mi^T)]``."""
    mean, cov = moments(gaussian, parent)
    seen, noise = transported(gaussian, phi, i, phi[parent])
    inverse = np.linalg.inv(noise)
    squares = (seen - mean) @ inverse @ (seen - mean) + np.trace(inverse @ cov)
    return 0.5 * (squares + np.log(np.linalg.det(2 * np.pi * noise)))


def alignment(gaussian, phi, rows, chi, temperature):
    """Weighted alignment among these rows."""
    total = 0.0
    for i in rows:
        others = [j for j in rows if j != i and chi[j] > 0]
        if not others:
            continue
        divergences = np.array([across(gaussian, phi, i, j) for j in others])
        weights = chi[others] * np.exp(-divergences / temperature)
        present = 1 - np.prod(1 - chi[others])
        total += chi[i] * present * np.sum(weights * divergences) / np.sum(weights)
    return total


def energy_terms(hierarchy, scales, weights, temperature, cross_scale):
    """Five terms by scale, ``[5, S + 1]``, without observations of the agents' own."""
    (belief, prior, phi), parent, active, supports = jax.device_get(hierarchy)
    chi = np.ones(scales.num_rows) if supports is None else np.asarray(supports)
    chi = chi * np.asarray(active)
    parent = np.asarray(parent)
    terms = np.zeros((5, scales.num_scales))
    for scale, part in enumerate(scales.slices):
        rows = [i for i in range(part.start, part.stop) if active[i]]
        for i in rows:
            own = kl(moments(belief, i), moments(prior, i))
            above, blend = parent[i], 0.0
            if above != i:
                blend = cross_scale.blend
                terms[0, scale] += weights[0] * chi[i] * blend * across(belief, phi, i, above)
                siblings = chi[(parent == above) & (np.arange(parent.size) != above)]
                share = chi[i] / np.sum(siblings)
                terms[4, scale + 1] += (
                    cross_scale.bottom_up * chi[above] * share * reading(belief, phi, above, i)
                )
                for d in range(1, 1 + cross_scale.depth):
                    if parent[above] == above:
                        break
                    above = parent[above]
                    tower = cross_scale.decay**d * across(belief, phi, i, above)
                    terms[1, scale] += weights[0] * chi[i] * tower
            terms[0, scale] += weights[0] * chi[i] * (1 - blend) * own
        terms[2, scale] = weights[1] * alignment(belief, phi, rows, chi, temperature)
        terms[3, scale] = weights[2] * alignment(prior, phi, rows, chi, temperature)
    return terms


def places_hierarchy(places, capacities, rng=None, *, dtype=np.float64, supports=None):
    """Agents with unit covariances at these places of the common frame ``[n, *grid, 3]``, each in a
    frame of its own when there is a generator of random numbers.
    """
    shape = places.shape
    eye = np.broadcast_to(np.eye(3), (*shape, 3))
    common = Gaussian(jnp.asarray(places, dtype), jnp.asarray(eye, dtype))
    population = Population(common, common, jnp.zeros(shape, dtype))
    if rng is not None:
        population = turned(population, rng.normal(size=shape))
    return initial_hierarchy(population, capacities, supports)


def turned(population, angles):
    """The population in other frames: ``U_i -> g_i U_i`` with ``g_i = exp(angles_i)``, and beliefs
    and priors turned with them, so that nothing observable changes.
    """
    dtype = population.phi.dtype

    def flat(x, rank):
        return np.asarray(x, np.float64).reshape(-1, *x.shape[-rank:])

    turns = np.array([frame(x) for x in flat(angles, 1)])

    def turn(q):
        mean = np.einsum("nkl,nl->nk", turns, flat(q.mean, 1))
        factor = turns @ np.tril(flat(q.chol, 2))
        chol = np.linalg.cholesky(factor @ np.swapaxes(factor, -1, -2))
        return Gaussian(
            jnp.asarray(mean.reshape(q.mean.shape), dtype),
            jnp.asarray(chol.reshape(q.chol.shape), dtype),
        )

    old = np.array([frame(x) for x in flat(population.phi, 1)])
    phi = np.array([rotation_vector(x) for x in turns @ old]).reshape(population.phi.shape)
    return Population(turn(population.belief), turn(population.prior), jnp.asarray(phi, dtype))


def rotation_vector(matrix):
    """Coordinates of a rotation whose angle is below pi, in the basis of the generators."""
    angle = np.arccos(np.clip((np.trace(matrix) - 1) / 2, -1, 1))
    skew = (matrix - matrix.T) / 2
    rows = GENERATORS.reshape(3, -1)
    coordinates = np.linalg.lstsq(rows.T, skew.reshape(-1), rcond=None)[0]
    return coordinates * (angle / np.sin(angle) if angle > 0 else 1.0)
