"""The loss of a next-token model: cross-entropy over the tokens that count, and the model's own
terms.
"""

import jax
import jax.numpy as jnp

from vfejax.numerics import at_least_float32
from vfejax.types import Array, Batch, LossInfo, PyTree, SequenceModel

__all__ = ["LossInfo", "counted_targets", "next_token_loss", "token_nats", "training_batch"]


def token_nats(
    logits: Array, targets: Array, padding: int | None = None, counts: Array | None = None
) -> tuple[Array, Array]:
    """``-log softmax(logits)[target]`` of every token, in nats, and which tokens count.

    Args:
        logits: ``[..., v]``; narrower than float32 is widened first.
        targets: ``[...]`` integers.
        padding: the id that does not count; None when all do.
        counts: True where a target counts, ``[...]``, besides ``padding``; None when all do.

    Returns:
        Nats ``[...]``, 0 where the target does not count, and the mask ``[...]``.

    >>> nats, counts = token_nats(jnp.zeros((3, 2)), jnp.asarray([1, 0, 1]), padding=0)
    >>> nats.round(3).tolist(), counts.tolist()
    ([0.6930000185966492, 0.0, 0.6930000185966492], [True, False, True])
    """
    logits = logits.astype(at_least_float32(logits.dtype))
    counts = jnp.ones(targets.shape, bool) if counts is None else counts
    if padding is not None:
        counts = counts & (targets != padding)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    nats = jax.nn.logsumexp(logits, axis=-1) - chosen
    return jnp.where(counts, nats, jnp.zeros((), nats.dtype)), counts


def training_batch(windows: Array, padding: int | None = None) -> Batch:
    """What a model reads of windows of text, and the token that follows each token.

    Args:
        windows: tokens ``[b, n + 1]``; the model reads the first n and is asked for the last n.
        padding: the id that is no token; None when all are. It may stand before, after or between
            tokens, and is moved behind them: the first token of a row is read and never asked for.

    Returns:
        Tokens, mask and targets ``[b, n]``.

    Raises:
        ValueError: for windows of another shape.

    >>> batch = training_batch(jnp.asarray([[0, 5, 6, 7]]), padding=0)
    >>> batch.tokens.tolist(), batch.mask.tolist(), batch.targets.tolist()
    ([[5, 6, 7]], [[True, True, True]], [[6, 7, 0]])
    """
    if windows.ndim != 2 or windows.shape[1] < 2:
        raise ValueError(f"windows must be [b, n + 1] with n >= 1, got shape {windows.shape}")
    if padding is None:
        return Batch(windows[:, :-1], None, None, windows[:, 1:])
    order = jnp.argsort(windows == padding, axis=1, stable=True)
    windows = jnp.take_along_axis(windows, order, axis=1)
    tokens, targets = windows[:, :-1], windows[:, 1:]
    return Batch(tokens, tokens != padding, None, targets)


def counted_targets(batch: Batch, padding: int | None = None) -> tuple[Array, Array]:
    """The targets of a batch, and which predictions count: those of a real token that follows a
    real one.

    Args:
        batch: with targets.
        padding: the id of a target that does not count; None when all do.

    Returns:
        Targets and booleans, ``[b, n]``.

    Raises:
        ValueError: for a batch without targets.

    >>> batch = training_batch(jnp.asarray([[0, 5, 6, 0]]), padding=0)
    >>> [array.tolist() for array in counted_targets(batch, padding=0)]
    [[[6, 0, 0]], [[True, False, False]]]
    """
    if batch.targets is None:
        raise ValueError("batch must have targets, the token that follows each token")
    counts = jnp.ones(batch.targets.shape, bool) if padding is None else batch.targets != padding
    return batch.targets, counts if batch.mask is None else counts & batch.mask


def next_token_loss(
    model: SequenceModel,
    params: PyTree,
    windows: Array | Batch,
    key: Array | None = None,
    padding: int | None = None,
) -> tuple[Array, LossInfo]:
    """Mean cross-entropy of the next token plus the model's own terms, in nats.

    Args:
        model: the model.
        params: its weights.
        windows: tokens ``[b, n + 1]``, of which the model reads the first n and is asked for the
            last n; or a batch with targets.
        key: for what is random in training; None for evaluation.
        padding: the id that is no token, neither read nor asked for; None when all are.

    Returns:
        The scalar to minimise, and what it is made of. A batch of padding alone has loss 0.

    Raises:
        ValueError: for a batch without targets.

    >>> from vfejax.models import table
    >>> model = table.build("transformer", table.MODELS["transformer"].tiny, 11, length=8)
    >>> loss, info = next_token_loss(model, model.init(jax.random.key(0)), jnp.ones((2, 9), int))
    >>> bool(loss == info.cross_entropy), int(info.num_tokens)  # this model has no other terms
    (True, 16)
    """
    batch = windows if isinstance(windows, Batch) else training_batch(windows, padding)
    targets, counts = counted_targets(batch, padding)
    prediction = model.apply(params, batch, key)
    nats, _ = token_nats(prediction.logits, targets, counts=counts)
    num_tokens = jnp.sum(counts)
    cross_entropy = jnp.sum(nats) / jnp.maximum(num_tokens, 1).astype(nats.dtype)
    total = sum((term.astype(nats.dtype) for term in prediction.losses.values()), cross_entropy)
    return total, LossInfo(cross_entropy, num_tokens, prediction.losses, prediction.diagnostics)
