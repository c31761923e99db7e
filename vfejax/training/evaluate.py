"""Evaluation of a sequence model: a pure sum over windows, and a loop around it that a caller can
watch and stop.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vfejax.training import sharding
from vfejax.training.losses import counted_targets, token_nats, training_batch
from vfejax.training.scores import Measured
from vfejax.types import Array, PyTree, SequenceModel

__all__ = ["EvaluateFn", "EvaluationSums", "evaluate", "evaluator"]

EvaluateFn = Callable[..., Measured]


class EvaluationSums(NamedTuple):
    """Total cross-entropy in nats, and the number of tokens it is a sum over."""

    nats: Array
    num_tokens: Array


def evaluate(
    model: SequenceModel, params: PyTree, windows: Array, padding: int | None = None
) -> EvaluationSums:
    """Cross-entropy of every token of the windows that is not padding; nothing is random.

    Batches are summed with the rounding errors carried along (Neumaier's compensation), so that the
    sum of a million batches is as exact as that of one.

    Args:
        model: the model.
        params: its weights.
        windows: tokens ``[m, b, n + 1]``: m batches, of which the model reads the first n tokens
            and is asked for the last n; fewer than 2^31 targets together.
        padding: the id that is neither read nor asked for, wherever it stands; None when there is
            none.

    Returns:
        The sums.

    Raises:
        ValueError: at trace time, for windows of another shape, or too many.

    Source: Neumaier, Rundungsfehleranalyse einiger Verfahren zur Summation endlicher Summen (1974).

    >>> import jax.numpy as jnp
    >>> from vfejax.types import Prediction, SequenceModel
    >>> guess_fn = lambda params, tokens, key: Prediction(jnp.zeros((*tokens.shape, 4)), {}, {})
    >>> uniform = SequenceModel(None, guess_fn, None, None, None)
    >>> sums = evaluate(uniform, {}, jnp.ones((3, 2, 6), jnp.int32))
    >>> print(int(sums.num_tokens), round(float(sums.nats) / 30, 4))  # ln 4 each
    30 1.3863
    """
    if windows.ndim != 3 or windows.shape[0] < 1 or windows.shape[2] < 2:
        raise ValueError(
            f"windows must be [m, b, n + 1] with m >= 1 and n >= 1, got shape {windows.shape}"
        )
    if windows.size >= 2**31:
        raise ValueError(f"windows must hold fewer than 2^31 tokens, got {windows.size}")

    def batch_nats(batch: Array) -> tuple[Array, Array]:
        # Padding stands behind the tokens, and reaches no earlier one: logits need no mask.
        known = training_batch(batch, padding)
        assert known.targets is not None  # for the type checker
        logits = model.apply(params, known.tokens, None).logits
        targets, counts = counted_targets(known, padding)
        nats, _ = token_nats(logits, targets, counts=counts)
        return jnp.sum(nats), jnp.sum(counts, dtype=jnp.int32)

    def add(carry: tuple[Array, Array, Array], batch: Array) -> tuple[tuple, None]:
        total, lost, count = carry
        nats, counted = batch_nats(batch)
        after = total + nats
        larger, smaller = jnp.maximum(total, nats), jnp.minimum(total, nats)
        return (after, lost + ((larger - after) + smaller), count + counted), None

    dtype = jax.eval_shape(batch_nats, windows[0])[0].dtype
    zero = jnp.zeros((), dtype)
    (total, lost, count), _ = jax.lax.scan(add, (zero, zero, jnp.zeros((), jnp.int32)), windows)
    # An infinite sum has lost infinity minus infinity.
    return EvaluationSums(jnp.where(jnp.isinf(total), total, total + lost), count)


def evaluator(
    model: SequenceModel,
    mesh: Mesh,
    padding: int | None,
    batches_per_call: int = 32,
    rule: sharding.Rule = sharding.replicated,
    jit_fn: Callable[..., Any] = jax.jit,
) -> EvaluateFn:
    """A compiled evaluation that a caller can watch and stop.

    Args:
        model: the model.
        mesh: devices over which every batch is split.
        padding: the id whose prediction does not count; None when all do.
        batches_per_call: at most so many batches are read between two moments at which the
            evaluation can be stopped. Texts of at least as many batches share one program, when
            there is padding.
        rule: where the weights lie; with :func:`vfejax.training.sharding.zero3` each device keeps
            its share of them, and gathers what a batch needs where it is needed.
        jit_fn: compiles it, as ``jax.jit`` does.

    Returns:
        ``evaluate_fn(params, windows [m, b, n + 1], progress_fn=None, stop_fn=None) -> Measured``.
        Across processes all call it, with the same windows.
        After every few batches it calls ``progress_fn(batches done)``, and when ``stop_fn()`` is
        true it returns the figures of the windows read so far; the number of predicted tokens says
        how many they were.

    >>> from vfejax.types import Prediction
    >>> guess_fn = lambda params, tokens, key: Prediction(jnp.zeros((*tokens.shape, 4)), {}, {})
    >>> uniform = SequenceModel(None, guess_fn, None, None, None)
    >>> evaluate_fn = evaluator(uniform, sharding.data_mesh(2), padding=0)
    >>> measured = evaluate_fn({}, np.ones((3, 2, 6), np.int32))
    >>> print(measured.num_tokens, round(measured.nats_per_token, 4))  # ln 4
    30 1.3863
    """
    sums_fn = jit_fn(sharding.in_scope(mesh, partial(evaluate, model, padding=padding)))

    def evaluate_fn(
        params: PyTree,
        windows: np.ndarray,
        progress_fn: Callable[[int], None] | None = None,
        stop_fn: Callable[[], bool] | None = None,
    ) -> Measured:
        params = sharding.place(params, rule(mesh, params))
        split = PartitionSpec(None, "data")
        nats, count = 0.0, 0
        for start in range(0, len(windows), batches_per_call):
            group = windows[start : start + batches_per_call]
            done = start + len(group)
            if padding is not None:  # every call has the same shape, so one program is compiled
                missing = min(len(windows), batches_per_call) - len(group)
                group = np.pad(group, ((0, missing), (0, 0), (0, 0)), constant_values=padding)
            sums = sums_fn(params, sharding.place(group, NamedSharding(mesh, split)))
            nats, count = nats + float(sums.nats), count + int(sums.num_tokens)
            if progress_fn is not None:
                progress_fn(done)
            if stop_fn is not None and stop_fn():
                break
        return Measured(nats / count if count else float("nan"), count)

    return evaluate_fn
