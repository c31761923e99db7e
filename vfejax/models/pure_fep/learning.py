"""What one layer learns from what it sees: differences of its own free energy between two phases.

*Free phase*: beliefs q0 descend F alone; the prediction is read. *Learning phase*: the observed
token is shown with a small weight, the nudge e, and beliefs descend ``F + e O`` from q0, with ``O =
-log p(y | z)``. By the envelope theorem the slope of the minimum of ``F + e O`` in any parameter is
the partial slope at fixed beliefs, so

    d O(q0) / d theta = lim (dF/dtheta at q_e - dF/dtheta at q_-e) / 2 e

is the exact slope of the layer's own prediction loss, and nothing is differentiated through the
descent of beliefs. It is a difference of two local quantities. Nudges of both signs leave an error
of second order in e. What the layer below believes is held.

The descent takes natural-gradient steps (Fisher metric of the beliefs, curvature of F) and starts
at q0, where a force is left because the free phase ends after a few steps. That force is
subtracted. The curvature of O is not known to it, so a large nudge may overshoot: no belief goes
farther from q0 than a ball of Fisher length ``FARTHEST``, which small nudges never reach.

Source: Scellier and Bengio, Equilibrium propagation (2017); nudges of both signs: Laborieux et al.
(2021). Here every layer is its own equilibrium and senders are held.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.models.pure_fep.anatomy import Anatomy, Readout
from vfejax.models.pure_fep.config import PureFEPConfig
from vfejax.models.pure_fep.energy import EnergyTerms
from vfejax.models.pure_fep.frames import from_common
from vfejax.models.pure_fep.gaussians import IrrepGaussian, Irreps
from vfejax.models.pure_fep.layer import (
    Ancestors,
    Layer,
    Surroundings,
    couplings,
    descend,
    frames_of,
    layer_energy,
    layer_prior,
)
from vfejax.types import Array

__all__ = [
    "FARTHEST",
    "Lesson",
    "Observed",
    "learn_layer",
    "moments",
    "natural_direction",
    "nudged",
    "token_loss",
]


FARTHEST = 8.0
"""Farthest that an agent's belief in one head goes in the learning phase, as a Fisher length at the
belief of the free phase."""


class Observed(NamedTuple):
    """Tokens that followed, ``[b, n]``, and 1 where they count."""

    targets: Array
    counts: Array


class Lesson(NamedTuple):
    """What a layer learned from a batch. Slopes are those of the loss per token.

    Attributes:
        prior: in the agents' own frames, ``[b, n, h, c]``.
        belief: of the free phase, in the same frames.
        shown: belief of the learning phase, with the observation at the weight of the nudge.
        layer: slopes of the layer's parameters.
        below: slopes in the beliefs below; only the first layer's are used, by its own embedding.
        readout: slopes of the output.
        terms: mean free energy of the free phase, in nats per token; the observation is the loss of
            the prediction.
        pressure: root mean square of the observation's slope in the metric of the beliefs.
    """

    prior: IrrepGaussian
    belief: IrrepGaussian
    shown: IrrepGaussian
    layer: Layer
    below: IrrepGaussian
    readout: Readout
    terms: EnergyTerms
    pressure: Array


def natural_direction(slope: IrrepGaussian, at: IrrepGaussian, kind: Irreps) -> IrrepGaussian:
    """Inverse Fisher information of a Gaussian times a slope: variance for means, ``2 / k_r`` for
    log variances.

    Args:
        slope: of any function of beliefs.
        at: the beliefs.
        kind: the irreps of a head.

    >>> from vfejax.models.pure_fep.gaussians import irreps
    >>> slope = IrrepGaussian(jnp.ones((1, 3)), jnp.ones((1, 1)))
    >>> at = IrrepGaussian(jnp.zeros((1, 3)), jnp.log(jnp.full((1, 1), 2.0)))
    >>> natural_direction(slope, at, irreps((1,))).mean.round(3).tolist()
    [[2.0, 2.0, 2.0]]
    """
    mean = slope.mean * kind.to_channels(jnp.exp(at.log_variance))
    return IrrepGaussian(mean, 2.0 * slope.log_variance / kind.sizes(mean.dtype))


def token_loss(
    parts: Anatomy, readout: Readout, belief: IrrepGaussian, observed: Observed
) -> Array:
    """``-log p(y | z)`` of every token that counts, ``[b, n]``, in nats; 0 elsewhere.

    Args:
        parts: the model.
        readout: the output.
        belief: ``[b, n, h, c]``, in the agents' own frames.
        observed: what followed.
    """
    logits = parts.logits_fn(readout, belief)
    chosen = jnp.take_along_axis(logits, observed.targets[..., None], axis=-1)[..., 0]
    return observed.counts * (jax.nn.logsumexp(logits, axis=-1) - chosen)


def _within(belief: IrrepGaussian, free: IrrepGaussian, kind: Irreps) -> IrrepGaussian:
    """The belief, or where the straight way to it from ``free`` leaves the ball ``FARTHEST``."""
    change = jax.tree.map(jnp.subtract, belief, free)
    # In units of the radius: the square of a float32 overflows at 1e19.
    mean, logs = jax.tree.map(lambda x: x / FARTHEST, change)
    square = kind.to_irreps(jnp.square(mean)) * jnp.exp(-free.log_variance)
    square = square + 0.5 * kind.sizes(logs.dtype) * jnp.square(logs)
    square = jnp.sum(square, axis=-1, keepdims=True)
    share = jax.lax.rsqrt(jnp.maximum(square, 1.0))
    return jax.tree.map(
        lambda near, far, way: jnp.where(square > 1.0, near + share * way, far),
        free,
        belief,
        change,
    )


def nudged(
    free: IrrepGaussian,
    force_fn: Callable[[IrrepGaussian], IrrepGaussian],
    observe_fn: Callable[[IrrepGaussian], IrrepGaussian],
    curvature: Array,
    nudge: float,
    parts: Anatomy,
) -> IrrepGaussian:
    """Beliefs that descend ``F + e O`` from the free phase, with what was left of F's force there
    subtracted, within the ball ``FARTHEST``.

    Args:
        free: q0, ``[b, n, h, c]``.
        force_fn: slope of F in the beliefs.
        observe_fn: slope of O in the beliefs.
        curvature: of F in the metric of the beliefs, ``[b | 1, n, h, 1]``.
        nudge: e; a negative one pushes away from what was observed.
        parts: the model.
    """
    kind, steps = parts.rules.kind, parts.config.nudge_steps

    def moved(belief: IrrepGaussian, force: IrrepGaussian | None) -> IrrepGaussian:
        slope = jax.tree.map(lambda x: nudge * x, observe_fn(belief))
        if force is not None:
            slope = jax.tree.map(jnp.add, slope, force)
        direction = natural_direction(slope, free, kind)
        there = jax.tree.map(lambda x, d: x - d / curvature, belief, direction)
        return _within(there, free, kind)

    first = moved(free, None)  # where what is left is subtracted from itself
    if steps == 1:
        return first
    rest = force_fn(free)

    def step(belief: IrrepGaussian, none: None) -> tuple[IrrepGaussian, None]:
        return moved(belief, jax.tree.map(jnp.subtract, force_fn(belief), rest)), none

    return jax.lax.scan(step, first, length=steps - 1)[0]


def learn_layer(
    parts: Anatomy,
    layer: Layer,
    readout: Readout,
    below: IrrepGaussian,
    around: Surroundings,
    ancestors: Ancestors | None,
    observed: Observed,
) -> Lesson:
    """Free phase, learning phase, and the slopes between them.

    Args:
        parts: the model.
        layer: one layer.
        readout: the output.
        below: beliefs of the layer below, held.
        around: where the agents stand.
        ancestors: beliefs of the layers above, held; None for none.
        observed: what followed.

    Returns:
        The lesson.
    """
    rules = parts.rules
    prior, pull_back = jax.vjp(
        lambda layer, below: layer_prior(layer, below, around, ancestors, rules), layer, below
    )
    common, weights = descend(layer, prior, prior, around, rules)
    place = frames_of(layer, around, rules)
    free = from_common(common, place, rules.kind)

    def energy_fn(layer: Layer, prior: IrrepGaussian, belief: IrrepGaussian) -> EnergyTerms:
        found = layer_energy(layer, prior, belief, around, ancestors, rules)
        return EnergyTerms(*(jnp.sum(observed.counts * term) for term in found))

    def loss_fn(readout: Readout, belief: IrrepGaussian) -> Array:
        return jnp.sum(token_loss(parts, readout, belief, observed))

    reads = jnp.swapaxes(jnp.sum(weights, axis=-1), 1, 2)[..., None]
    curvature = rules.self_weight + couplings(layer, rules)[:, None] * reads
    force_fn = jax.grad(lambda q: energy_fn(layer, prior, q).total)
    observe_fn = jax.grad(partial(loss_fn, readout))
    there, away = (
        nudged(free, force_fn, observe_fn, curvature, sign * parts.config.nudge, parts)
        for sign in (1.0, -1.0)
    )
    direct, in_prior = _slopes(energy_fn, layer, prior, (away, free, there), parts.config)
    through, lower = pull_back(in_prior)

    total = jnp.maximum(jnp.sum(observed.counts), 1.0)
    per_token = partial(jax.tree.map, lambda x: x / total)
    nats, output = jax.value_and_grad(loss_fn)(readout, free)
    pull = observe_fn(free)
    squares = jax.tree.map(jnp.multiply, pull, natural_direction(pull, free, rules.kind))
    return Lesson(
        from_common(prior, place, rules.kind),
        free,
        there,
        per_token(jax.tree.map(jnp.add, direct, through)),
        per_token(lower),
        per_token(output),
        per_token(energy_fn(layer, prior, free)._replace(observation=nats)),
        jnp.sqrt(sum(jnp.sum(x) for x in squares) / total),
    )


def _slopes(
    energy_fn: Callable[[Layer, IrrepGaussian, IrrepGaussian], EnergyTerms],
    layer: Layer,
    prior: IrrepGaussian,
    phases: tuple[IrrepGaussian, IrrepGaussian, IrrepGaussian],
    config: PureFEPConfig,
) -> tuple[Layer, IrrepGaussian]:
    """Slopes of the loss in the layer's own parameters and in its priors, at held beliefs. Terms
    that hold no belief do not differ between the phases: their own slope is added.
    """
    away, free, there = phases
    slopes_fn = jax.grad(lambda layer, prior, q: energy_fn(layer, prior, q).total, (0, 1))
    ahead, behind = (slopes_fn(layer, prior, q) for q in (there, away))
    found = jax.tree.map(lambda a, b: (a - b) / (2.0 * config.nudge), ahead, behind)
    if not (config.prior_weight or config.tower_depth):
        return found

    def prior_terms(layer: Layer, prior: IrrepGaussian) -> Array:
        terms = energy_fn(layer, prior, free)
        return terms.prior_alignment + terms.hyperprior

    return jax.tree.map(jnp.add, found, jax.grad(prior_terms, (0, 1))(layer, prior))


def moments(
    beliefs: IrrepGaussian, ids: Array, counts: Array, vocab_size: int, kind: Irreps
) -> tuple[IrrepGaussian, Array]:
    """The Gaussian of each token that beliefs about it diverge from least: their joint moments.

    ``argmin_pi sum_i KL(q_i || pi)`` has the mean of the means, and the mean variance with the
    spread of the means added.

    Args:
        beliefs: means ``[b, n, h, c]``.
        ids: which token each belief is about, ``[b, n]``.
        counts: 1 where a belief counts, ``[b, n]``.
        vocab_size: number of tokens v.
        kind: the irreps of a head.

    Returns:
        Gaussians ``[v, h, c]``, standard ones where there is no belief, and how many there are
        ``[v]``.
    """
    weight = counts[..., None, None]

    def sums(x: Array) -> Array:
        return jnp.zeros((vocab_size, *x.shape[2:]), x.dtype).at[ids].add(weight * x)

    number = jnp.zeros(vocab_size, counts.dtype).at[ids].add(counts)
    share = jnp.maximum(number, 1.0)[:, None, None]
    mean = sums(beliefs.mean) / share
    sizes = kind.sizes(mean.dtype)
    apart = beliefs.mean - mean[ids]
    second = kind.to_irreps(jnp.square(apart)) / sizes + jnp.exp(beliefs.log_variance)
    variance = sums(second) / share
    there = number[:, None, None] > 0
    log_variance = jnp.log(jnp.where(there, variance, 1.0))
    return IrrepGaussian(mean, log_variance), number
