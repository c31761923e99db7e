"""Message passing on data with a known answer: a mixture, relevance of inputs, principal components
with gaps, a hidden Markov model, a linear state space and topics.

    python examples/message_passing.py

Every model is a few nodes (`vfejax.inference.worked_models`); one compiled fit moves its beliefs
node by node until the evidence lower bound stops rising.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.inference.message_passing.coordinate_ascent import fit
from vfejax.inference.worked_models import (
    factors,
    hidden_markov,
    mixture,
    regression,
    state_space,
    topics,
)


def fitted(method, data, start=None, key=None, weights=None, tolerance=1e-3):
    """Beliefs, number of sweeps and the ELBO of a compiled fit."""

    def run(data, start, weights):
        beliefs = method.init(key, data, weights, start)
        return fit(method, beliefs, data, 300, tolerance, weights)

    beliefs, info = jax.jit(run)({k: jnp.asarray(v) for k, v in data.items()}, start, weights)
    return beliefs, int(info.num_sweeps), float(beliefs.elbo)


def clusters(rng):
    """Number of components in use (5 % of the points or more) where ten are allowed for three
    clusters, and the share of points in a component of their cluster.
    """
    centres = np.array([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]])
    truth = rng.integers(3, size=500)
    points = centres[truth] + rng.normal(size=(500, 2))
    start = mixture.start_from_points(jax.random.key(0), jnp.asarray(points), 10)
    method = mixture.gaussian_mixture(500, 2, 10)
    beliefs, sweeps, elbo = fitted(method, {"point": points}, start=start)
    labels = np.array(beliefs.statistics["label"][0]).argmax(axis=1)
    table = np.array([[np.sum((labels == i) & (truth == j)) for j in range(3)] for i in range(10)])
    used = int(np.sum(table.sum(axis=1) > 25))
    print(f"mixture      {sweeps:3d} sweeps  ELBO {elbo:9.1f}  {used} of 10 components are in use")
    return used, table.max(axis=1).sum() / 500


def relevance(rng):
    """Weights of six inputs of which three help."""
    design = rng.normal(size=(100, 6))
    truth = np.array([1.0, -2.0, 0.0, 0.0, 0.5, 0.0])
    response = design @ truth + 0.3 * rng.normal(size=100)
    method = regression.linear_regression(jnp.asarray(design))
    beliefs, sweeps, elbo = fitted(method, {"response": response[:, None]})
    weights = np.array(beliefs.statistics["weights"][0][0])
    print(f"regression   {sweeps:3d} sweeps  ELBO {elbo:9.1f}  weights {np.round(weights, 2)}")
    return weights - truth


def gaps(rng):
    """Number of factors in use where six are allowed for two, and the error of entries that were
    not seen, in standard deviations of the noise.
    """
    clean = rng.normal(size=(20, 2)) @ rng.normal(size=(2, 100))
    seen = rng.uniform(size=clean.shape) < 0.7
    data = np.where(seen, clean + 0.3 * rng.normal(size=clean.shape), np.nan)
    method = factors.incomplete_principal_components(20, 100, 6)
    weights = {"data": jnp.asarray(seen + 0.0)}
    beliefs, sweeps, elbo = fitted(
        method, {"data": data}, key=jax.random.key(0), weights=weights, tolerance=0.1
    )
    loadings, scores = (np.array(beliefs.statistics[n][0]) for n in ("loadings", "factors"))
    used = int(np.sum(np.std(loadings, axis=0) > 0.1))
    error = np.sqrt(np.mean((loadings @ scores.T - clean)[~seen] ** 2)) / 0.3
    print(f"components   {sweeps:3d} sweeps  ELBO {elbo:9.1f}  {used} of 6 factors are in use")
    return used, error


def path(rng):
    """Share of steps whose hidden state is found."""
    transition = np.array([[0.95, 0.05, 0.0], [0.0, 0.9, 0.1], [0.1, 0.0, 0.9]])
    states = [0]
    for _ in range(499):
        states.append(rng.choice(3, p=transition[states[-1]]))
    output = (np.array([-2.0, 0.0, 3.0])[states] + 0.7 * rng.normal(size=500))[:, None]
    labels = mixture.start_from_points(jax.random.key(1), jnp.asarray(output), 3)["label"]
    start = {"states": (*labels, jnp.zeros((3, 3)))}
    method = hidden_markov.gaussian_hidden_markov(500, 1, 3)
    beliefs, sweeps, elbo = fitted(method, {"output": output}, start=start)
    order = np.argsort(np.ravel(beliefs.statistics["mean"][0]))
    found = np.array(beliefs.statistics["states"][0])[:, order].argmax(axis=1)
    share = np.mean(found == states)
    print(f"hidden path  {sweeps:3d} sweeps  ELBO {elbo:9.1f}  {share:.1%} of states are found")
    return share


def oscillation(rng):
    """Angle per step of a noisy rotation in a plane, seen through five outputs; 0.4 is true."""
    turn = 0.99 * np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
    states = np.zeros((200, 2))
    for t in range(1, 200):
        states[t] = turn @ states[t - 1] + rng.normal(size=2)
    data = rng.normal(size=(5, 2)) @ states.T + 0.5 * rng.normal(size=(5, 200))
    method = state_space.linear_state_space(5, 3, 200)
    beliefs, sweeps, elbo = fitted(method, {"data": data}, key=jax.random.key(1), tolerance=0.1)
    values = np.linalg.eigvals(np.array(beliefs.statistics["dynamics"][0]))
    angle = np.abs(np.angle(values[np.argmax(np.abs(values))]))
    print(f"state space  {sweeps:3d} sweeps  ELBO {elbo:9.1f}  angle per step {angle:.3f}")
    return angle


def words(rng):
    """Distance of each topic from the nearest one found, between 0 and 2."""
    truth, weights = rng.dirichlet(np.full(30, 0.1), 3), rng.dirichlet(np.full(3, 0.3), 100)
    counts = np.stack([rng.multinomial(200, p) for p in weights @ truth]) + 0.0
    method = topics.latent_dirichlet_allocation(100, 30, 3)
    data = {"counts": jnp.asarray(counts)}

    def run(key):
        return fit(method, method.init(key, data), data, 100, 0.1)

    # Eight starts at once; the one with the largest bound counts.
    beliefs, info = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 8))
    best = np.argmax(beliefs.elbo)
    sweeps, elbo = int(info.num_sweeps[best]), float(beliefs.elbo[best])
    found = np.array(beliefs.natural["topics"][0][best]) + 1
    found /= found.sum(axis=1, keepdims=True)
    distance = np.abs(found[:, None] - truth[None]).sum(axis=-1).min(axis=0)
    print(f"topics       {sweeps:3d} sweeps  ELBO {elbo:9.1f}  distances {np.round(distance, 3)}")
    return distance


def main():
    """Run all six; returns what the functions above return."""
    rng = np.random.default_rng(0)
    return tuple(run(rng) for run in (clusters, relevance, path, words, gaps, oscillation))


if __name__ == "__main__":
    main()
