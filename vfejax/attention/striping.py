"""Striped tokens: dealt out to the devices of a ring in turn, so that all have the same work.

Of consecutive blocks under causality, the first device of a ring reads one block and the last reads
all of them, and the others wait for it. Of striped tokens each device reads equally many. Deal the
tokens once, at the entrance of a model, give the attention their places, and undo it at the exit:

    places = stripe(jnp.arange(n), num_devices, axis=0)
    answer = toroidal_attention(stripe(q, p), ..., causal=True, positions=places, method=...)
    answer = unstripe(answer, p)

Source: Brandon et al., Striped attention (2023).
"""

from collections.abc import Callable

import jax.numpy as jnp

from vfejax.types import Array

__all__ = ["stripe", "unstripe"]


def stripe(x: Array, num_devices: int, axis: int = 1) -> Array:
    """Deal tokens out round by round: device d holds tokens ``d, d + p, d + 2 p, ...``.

    Args:
        x: any array, with tokens along ``axis``.
        num_devices: devices that share the tokens, p, a divisor of their number.
        axis: of the tokens.

    Returns:
        Shape of ``x``: the tokens of device 0 first, then those of device 1, ...

    Raises:
        ValueError: for tokens that cannot be dealt out evenly.

    >>> stripe(jnp.arange(6), 2, axis=0).tolist()
    [0, 2, 4, 1, 3, 5]
    """
    return _deal(x, axis, num_devices, lambda n: (n // num_devices, num_devices))


def unstripe(x: Array, num_devices: int, axis: int = 1) -> Array:
    """Put striped tokens back in their order: the inverse of :func:`stripe`.

    Args:
        x: any array, with striped tokens along ``axis``.
        num_devices: devices that share the tokens.
        axis: of the tokens.

    Raises:
        ValueError: for tokens that cannot be dealt out evenly.

    >>> unstripe(stripe(jnp.arange(6), 2, axis=0), 2, axis=0).tolist()
    [0, 1, 2, 3, 4, 5]
    """
    return _deal(x, axis, num_devices, lambda n: (num_devices, n // num_devices))


def _deal(x: Array, axis: int, num_devices: int, shape: Callable[[int], tuple[int, int]]) -> Array:
    n = x.shape[axis]
    if num_devices < 1 or n % num_devices:
        raise ValueError(f"num_devices must divide the {n} tokens, got {num_devices}")
    axis = axis % x.ndim
    dealt = x.reshape(*x.shape[:axis], *shape(n), *x.shape[axis + 1 :])
    return jnp.swapaxes(dealt, axis, axis + 1).reshape(x.shape)
