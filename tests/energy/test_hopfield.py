"""Layered Hopfield networks: their energy, how they settle, and learning against
backpropagation.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vfejax.energy.equilibrium import (
    backpropagation,
    centred,
    equilibrium_propagation,
    holomorphic,
)
from vfejax.energy.hopfield import HARD, SOFT, Hopfield, energy, init, rest, squared_error
from vfejax.energy.relaxation import alternating_descent, gradient_descent
from vfejax.numerics import tree_dot, tree_norm

SIZES = (6, 12, 8, 3)


def data(dtype=jnp.float64, count=24):
    """Three classes of noisy patterns."""
    rng = np.random.default_rng(5)
    patterns, labels = rng.uniform(size=(3, SIZES[0])), np.arange(count) % 3
    images = patterns[labels] + 0.1 * rng.normal(size=(count, SIZES[0]))
    return images.astype(dtype), np.eye(3, dtype=dtype)[labels]


@partial(jax.jit, static_argnames="dtype")
def drawn(key, dtype=jnp.float64):
    """A network at random."""
    return init(key, SIZES, dtype=dtype)


def forces(params, state, inputs, activation):
    return jax.grad(lambda s: jnp.sum(energy(activation)(params, s, inputs)))(state)


def test_a_layer_feels_its_neighbours_through_the_same_weights(dtype):
    params = jax.device_get(drawn(jax.random.key(0), dtype=dtype))
    x, _ = data(dtype, 2)
    rng = np.random.default_rng(1)
    state = tuple(rng.uniform(size=(2, n)).astype(dtype) for n in SIZES[1:])
    (_, w, v), biases = params
    drive = state[0] @ w + biases[1] + state[2] @ v.T
    found = jax.jit(lambda *a: forces(*a, HARD))(params, state, x)[1]
    assert found.dtype == dtype
    # Sums of 12 products of order 1.
    np.testing.assert_allclose(
        found, state[1] - drive, rtol=0, atol=50 * float(jnp.finfo(dtype).eps)
    )


def test_sweeps_over_half_of_the_layers_settle_where_all_at_once_swing_for_ever():
    # Two units that suppress each other: both on, both off, both on ...
    params = Hopfield((np.zeros((1, 1)), np.full((1, 1), -3.0)), (np.ones(1), np.ones(1)))
    x = np.zeros(1)

    @jax.jit
    def settled(params):
        state = rest(params, x)
        force = lambda s: forces(params, s, x, HARD)  # noqa: E731
        once, half, whole = (
            make(1.0, n, 0, project=HARD.project)(force, state)
            for make, n in (
                (alternating_descent, 1),
                (alternating_descent, 30),
                (gradient_descent, 30),
            )
        )
        paid = [energy()(params, at, x) for at in (state, once.state, half.state)]
        return paid, half, whole

    (start, first, last), half, whole = jax.device_get(settled(params))
    assert half.converged
    assert last <= first < start
    np.testing.assert_allclose(half.state, [[0.0], [1.0]])
    assert not whole.converged
    assert whole.residual > 0.4


@pytest.fixture(scope="module")
def learned():
    """A network of soft units that has learned three classes, and how often it was right."""
    images, targets = data()
    relax = gradient_descent(0.4, 40, 0)
    learn = equilibrium_propagation(energy(SOFT), squared_error, relax, centred(0.1))

    @jax.jit
    def train(params):
        optimizer = optax.sgd(0.5)

        def step(carry, _):
            params, state = carry
            loss, gradient, info = learn(params, images, targets, rest(params, images, SOFT))
            updates, state = optimizer.update(gradient, state)
            right = jnp.argmax(info.free.state[-1], -1) == jnp.argmax(targets, -1)
            return (optax.apply_updates(params, updates), state), (loss, jnp.mean(right))

        (params, _), history = jax.lax.scan(step, (params, optimizer.init(params)), length=200)
        return params, history

    return jax.device_get(train(drawn(jax.random.key(2))))


def test_it_learns_and_its_gradient_is_that_of_backpropagation(learned):
    params, (losses, right) = learned
    assert losses[-1] < 0.2 * losses[0]
    assert right[-1] == 1
    images, targets = data()
    relax = gradient_descent(0.4, 300, 0)

    @jax.jit
    def cosines_of(params):
        start = rest(params, images, SOFT)
        exact, *others = [
            learn(params, images, targets, start)[1]
            for learn in (
                backpropagation(energy(SOFT), squared_error, relax),
                equilibrium_propagation(energy(SOFT), squared_error, relax, centred(0.1)),
                equilibrium_propagation(energy(SOFT), squared_error, relax, holomorphic(0.1, 4)),
            )
        ]
        return [tree_dot(exact, found) / (tree_norm(exact) * tree_norm(found)) for found in others]

    cosines = jax.device_get(cosines_of(params))
    assert cosines[0] >= 0.999
    assert 1 - cosines[1] < 0.1 * (1 - cosines[0])


def test_memory_does_not_depend_on_the_length_of_the_relaxation():
    images, targets = data(jnp.float32)
    params = drawn(jax.random.key(0), dtype=jnp.float32)

    start = jax.jit(lambda p: rest(p, images, SOFT))(params)

    def peak(make, steps):
        learn = make(energy(SOFT), squared_error, gradient_descent(0.4, steps, 0))
        args = params, images, targets, start
        return jax.jit(learn).lower(*args).compile().memory_analysis().temp_size_in_bytes

    nudged = partial(equilibrium_propagation, nudging=centred(0.1))
    constant, growing = ([peak(make, n) for n in (10, 1000)] for make in (nudged, backpropagation))
    assert constant[1] == constant[0]
    assert growing[1] > 30 * growing[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, x, y, s: init(jax.random.key(0), (3,)), r"sizes must name an input and"),
        (lambda p, x, y, s: init(jax.random.key(0), (3, 0)), r"of 1 unit or more, got \(3, 0\)"),
        (lambda p, x, y, s: rest(p, x[:, 1:]), r"inputs must have shape \[\.\.\., 6\]"),
        (lambda p, x, y, s: energy()(p, s, x[:, 1:]), r"inputs must have shape \[\.\.\., 6\]"),
        (lambda p, x, y, s: energy()(p, s[:2], x), r"state must have shapes"),
        (
            lambda p, x, y, s: energy()(p._replace(biases=p.biases[:1]), s, x),
            r"biases must have shapes",
        ),
        (lambda p, x, y, s: squared_error(s, y[:, 1:]), r"targets must have shape \(24, 3\)"),
        (
            lambda p, x, y, s: jax.jit(
                equilibrium_propagation(
                    energy(),
                    squared_error,
                    gradient_descent(0.4, 1, 0, project=HARD.project),
                    holomorphic(0.1, 4),
                )
            )(p, x, y, s),
            "state must be real for hard units",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    (x, y), params = data(), drawn(jax.random.key(0))
    state = tuple(np.zeros((24, n)) for n in SIZES[1:])
    with pytest.raises(ValueError, match=message):
        call(params, x, y, state)
