"""AdamW under a warm-up cosine schedule, with the gradient's norm clipped: the default of every
sequence model.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from vfejax.types import Array, PyTree

__all__ = ["adamw", "decays", "warmup_cosine"]

_MATRICES = ("kernel", "embedding")


def warmup_cosine(
    peak: float, warmup_steps: int, total_steps: int, final_fraction: float
) -> Callable[[Array], Array]:
    """Learning rate: linear from 0 to ``peak`` in ``warmup_steps``, then half a cosine down to
    ``final_fraction * peak``.

    The first update already moves (rate ``peak / (warmup_steps + 1)``), and the last one has the
    final rate. Steps past the end keep it.
    """

    def rate(step: Array) -> Array:
        step = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum((step + 1) / (warmup_steps + 1), 1.0)
        done = jnp.clip((step - warmup_steps) / max(total_steps - 1 - warmup_steps, 1), 0.0, 1.0)
        fall = final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
        return peak * rise * fall

    return rate


def decays(params: PyTree) -> PyTree:
    """Which leaves weight decay pulls to 0: matrices, known by flax's names ``kernel...`` and
    ``embedding``; no scale, bias or physical constant.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: str(path[-1].key).startswith(_MATRICES), params
    )


def adamw(
    learning_rate: float | Callable[[Array], Array],
    *,
    weight_decay: float = 0.1,
    clip_norm: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.99,
) -> optax.GradientTransformation:
    """AdamW behind a clip of the global gradient norm; decay as :func:`decays` says.

    Source: Loshchilov and Hutter, Decoupled weight decay regularization (2019).
    """
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=decays),
    )
