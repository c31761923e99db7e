"""The reversible model: energies that its blocks conserve to the order of their step, gradients
that do not store activations, and what is refused.
"""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vfejax.dynamics.reversible import Pair
from vfejax.models.reversible.block import Block, EnergySums, energy_sums
from vfejax.models.reversible.config import ReversibleConfig
from vfejax.models.reversible.energies import Energy, gelu_integral
from vfejax.models.reversible.model import build
from vfejax.models.table import MODELS
from vfejax.training.losses import next_token_loss
from vfejax.types import Batch

pytestmark = pytest.mark.usefixtures("library_promotion")

TINY = MODELS["reversible"].tiny
VOCABULARY, LENGTH = 11, 12


def test_the_integral_of_gelu_is_that():
    """By central differences of the integral itself, not of its custom derivative."""
    x, step = jnp.linspace(-6, 6, 101), 1e-3
    slope = (gelu_integral(x + step) - gelu_integral(x - step)) / (2 * step)
    expected = nnx.gelu(x, approximate=False)
    # The third derivative, below 1, times step^2 / 6.
    np.testing.assert_allclose(slope, expected, rtol=0, atol=2e-7)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu_integral))(x), expected, rtol=1e-14)


def test_slopes_of_an_energy_are_those_of_each_token_and_forget_its_length(rng):
    @jax.jit
    def slopes(x):
        energy = Energy(4, 8, dtype=jnp.float64, rngs=nnx.Rngs(0))
        alone = jax.vmap(jax.vmap(jax.grad(energy)))(x)
        return energy.gradient(x), alone, energy.gradient(1e3 * x)

    found, alone, longer = slopes(jnp.asarray(rng.standard_normal((2, 3, 4))))
    np.testing.assert_allclose(found, alone, rtol=1e-12)
    # 1e-6 is added to mean squares.
    np.testing.assert_allclose(longer, found, rtol=1e-5, atol=1e-7)


def test_the_written_slope_of_an_energy_has_the_slopes_of_the_one_that_jax_makes(rng):
    graph, weights = nnx.split(Energy(4, 8, dtype=jnp.float64, rngs=nnx.Rngs(0)))
    weights = jax.tree.map(lambda w: jnp.asarray(rng.standard_normal(w.shape)), weights)
    x, pull = jnp.asarray(2 * rng.standard_normal((2, 3, 4)))
    made = (
        lambda energy, x: energy.gradient(x),
        lambda energy, x: jax.grad(lambda x: jnp.sum(energy(x)))(x),
    )

    @jax.jit
    def slopes(weights, x):
        return [
            jax.grad(lambda w, x, fn=fn: jnp.sum(pull * fn(nnx.merge(graph, w), x)), (0, 1))(
                weights, x
            )
            for fn in made
        ]

    written, automatic = slopes(weights, x)
    chex.assert_trees_all_close(written, automatic, rtol=0, atol=1e-13)


def test_a_block_keeps_the_energy_of_every_token_to_the_square_of_its_step(rng):
    """Given what is heard. With a wrong sign of a force it would be to the step itself."""
    pair = Pair(*(jnp.asarray(rng.standard_normal((2, 5, 8))) for _ in range(2)))

    @jax.jit
    def change(step_size):
        block = Block(TINY, dtype=jnp.float64, rngs=nnx.Rngs(0))
        heard, scale = block.hear(pair.position), step_size / TINY.step_size
        momentum = pair.momentum + scale * block.kick(pair.position, heard)
        after = Pair(pair.position + scale * block.drift(momentum), momentum)
        return block.energy(after, heard) - block.energy(pair, heard)

    short, long = (np.abs(change(step)) for step in (1e-3, 2e-3))
    assert np.all(short > 0)
    # The next order is smaller by the step.
    np.testing.assert_allclose(np.mean(long) / np.mean(short), 4.0, rtol=0.02)


