"""Claims of the quantum causal transformer."""

import math
from functools import cache
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from claim_rows.density_matrices import method, problem
from claim_rows.measure import (
    KEPT,
    PART,
    REFUTED,
    Found,
    backward_over_forward,
    call_of,
    interval,
    judged,
    ratio,
    short,
    spread,
    turns,
)
from flax import nnx

from vfejax.data import batches, corpus
from vfejax.models import table
from vfejax.models.quantum.config import QuantumTransformerConfig
from vfejax.models.quantum.layers import (
    GATE,
    WINDOW,
    GivensEmbedding,
    QuantumBlock,
    position_scale,
)
from vfejax.quantum.density import GOLDEN_RATIO
from vfejax.quantum.evolution import evolve
from vfejax.quantum.hamiltonian import symmetric
from vfejax.quantum.hermitian import unpacked
from vfejax.training.losses import next_token_loss
from vfejax.training.optimizer import adamw
from vfejax.training.step import trainer

LENGTH = 64


def model_loss(config: QuantumTransformerConfig, vocabulary: int, batch: int, length: int) -> Any:
    """Loss of a model as a function of its weights, these weights, and random windows."""
    model = table.build("quantum", config, vocabulary, length)
    params = jax.jit(model.init)(jax.random.key(0))
    windows = np.random.default_rng(0).integers(0, vocabulary, (batch, length + 1), np.int32)
    return lambda p, x: next_token_loss(model, p, x, None, None)[0], params, windows


def count(params: Any) -> int:
    """Number of weights."""
    return sum(x.size for x in jax.tree.leaves(params))


@cache
def gradient_cost(vocabulary: int) -> tuple[int, np.ndarray]:
    """Number of weights of the default model, and the time of loss and gradient over that of the
    loss, round by round.
    """
    loss, params, windows = model_loss(QuantumTransformerConfig(), vocabulary, 12, LENGTH)
    forward, _ = call_of(loss, params, windows)
    both, _ = call_of(jax.value_and_grad(loss), params, windows)
    seconds = turns({"forward": forward, "both": both})
    return count(params), seconds["both"] / seconds["forward"]


def shifted() -> tuple[int, float, float]:
    """Weights of a tiny model, how many times as long differences in each of them take as the
    gradient, and their relative distance.
    """
    config = table.MODELS["quantum"].tiny
    loss, params, windows = model_loss(config, 11, 2, 16)
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def shifts(x, windows):
        def slope(i):
            step = jnp.zeros_like(x).at[i].set(1e-2)
            return (loss(unravel(x + step), windows) - loss(unravel(x - step), windows)) / 2e-2

        return jax.lax.map(slope, jnp.arange(x.size))

    slow, _ = call_of(shifts, flat, windows)
    fast, _ = call_of(jax.grad(lambda x, w: loss(unravel(x), w)), flat, windows)
    error = float(jnp.linalg.norm(slow() - fast()) / jnp.linalg.norm(fast()))
    seconds = turns({"shifts": slow, "gradient": fast}, rounds=3)
    return flat.size, ratio(seconds, "shifts", "gradient").median, error


def parameter_shift() -> Found:
    """Exact gradients beside two evaluations for every weight."""
    size, times, error = shifted()
    figures, found = [], {}
    for vocabulary in (96, 8192):  # characters, and words or their parts
        weights, cost = gradient_cost(vocabulary)
        found[weights] = spread(2 * weights / cost)
        figures.append(f"{found[weights]} times with {weights:,} weights")
    needed = short(700_000 * spread(cost).median / 2)
    figure = (
        f"{short(times)} times, timed, with {size:,} weights (both agree to {error:.0e}); by count "
        f"of evaluations {'; '.join(figures)}"
    )
    best = max(x.median for x in found.values())
    return Found(figure, judged(best, 7e5, f"a count of weights, reached from {needed} on"))


