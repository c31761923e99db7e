"""The loss of a next-token model: cross-entropy over the tokens that count, and the model's own
terms.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.numerics import at_least_float32
from vfejax.types import Array, PyTree, SequenceModel

__all__ = ["LossInfo", "next_token_loss", "token_nats"]


class LossInfo(NamedTuple):
    """Cross-entropy in nats per token, number of tokens that counted, the model's further loss
    terms and its diagnostics.
    """

    cross_entropy: Array
    num_tokens: Array
    losses: dict[str, Array]
    diagnostics: dict[str, Array]


def token_nats(logits: Array, targets: Array, padding: int | None) -> tuple[Array, Array]:
    """``-log softmax(logits)[target]`` of every token, in nats, and which tokens count.

    Args:
        logits: ``[..., v]``; narrower than float32 is widened first.
        targets: ``[...]`` integers.
        padding: the id that does not count; None when all do.

    Returns:
        Nats ``[...]``, 0 where the target is padding, and the mask ``[...]``.
    """
    logits = logits.astype(at_least_float32(logits.dtype))
    counts = jnp.ones(targets.shape, bool) if padding is None else targets != padding
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    nats = jax.nn.logsumexp(logits, axis=-1) - chosen
    return jnp.where(counts, nats, jnp.zeros((), nats.dtype)), counts


def next_token_loss(
    model: SequenceModel, params: PyTree, windows: Array, key: Array | None, padding: int | None
) -> tuple[Array, LossInfo]:
    """Mean cross-entropy of the next token plus the model's own terms, in nats.

    Args:
        model: the model.
        params: its weights.
        windows: tokens ``[b, n + 1]``; the model reads the first n and is asked for the last n.
        key: for what is random in training; None for evaluation.
        padding: the id whose prediction does not count; None when all do.

    Returns:
        The scalar to minimise, and what it is made of. A batch of padding alone has loss 0.
    """
    prediction = model.apply(params, windows[:, :-1], key)
    nats, counts = token_nats(prediction.logits, windows[:, 1:], padding)
    num_tokens = jnp.sum(counts)
    cross_entropy = jnp.sum(nats) / jnp.maximum(num_tokens, 1).astype(nats.dtype)
    total = sum((term.astype(nats.dtype) for term in prediction.losses.values()), cross_entropy)
    return total, LossInfo(cross_entropy, num_tokens, prediction.losses, prediction.diagnostics)
