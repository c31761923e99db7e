"""Message passing on data with a known answer: a mixture, relevance of inputs, a hidden Markov
model and topics.

    python examples/message_passing.py

Every model is a few nodes (`vfejax.inference.worked_models`); one compiled fit moves its beliefs
node by node until the evidence lower bound stops rising.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.inference.message_passing.coordinate_ascent import fit
from vfejax.inference.worked_models import hidden_markov, mixture, regression, topics


def fitted(method, data, start=None):
    """Beliefs, number of sweeps and the ELBO of a compiled fit."""

    def run(data, start):
        return fit(method, method.init(None, data, start=start), data, 300, 1e-3)

    beliefs, info = jax.jit(run)({k: jnp.asarray(v) for k, v in data.items()}, start)
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
    """Run all four; returns what the functions above return."""
    rng = np.random.default_rng(0)
    return clusters(rng), relevance(rng), path(rng), words(rng)


if __name__ == "__main__":
    main()
