"""Handwritten digits that ship with scikit-learn: equilibrium propagation is as good as a plain
network.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn import datasets

from vfejax.energy.equilibrium import centred, equilibrium_propagation
from vfejax.energy.hopfield import HARD, energy, init, rest, squared_error
from vfejax.energy.relaxation import alternating_descent

pytestmark = pytest.mark.slow
SIZES, TRAIN, BATCH, EPOCHS = (64, 128, 10), 1437, 20, 12


@pytest.fixture(scope="module")
def digits():
    images, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return jnp.asarray(images[order] / 16.0, jnp.float32), jnp.asarray(labels[order])


def hopfield():
    relax = alternating_descent(1.0, 20, 1e-3, project=HARD.project)
    learn = equilibrium_propagation(energy(), squared_error, relax, centred(0.5))

    def outputs(params, images):
        force = jax.grad(lambda state: jnp.sum(energy()(params, state, images)))
        return relax(force, rest(params, images)).state[-1]

    def gradient(params, images, targets):
        return learn(params, images, targets, rest(params, images))[1]

    return lambda key: init(key, SIZES), gradient, outputs, 0.2


def plain():
    def start(key):
        below, above = (
            jax.random.normal(k, shape, jnp.float32) * (2.0 / shape[0]) ** 0.5
            for k, shape in zip(jax.random.split(key), (SIZES[:2], SIZES[1:]), strict=True)
        )
        return below, jnp.zeros((1, 128), jnp.float32), above, jnp.zeros((1, 10), jnp.float32)

    def outputs(params, images):
        below, low, above, up = params
        return jax.nn.relu(images @ below + low) @ above + up

    def loss(params, images, targets):
        return jnp.mean(optax.softmax_cross_entropy(outputs(params, images), targets))

    return start, jax.grad(loss), outputs, 0.5


def accuracy(make, images, labels):
    start, gradient, outputs, rate = make()

    @jax.jit
    def run(key):
        first, *keys = jax.random.split(key, EPOCHS + 1)

        def update(params, chosen):
            targets = jax.nn.one_hot(labels[chosen], 10, dtype=jnp.float32)
            slope = gradient(params, images[chosen], targets)
            return jax.tree.map(lambda p, g: p - rate * g, params, slope), None

        def epoch(params, key):
            order = jax.random.permutation(key, TRAIN)[: TRAIN // BATCH * BATCH]
            return jax.lax.scan(update, params, order.reshape(-1, BATCH))[0], None

        params, _ = jax.lax.scan(epoch, start(first), jnp.stack(keys))
        return jnp.mean(jnp.argmax(outputs(params, images[TRAIN:]), axis=-1) == labels[TRAIN:])

    return run(jax.random.key(0))


@pytest.mark.usefixtures("optimized")
def test_it_reads_digits_as_well_as_a_plain_network(digits):
    settling, reference = (accuracy(make, *digits) for make in (hopfield, plain))
    assert settling > 0.96
    # Five of 360 images; the benchmark has three seeds, trained for longer.
    assert settling > reference - 5.5 / 360
