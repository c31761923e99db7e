"""AdamW under a warm-up cosine schedule, with the gradient's norm clipped: the default of every
sequence model.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vfejax.types import Array, PyTree

__all__ = ["adamw", "decays", "warmup_cosine"]

_MATRICES = ("kernel", "embedding")


def warmup_cosine(
    peak: Array | float, warmup_steps: int, total_steps: int, final_fraction: Array | float
) -> Callable[[Array], Array]:
    """Learning rate: linear from 0 to ``peak`` in ``warmup_steps``, then half a cosine down to
    ``final_fraction * peak``.

    The first update already moves (rate ``peak / (warmup_steps + 1)``), update ``warmup_steps`` is
    the first at the peak, and the last one has the final rate. Steps past the end keep it. Without
    room for the cosine (``total_steps <= warmup_steps + 1``) the warm-up is shortened to
    ``total_steps - 2`` updates, so that the peak is reached and the last update has the final rate;
    a single update has the peak.

    Args:
        peak: the largest rate.
        warmup_steps: updates over which the rate rises.
        total_steps: updates in all.
        final_fraction: rate of the last update over the largest.

    Returns:
        A function from the number of an update, counted from 0, to its rate, float32.

    >>> rate = warmup_cosine(1.0, warmup_steps=1, total_steps=4, final_fraction=0.1)
    >>> [round(float(rate(step)), 3) for step in range(5)]
    [0.5, 1.0, 0.55, 0.1, 0.1]
    """
    warmup_steps = max(min(warmup_steps, total_steps - 2), 0)
    # NumPy's own numbers would widen the rate.
    peak, final_fraction = (
        x if isinstance(x, jax.Array) else float(x) for x in (peak, final_fraction)
    )

    def rate(step: Array) -> Array:
        step = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum((step + 1) / (warmup_steps + 1), 1.0)
        done = jnp.clip((step - warmup_steps) / max(total_steps - 1 - warmup_steps, 1), 0.0, 1.0)
        fall = final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
        return peak * rise * fall

    return rate


def _name(path: tuple[Any, ...]) -> str:
    """Last part of a leaf's path as a word: a dict's key, a NamedTuple's field, a list's index."""
    return jax.tree_util.keystr(path[-1:], simple=True) if path else ""


def decays(params: PyTree) -> PyTree:
    """Which leaves weight decay pulls to 0: matrices, known by flax's names ``kernel...`` and
    ``embedding...``; no scale, bias or physical constant, and no leaf without such a name.

    >>> decays({"kernel": 1.0, "scale": 1.0}), decays([1.0])
    ({'kernel': True, 'scale': False}, [False])
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: _name(path).startswith(_MATRICES), params
    )


def adamw(
    learning_rate: float | Callable[[Array], Array],
    *,
    weight_decay: float = 0.1,
    clip_norm: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.99,
) -> optax.GradientTransformation:
    """AdamW behind a clip of the global gradient norm, for weights in any pytree; decay as
    :func:`decays` says.

    The defaults are those of small language models: decay 0.1 and clip 1 as in GPT-3; b2 0.99
    rather than 0.999, because batches are small and runs short, and a long memory of squared
    gradients would lag behind.

    Args:
        learning_rate: a number, or a function from the number of the update.
        weight_decay: share of a matrix that each update takes away, relative to the learning rate.
        clip_norm: gradients whose global norm exceeds this are scaled down to it.
        b1: decay rate of the average of gradients.
        b2: decay rate of the average of squared gradients.

    Source: Loshchilov and Hutter, Decoupled weight decay regularization (2019).

    >>> optimizer = adamw(0.1)
    >>> params = [jnp.ones(2), jnp.zeros(())]
    >>> updates, _ = optimizer.update([jnp.ones(2), jnp.ones(())], optimizer.init(params), params)
    >>> [round(float(jnp.mean(update)), 3) for update in updates]
    [-0.1, -0.1]
    """
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=decays),
    )