def test_the_penalty_is_the_mean_squared_change_over_real_tokens_and_layers():
    before = jnp.asarray([[1.0, 2.0, 7.0], [0.0, 4.0, 1.0]])
    after = jnp.asarray([[2.0, 2.0, jnp.nan], [1.0, 2.0, 1.0]])
    mask = jnp.asarray([[True, True, False], [True, True, True]])
    one = energy_sums(before, after, mask)
    sums = jax.tree.map(lambda x: jnp.stack([x, x]), one)
    model = build(replace(TINY, energy_penalty=0.5), VOCABULARY, LENGTH)
    losses, diagnostics = model.summarize(sums)
    seen = [2.0, 2.0, 1.0, 2.0, 1.0]
    np.testing.assert_allclose(losses["energy"], 0.5 * (1 + 0 + 1 + 4 + 0) / 5, rtol=1e-6)
    np.testing.assert_allclose(diagnostics["energy_drift"], (6 / 5) ** 0.5, rtol=1e-6)
    np.testing.assert_allclose(diagnostics["energy_spread"], np.std(seen), rtol=1e-5)
    assert one == EnergySums(6.0, 8.0, 14.0, 5.0)
    assert build(TINY, VOCABULARY, LENGTH).summarize(None) == ({}, {})


@pytest.mark.slow
def test_the_reconstructed_gradient_is_the_stored_one_with_dropout_padding_and_penalty(rng):
    windows = rng.integers(1, VOCABULARY, (3, LENGTH + 1)).astype(np.int32)
    mask = np.arange(LENGTH) < np.asarray([[LENGTH], [4], [7]])
    batch = Batch(windows[:, :-1], mask, targets=windows[:, 1:])

    def loss(params, gradient):
        config = replace(TINY, layers=5, dropout=0.2, energy_penalty=1.0, gradient=gradient)
        model = build(config, VOCABULARY, LENGTH, jnp.float64)
        return next_token_loss(model, params, batch, jax.random.key(1))[0]

    @jax.jit
    def gradients():
        first = build(replace(TINY, layers=5), VOCABULARY, LENGTH, jnp.float64)
        params = first.init(jax.random.key(0))
        return [jax.grad(loss)(params, gradient) for gradient in ("store", "reconstruct")]

    stored, found = gradients()
    for one, other in zip(*map(jax.tree.leaves, (found, stored)), strict=True):
        # Rounding, times what the norms of small first states make of it.
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-11 * np.max(np.abs(other)))


@pytest.mark.slow  # beside the gradient that stores them: tests/dynamics/test_reversible.py
def test_memory_for_activations_does_not_grow_with_depth():
    """From 2 blocks to 12, less the weights, whose slopes are outputs but for scratch."""

    def compiled(layers):
        model = build(replace(TINY, layers=layers), VOCABULARY, 32)
        params = jax.eval_shape(model.init, jax.random.key(0))
        windows = jax.ShapeDtypeStruct((64, 33), jnp.int32)
        slope = jax.grad(lambda params, windows: next_token_loss(model, params, windows)[0])
        return jax.jit(slope).lower(params, windows).compile().memory_analysis()

    few, many = compiled(2), compiled(12)
    weights = many.output_size_in_bytes - few.output_size_in_bytes
    assert many.temp_size_in_bytes <= few.temp_size_in_bytes + weights


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 20, "heads": 4}, "dim must be a multiple of 2 heads, got dim 20 and heads 4"),
        ({"gradient": "guess"}, "gradient must be one of reconstruct, recompute, store"),
        ({"step_size": 0.0}, "step_size must be positive"),
        ({"energy_penalty": -1.0}, "energy_penalty must be at least 0"),
        ({"step_size": 1e-300}, "step_size must be from 1.2e-38 to 3.4e38"),
        ({"energy_penalty": 1e300}, "energy_penalty must be at most 3.4e38"),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(ReversibleConfig(**options), VOCABULARY, LENGTH)
