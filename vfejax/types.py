"""Aliases and Protocols shared by every layer."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
PyTree = Any


class EnergyFn(Protocol):
    """A free energy: one pure function from a pytree to a scalar in nats."""

    def __call__(self, position: PyTree, /) -> Array: ...


class ExponentialFn(Protocol):
    """A group exponential: coordinates ``[..., a]`` and generators ``[a, k, k]`` to operators ``[..., k, k]``."""

    def __call__(self, phi: Array, generators: Array, /) -> Array: ...


class Integrator(NamedTuple):
    """A dynamics as two pure functions.

    ``init(position, ...) -> state`` and ``step(state) -> (state, info)``: the state is what the next step needs, the info
    is what a reader wants.
    """

    init: Callable[..., PyTree]
    step: Callable[[PyTree], tuple[PyTree, PyTree]]
