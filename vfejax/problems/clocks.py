"""Clocks: when a scale of a hierarchy moves."""

from collections.abc import Callable

from vfejax.types import Array

__all__ = ["Clock", "every", "information"]

Clock = Callable[[Array, Array], Array]
"""``(number of the step, information from the members in nats) -> whether the scale moves``."""


def every(num_steps: int | Array) -> Clock:
    """A clock that lets its scale move at every ``num_steps``-th step.

    >>> import jax.numpy as jnp
    >>> clock = every(5)
    >>> [bool(clock(jnp.asarray(step), jnp.zeros(()))) for step in (1, 5, 6, 10)]
    [False, True, False, True]
    """

    def clock(step: Array, received: Array) -> Array:
        del received
        return step % num_steps == 0

    return clock


def information(nats: float | Array) -> Clock:
    """A clock that lets its scale move when its members have moved far enough since it last did.

    The information is the sum of the squared Fisher lengths of the members' steps, halved: to
    leading order the divergence between a belief before and after a step.

    >>> import jax.numpy as jnp
    >>> clock = information(0.5)
    >>> bool(clock(jnp.asarray(1), jnp.asarray(0.4))), bool(clock(jnp.asarray(2), jnp.asarray(0.6)))
    (False, True)
    """

    def clock(step: Array, received: Array) -> Array:
        del step
        return received > nats

    return clock
