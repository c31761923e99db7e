"""Aliases and Protocols shared by every layer."""

from typing import Any, Protocol

import jax

Array = jax.Array
PyTree = Any


class EnergyFn(Protocol):
    """A free energy: one pure function from a pytree to a scalar in nats."""

    def __call__(self, position: PyTree, /) -> Array: ...


class ExponentialFn(Protocol):
    """A group exponential: coordinates ``[..., a]`` and generators ``[a, k, k]`` to operators ``[..., k, k]``."""

    def __call__(self, phi: Array, generators: Array, /) -> Array: ...
