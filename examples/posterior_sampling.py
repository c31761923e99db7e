"""An agents' posterior by sampling: NUTS on the free energy beside its variational minimum.

Two sensors measure a landmark, each in its own known orientation. ``exp(-F)`` is a density of their
beliefs: of the means mu and the Cholesky factors L. BlackJAX's NUTS samples it. Three things make
the log density right:

- priors are closed over: the position holds beliefs alone;
- the coordinates are the means and the lower triangles of the log-Cholesky factors, with no number
  that F ignores, which could not be normalised;
- a density of L is one of the coordinates times ``|dL / dW| = prod_a exp(W_aa)``: the sum of the
  diagonal of W is added.

Without alignment the answer is exact. F is then quadratic in mu around the Bayesian posterior
``N(m, S)`` of each agent, with curvature ``S^-1``. So the samples of mu have mean m and covariance
S, those of the variational belief. With ``C^T C = S^-1`` for lower triangular C, the entries of ``C
L`` are independent: standard normal below the diagonal, and on it the root of a chi square with two
degrees of freedom. So the mean of L L^T is ``C^-1 diag(2, 3, 4) C^-T``, which a missing Jacobian
would change. With alignment there is no closed form: the means stay close to the variational ones
(the table says by how many standard deviations), and the samples of mu vary less than the beliefs
are wide, because an aligned mean is held by its neighbour too.

    python examples/posterior_sampling.py      (needs BlackJAX: pip install 'vfejax[sampling]')
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vfejax.agents import observation
from vfejax.agents.free_energy import free_energy
from vfejax.agents.observation import Observations
from vfejax.agents.population import Population
from vfejax.beliefs import coordinates as gaussian_coordinates
from vfejax.beliefs.coordinates import GaussianCoordinates
from vfejax.beliefs.gaussian import Gaussian
from vfejax.dynamics.gradient_flow import gradient_flow
from vfejax.dynamics.natural_gradient import natural_gradient
from vfejax.dynamics.rollout import rollout
from vfejax.geometry import irreps
from vfejax.problems import sensor_network

GROUP = irreps.so3((1,))
K = 3
LOWER = np.tril_indices(K)
MISSING = "this example needs BlackJAX: pip install 'vfejax[sampling]'"


class Problem(NamedTuple):
    """What is closed over: priors, the known frames ``phi [n, 3]``, observations."""

    prior: Gaussian
    phi: jax.Array
    observations: Observations


def problem(num_agents: int = 2) -> Problem:
    """Sensors turned about the z axis, and what they measured."""
    observations, _ = sensor_network.simulate(
        np.random.default_rng(3), num_agents, num_landmarks=1, num_observations=2, noise_std=0.5
    )
    turned = np.zeros((num_agents, 3))
    turned[:, 2] = np.linspace(0.0, 1.0, num_agents)
    prior = Gaussian(jnp.zeros((num_agents, K)), jnp.tile(2.0 * jnp.eye(K), (num_agents, 1, 1)))
    dtype = jnp.result_type(float)
    return jax.tree.map(
        lambda x: jnp.asarray(x, dtype), Problem(prior, jnp.asarray(turned), observations)
    )


def beliefs(position: jax.Array) -> GaussianCoordinates:
    """Coordinates of the beliefs from a vector ``[n (k + k (k + 1) / 2)]``."""
    rows = position.reshape(-1, K + len(LOWER[0]))
    factor = jnp.zeros((len(rows), K, K), position.dtype)
    factor = factor.at[:, LOWER[0], LOWER[1]].set(rows[:, K:])
    return GaussianCoordinates(rows[:, :K], factor)


def vector(belief: GaussianCoordinates) -> jax.Array:
    """Inverse of :func:`beliefs`."""
    below = belief.factor[:, LOWER[0], LOWER[1]]
    return jnp.concatenate([belief.mean, below], axis=-1).reshape(-1)


def energy_function(given: Problem, alignment: float) -> Callable[[GaussianCoordinates], jax.Array]:
    """The free energy of the beliefs; priors, frames and observations are closed over."""

    def energy_fn(coordinates: GaussianCoordinates) -> jax.Array:
        population = Population(gaussian_coordinates.constrain(coordinates), given.prior, given.phi)
        return free_energy(
            population,
            GROUP,
            weights=(1.0, alignment, 0.0, 1.0),
            observations=given.observations,
        )

    return energy_fn


def log_density(given: Problem, alignment: float) -> Callable[[jax.Array], jax.Array]:
    """``-F`` plus the log Jacobian ``W -> L``: a log density of coordinates, up to a constant."""
    energy_fn = energy_function(given, alignment)

    def log_density_fn(position: jax.Array) -> jax.Array:
        coordinates = beliefs(position)
        log_scales = jnp.diagonal(coordinates.factor, axis1=-2, axis2=-1)
        return jnp.sum(log_scales) - energy_fn(coordinates)

    return log_density_fn


def variational(given: Problem, alignment: float, num_steps: int = 500) -> Gaussian:
    """The minimum of F by natural gradient flow, from what each agent believes alone."""
    start = gaussian_coordinates.unconstrain(observation.posterior(given.prior, given.observations))
    flow = gradient_flow(
        energy_function(given, alignment),
        optax.chain(natural_gradient(gaussian_coordinates.natural_direction), optax.sgd(0.1)),
    )
    state, _ = jax.jit(lambda x: rollout(flow, flow.init(x), num_steps))(start)
    return gaussian_coordinates.constrain(state.position)


def sample(
    log_density_fn: Callable, start: jax.Array, num_warmup: int, num_samples: int, seed: int = 0
) -> jax.Array:
    """Draws ``[num_samples, d]`` by NUTS, with step size and mass matrix from a warm-up.

    Raises:
        SystemExit: when BlackJAX is not installed, saying how to install it.
    """
    try:
        import blackjax
    except ModuleNotFoundError:
        raise SystemExit(MISSING) from None
    warm_key, key = jax.random.split(jax.random.key(seed))
    warmup = blackjax.window_adaptation(blackjax.nuts, log_density_fn)
    (state, parameters), _ = jax.jit(warmup.run, static_argnums=2)(warm_key, start, num_warmup)
    kernel = blackjax.nuts(log_density_fn, **parameters)

    def step(state, key):
        state, _ = kernel.step(key, state)
        return state, state.position

    return jax.jit(lambda s: jax.lax.scan(step, s, jax.random.split(key, num_samples))[1])(state)


def expected_covariance(posterior: Gaussian) -> np.ndarray:
    """``E[L L^T] = C^-1 diag(2, 3, ...) C^-T`` without alignment, with ``C^T C = S^-1``, ``[n, k,
    k]``.
    """
    chol = np.asarray(posterior.chol)
    precision = np.linalg.inv(chol @ np.swapaxes(chol, -1, -2))
    # C lower triangular with C^T C = P is the reversed Cholesky factor of the reversed P.
    reverse = np.linalg.cholesky(precision[:, ::-1, ::-1])[:, ::-1, ::-1]
    inverse = np.linalg.inv(np.swapaxes(reverse, -1, -2))
    return inverse @ np.diag(np.arange(2.0, 2.0 + K)) @ np.swapaxes(inverse, -1, -2)


def main(num_warmup: int = 500, num_samples: int = 4000) -> dict:
    """Sample without and with alignment, and print both answers side by side.

    Args:
        num_warmup: steps that adapt the sampler.
        num_samples: draws.

    Returns:
        ``{alignment: (samples' mean [n, k], covariance of the means [n, k, k], mean of L L^T [n, k,
        k], variational belief)}``.
    """
    given, rows = problem(), {}
    for alignment in (0.0, 1.0):
        belief = variational(given, alignment)
        start = vector(gaussian_coordinates.unconstrain(belief))
        draws = sample(log_density(given, alignment), start, num_warmup, num_samples)
        sampled = jax.jit(jax.vmap(lambda x: gaussian_coordinates.constrain(beliefs(x))))(draws)
        means, chol = np.asarray(sampled.mean), np.asarray(sampled.chol)
        covariance = np.stack([np.cov(means[:, i].T) for i in range(means.shape[1])])
        spread = np.mean(chol @ np.swapaxes(chol, -1, -2), axis=0)
        rows[alignment] = means.mean(axis=0), covariance, spread, belief

    print(f"{'alignment':<11}{'agent':<7}{'means: NUTS':>24}{'variational':>24}{'sd apart':>10}")
    for alignment, (mean, covariance, _, belief) in rows.items():
        for i, (m, v) in enumerate(zip(mean, np.asarray(belief.mean), strict=True)):
            apart = np.max(np.abs(m - v) / np.sqrt(np.diag(covariance[i])))
            shown = ["".join(f"{x:8.3f}" for x in y) for y in (m, v)]
            print(f"{alignment:<11}{i:<7}{shown[0]:>24}{shown[1]:>24}{apart:>10.3f}")
    print(f"{'alignment':<11}{'agent':<7}{'variances: NUTS':>24}{'variational':>24}")
    for alignment, (_, covariance, _, belief) in rows.items():
        variances = np.sum(np.asarray(belief.chol) ** 2, axis=-1)
        for i, (m, v) in enumerate(zip(covariance, variances, strict=True)):
            shown = ["".join(f"{x:8.3f}" for x in y) for y in (np.diag(m), v)]
            print(f"{alignment:<11}{i:<7}{shown[0]:>24}{shown[1]:>24}")
    exact = expected_covariance(rows[0.0][3])
    off = np.max(np.abs(rows[0.0][2] - exact)) / np.max(exact)
    print(f"mean of L L^T without alignment: {100 * off:.1f} % off the closed form")
    return rows


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
