"""Predictive coding beside backpropagation: the same network, weights, data and rates.

    python examples/predictive_coding.py [--seeds 5] [--steps 1500]

The task: two interleaved spirals, two numbers to one of two classes. Both methods take the same
updates by Adam at every rate of one grid; the rate is chosen on a validation set, the accuracy is
that of a test set, mean and standard deviation over seeds.
"""

import argparse
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vfejax.inference import predictive_coding

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SIZES = (2, 24, 24, 2)
PERCEPTION = {"step_size": 0.2, "num_steps": 30}


def spirals(rng: np.random.Generator, num: int) -> tuple[jax.Array, jax.Array]:
    """Points ``[num, 2]`` and their classes ``[num, 2]``, one of them 1."""
    label = rng.integers(0, 2, num)
    radius = np.sqrt(rng.uniform(0.02, 1.0, num))
    angle = 7.0 * radius + np.pi * label
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = 2.0 * points + 0.05 * rng.standard_normal((num, 2))
    return jnp.asarray(points, jnp.float32), jnp.asarray(np.eye(2)[label], jnp.float32)


def layer(weights: tuple[jax.Array, jax.Array], x: jax.Array) -> jax.Array:
    return jnp.tanh(jnp.matmul(weights[0], x) + weights[1])


def readout(weights: tuple[jax.Array, jax.Array], x: jax.Array) -> jax.Array:
    return jnp.matmul(weights[0], x) + weights[1]


NETWORK = predictive_coding.Network((layer, layer, readout), (1.0, 1.0, 1.0))


def start(key: jax.Array) -> tuple:
    """First weights."""
    keys = jax.random.split(key, len(SIZES) - 1)
    return tuple(
        (jax.random.normal(k, (b, a)) * jnp.sqrt(1.5 / a), jnp.zeros(b))
        for k, a, b in zip(keys, SIZES[:-1], SIZES[1:], strict=True)
    )


def by_prediction_errors(weights: tuple, stimulus: jax.Array, target: jax.Array) -> tuple:
    """The gradient that predictive coding learns by."""
    hidden, _ = predictive_coding.perceive(NETWORK, weights, stimulus, target, **PERCEPTION)
    return predictive_coding.learning_gradient(NETWORK, weights, stimulus, hidden, target)


def by_backpropagation(weights: tuple, stimulus: jax.Array, target: jax.Array) -> tuple:
    """The gradient of half the squared error of the network's output."""

    def loss(w: tuple) -> jax.Array:
        return 0.5 * jnp.sum((predictive_coding.forward(NETWORK, w, stimulus)[-1] - target) ** 2)

    return jax.grad(loss)(weights)


def accuracy(weights: tuple, points: jax.Array, classes: jax.Array) -> jax.Array:
    """Share of points whose class has the largest output."""
    outputs = jax.vmap(lambda x: predictive_coding.forward(NETWORK, weights, x)[-1])(points)
    return jnp.mean(jnp.argmax(outputs, axis=1) == jnp.argmax(classes, axis=1))


def train(gradient_fn, key: jax.Array, rate: jax.Array, data: tuple, steps: int) -> jax.Array:
    """Accuracy on the validation and the test set after ``steps`` updates."""
    (points, classes), validation, test = data
    optimizer = optax.adam(rate)
    first, key = jax.random.split(key)
    weights = start(first)

    def update(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
        weights, state = carry
        batch = jax.random.randint(key, (64,), 0, points.shape[0])
        gradients = jax.vmap(partial(gradient_fn, weights))(points[batch], classes[batch])
        gradient = jax.tree.map(partial(jnp.mean, axis=0), gradients)
        change, state = optimizer.update(gradient, state)
        return (optax.apply_updates(weights, change), state), None

    carry = weights, optimizer.init(weights)
    (weights, _), _ = jax.lax.scan(update, carry, jax.random.split(key, steps))
    return jnp.stack([accuracy(weights, *validation), accuracy(weights, *test)])


def main(arguments: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Run the comparison; returns the test accuracies of every seed by method."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1500, help="updates")
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    data = tuple(spirals(rng, num) for num in (1024, 1024, 4096))
    keys = jax.random.split(jax.random.key(0), options.seeds)
    rates = jnp.asarray(RATES)
    results = {}
    for name, gradient_fn in (
        ("predictive coding", by_prediction_errors),
        ("backpropagation", by_backpropagation),
    ):
        run = partial(train, gradient_fn, data=data, steps=options.steps)
        both = jax.jit(jax.vmap(jax.vmap(run, (0, None)), (None, 0)))(keys, rates)
        validation, test = np.moveaxis(np.asarray(both), -1, 0)
        best = validation.mean(axis=1).argmax()
        results[name] = test[best]
        spread = test[best].std(ddof=1) if options.seeds > 1 else 0.0
        print(f"{name}: accuracy {test[best].mean():.3f} ± {spread:.3f} at rate {RATES[best]:g}")
    return results


if __name__ == "__main__":
    main()