def backward() -> Found:
    """Backward over forward, of the evolution and of the model."""
    ours = method(evolve, problem(16, 1024))
    evolution = backward_over_forward(ours.forward, ours.both)
    loss, params, windows = model_loss(QuantumTransformerConfig(), 96, 12, LENGTH)
    model = backward_over_forward(
        call_of(loss, params, windows)[0], call_of(jax.value_and_grad(loss), params, windows)[0]
    )
    figure = f"{evolution} times for 1,024 states with d = 16, {model} for the default model"
    worst = max(evolution.median, model.median)
    return Found(figure, KEPT if worst <= 3 else PART if evolution.median <= 3 else REFUTED)


def gating() -> Found:
    """How far states that the gate leaves alone would have moved."""
    config, shares, moved = QuantumTransformerConfig(), [], []
    for seed in range(8):
        rngs = nnx.Rngs(seed)
        embedding = GivensEmbedding(96, config.dim, rngs=rngs)
        block = QuantumBlock(config, LENGTH, rngs=rngs)
        tokens = np.random.default_rng(seed).integers(0, 96, (16, LENGTH))
        states, places = embedding(jnp.asarray(tokens)), jnp.arange(LENGTH)
        past = jnp.zeros((16, WINDOW, config.dim, config.dim), states.dtype)
        rho = unpacked(block.mixed(jnp.concatenate([past, states], axis=1), places))
        h = symmetric(block.hamiltonian[...])
        energy = block.measure(rho, h)["free_energy_nats"]
        scale = position_scale(places, LENGTH, h.dtype)
        change = np.asarray(evolve(rho, h, GOLDEN_RATIO**-5 * scale) - rho)
        still = np.abs(np.asarray(energy)) <= GATE / config.dim
        shares.append(still.mean())
        moved.extend(0.5 * np.abs(np.linalg.eigvalsh(change[still])).sum(axis=-1))
    found = np.asarray(moved)
    figure = (
        f"{len(found)} of {8 * 16 * LENGTH:,} states stand still ({100 * np.mean(shares):.1f} %); "
        f"median {np.median(found):.2f}, largest {found.max():.2f}, above phi^-3 in "
        f"{100 * np.mean(found > GATE):.0f} %"
    )
    return Found(figure, KEPT if found.max() < GATE else REFUTED)


def dephasing(updates: int = 150) -> Found:
    """Losses with and without dephasing by frequency, at the same seeds and batches."""
    text = corpus.load_text(None, "character", length=LENGTH)
    size = text.vocabulary.size
    counts = np.bincount(text.train.tokens, minlength=size)
    model = table.build("quantum", QuantumTransformerConfig(), size, LENGTH, counts=counts)
    without = table.build("quantum", QuantumTransformerConfig(), size, LENGTH)
    padding = text.vocabulary.padding_id
    method = trainer(model, adamw(4e-3), jax.random.key(1), padding=padding)
    # The strengths are weights that do not learn: one program trains both.
    inits = jax.jit(method.init), jax.jit(without.init)
    held = batches.evaluation_windows(text.valid.tokens, LENGTH, 48, padding)[0]

    @jax.jit
    def train(state, windows):
        params = jax.lax.scan(method.step, state, windows)[0].params
        return next_token_loss(model, params, held, None, padding)[1].cross_entropy

    differences, losses = [], []
    for seed in range(3):
        windows = batches.Batches(text.train.tokens, 12, LENGTH, seed=seed).at(0, updates)
        state, params = (init(jax.random.key(seed)) for init in inits)
        pair = [float(train(x, windows)) for x in (state, state._replace(params=params))]
        differences.append(pair[0] - pair[1])
        losses.append(pair[0])
    surprise = -np.log(counts[counts > 0] / counts.sum()) / math.log(size)
    figure = (
        f"loss {interval(differences)} nats per character than without, at {np.mean(losses):.3f} "
        f"after {updates} updates, three seeds; {np.mean(surprise >= 1):.0%} of the characters, "
        "the rare ones, keep their coherence"
    )
    mean, half = (float(x) for x in interval(differences).split(" ± "))
    verdict = KEPT if mean + half < 0 else REFUTED if mean - half > 0 else PART
    reason = ": as built; the loss does not tell" if verdict == PART else ""
    return Found(figure, verdict + reason)
