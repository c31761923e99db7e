"""Targets that are observed, in training only.

The last layer's agents make as many steps again on ``F_i - log p(y_i | mean of q_i)``, the
likelihood taken at the mean, and what they then pay is a term of the loss. Predictions are made
before, and nothing flows back into them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfejax.models.vfe import inference
from vfejax.models.vfe.beliefs import Belief, log_det_link
from vfejax.models.vfe.energy import Places
from vfejax.models.vfe.irreps import Phases
from vfejax.models.vfe.statistics import counted
from vfejax.numerics import at_least_float32
from vfejax.types import Array, PyTree

__all__ = ["Held", "observed_free_energy"]


class Held(NamedTuple):
    """What the last layer was given and what it found, for the observation of targets."""

    carry: PyTree
    prior: Belief
    posterior: Belief


def observed_free_energy(
    held: Held,
    targets: Array,
    turn: Phases | None,
    places: Places,
    logits_fn: Callable[[PyTree], Array],
    mask: Array | None,
    block: Any,
) -> Array:
    """Free energy of the last layer with the targets observed.

    Args:
        held: what the layer was given and what it found.
        targets: integers ``[b, n]``.
        turn: how far positions turn; None where they do not.
        places: of receivers and senders.
        logits_fn: from what the layer hands on to logits ``[b, n, v]``.
        mask: True at tokens that count, ``[b, n]``; None where all do.
        block: the layer.

    Returns:
        Nats, summed over tokens: a scalar.
    """

    def nats(mean: Array) -> Array:
        after = block.finish(held.carry, held.prior, held.posterior._replace(mean=mean), None)
        logits = logits_fn(after)
        logits = logits.astype(at_least_float32(logits.dtype))
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen

    rule, transport, strength = block.rule, block.transport(turn), block.strength()
    belief, _, _ = inference.infer(
        held.prior,
        transport,
        strength,
        places,
        rule,
        steps=block.config.steps,
        start=held.posterior,
        potential=nats,
    )
    rows = inference.senders(belief, transport, rule)
    if transport.link is not None:
        transport = transport._replace(log_det=log_det_link(transport.link))
    paid = inference.free_energy(belief, held.prior, rows, transport, strength, places, rule)
    total = jnp.sum(paid.self_coupling + paid.alignment, axis=-1) + nats(belief.mean)
    return jnp.sum(counted(total, mask))
