"""Learning of one layer: differences of the gradients of its own free energy between two phases.

*Free phase*: beliefs q0 descend F alone; the prediction is read. *Learning phase*: the observed
token is shown with a small weight, the nudge e, and beliefs descend ``F + e O`` from q0, with ``O =
-log p(y | z)``. By the envelope theorem the slope of the minimum of ``F + e O`` in any parameter is
the partial slope at fixed beliefs, so

    d O(q0) / d theta = lim (dF/dtheta at q_e - dF/dtheta at q_-e) / 2 e

is the exact slope of the layer's own prediction loss, and nothing is differentiated through the
descent of beliefs. It is a difference of two local quantities. Nudges of both signs leave an error
of second order in e. What the layer below believes is held.

Source: Scellier and Bengio, Equilibrium propagation (2017); nudges of both signs: Laborieux et al.
(2021). Here every layer is its own equilibrium and senders are held.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

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
from vfejax.models.pure_fep.nudges import natural_direction, nudged
from vfejax.models.pure_fep.parameters import Anatomy, Readout
from vfejax.types import Array

__all__ = ["Lesson", "Observed", "learn_layer", "token_loss"]


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


class _Phases(NamedTuple):
    """Beliefs at which slopes are compared: with nudge -e, without one, and with nudge e."""

    away: IrrepGaussian
    free: IrrepGaussian
    shown: IrrepGaussian


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
    shown, away = (
        nudged(free, force_fn, observe_fn, curvature, sign * parts.config.nudge, parts)
        for sign in (1.0, -1.0)
    )
    direct, in_prior = _slopes(energy_fn, layer, prior, _Phases(away, free, shown), parts.config)
    by_prior, in_below = pull_back(in_prior)

    total = jnp.maximum(jnp.sum(observed.counts), 1.0)
    per_token = partial(jax.tree.map, lambda x: x / total)
    nats, in_readout = jax.value_and_grad(loss_fn)(readout, free)
    return Lesson(
        prior=from_common(prior, place, rules.kind),
        belief=free,
        shown=shown,
        layer=per_token(jax.tree.map(jnp.add, direct, by_prior)),
        below=per_token(in_below),
        readout=per_token(in_readout),
        terms=per_token(energy_fn(layer, prior, free)._replace(observation=nats)),
        pressure=_pressure(observe_fn(free), free, rules.kind, total),
    )


def _pressure(pull: IrrepGaussian, free: IrrepGaussian, kind: Irreps, total: Array) -> Array:
    """Root mean square over tokens of a slope in beliefs, as long as the Fisher metric says."""
    squares = jax.tree.map(jnp.multiply, pull, natural_direction(pull, free, kind))
    return jnp.sqrt(sum(jnp.sum(x) for x in squares) / total)


def _slopes(
    energy_fn: Callable[[Layer, IrrepGaussian, IrrepGaussian], EnergyTerms],
    layer: Layer,
    prior: IrrepGaussian,
    phases: _Phases,
    config: PureFEPConfig,
) -> tuple[Layer, IrrepGaussian]:
    """Slopes of the loss in the layer's own parameters and in its priors, at held beliefs. Terms
    that hold no belief do not differ between the phases: their own slope is added.
    """
    slopes_fn = jax.grad(lambda layer, prior, q: energy_fn(layer, prior, q).total, (0, 1))
    ahead, behind = (slopes_fn(layer, prior, q) for q in (phases.shown, phases.away))
    found = jax.tree.map(lambda a, b: (a - b) / (2.0 * config.nudge), ahead, behind)
    if not (config.prior_weight or config.tower_depth):
        return found

    def prior_terms(layer: Layer, prior: IrrepGaussian) -> Array:
        terms = energy_fn(layer, prior, phases.free)
        return terms.prior_alignment + terms.hyperprior

    return jax.tree.map(jnp.add, found, jax.grad(prior_terms, (0, 1))(layer, prior))
