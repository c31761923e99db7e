"""What sequence models share: a stack of equal blocks compiled once, dropout, initialisers, and
checks of options.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.types import Array, PyTree

__all__ = ["Stack", "check_dropout", "check_options", "dropout", "normal"]


class Stack(nnx.Module):
    """``num_layers`` equal blocks whose parameters are stacked along a leading axis, so that depth
    costs no compile time.
    """

    def __init__(
        self, create: Callable[[nnx.Rngs], nnx.Module], num_layers: int, *, rngs: nnx.Rngs
    ):
        self.num_layers = num_layers
        self.block = nnx.vmap(create)(rngs.split(num_layers))

    def scan(
        self, step: Callable[[Any, Any, Any], tuple[Any, Any]], carry: Any, inputs: Any = None
    ) -> tuple[Any, Any]:
        """``carry, output = step(block, carry, input)`` through the blocks in order; inputs and
        outputs are stacked by layer.
        """
        graphdef, params = nnx.split(self.block)

        def body(carry: Any, layer: tuple[Any, Any]) -> tuple[Any, Any]:
            return step(nnx.merge(graphdef, layer[0]), carry, layer[1])

        return jax.lax.scan(body, carry, (params, inputs))

    def repeat(self, make: Callable[[Any], PyTree]) -> PyTree:
        """``make(block)``, the same for every block, stacked by layer."""
        graphdef, params = nnx.split(self.block)
        first = nnx.merge(graphdef, jax.tree.map(lambda x: x[0], params))
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (self.num_layers, *x.shape)), make(first))


def normal(scale: float) -> Callable[..., Array]:
    """Initialiser: independent normal numbers of this standard deviation."""
    return nnx.initializers.normal(scale)


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zero a share ``rate`` of the entries and scale up the rest; the identity without a key or at
    rate 0.
    """
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros((), x.dtype))


def check_options(config: Any, **least: float) -> None:
    """Raise ValueError that names the first option below its least value, or not a number.

    Args:
        config: a model's options.
        least: for each option its least sensible value.

    Raises:
        ValueError: naming option, limit and value.
    """
    for name, bound in least.items():
        value = getattr(config, name)
        if not bound <= value < float("inf"):
            raise ValueError(f"{name} must be at least {bound} and finite, got {value}")


def check_dropout(rate: float) -> None:
    """Raise ValueError unless a share of activations can be left out: ``0 <= rate < 1``."""
    if not 0 <= rate < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {rate}")
