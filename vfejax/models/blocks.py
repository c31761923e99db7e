"""What sequence models share: a stack of equal blocks compiled once, and the step from a flax
module to pure functions.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.types import Array, Prediction, PyTree, SequenceModel

__all__ = ["SequenceModule", "Stack", "check_tokens", "dropout", "normal", "pure"]


class SequenceModule(Protocol):
    """What a flax module offers to become a :class:`vfejax.types.SequenceModel`; see there for the
    meaning.
    """

    max_length: int | None

    def __call__(self, tokens: Array, key: Array | None) -> Prediction: ...

    def init_decode(self, batch: int) -> PyTree: ...

    def decode(self, state: PyTree, tokens: Array) -> tuple[Array, PyTree]: ...


def pure(create: Callable[[nnx.Rngs], SequenceModule]) -> SequenceModel:
    """The module that ``create(rngs)`` makes, as pure functions of its parameters (a nested dict of
    arrays).
    """
    abstract = nnx.eval_shape(lambda: create(nnx.Rngs(0)))
    graphdef = nnx.graphdef(abstract)

    def init(key: Array) -> PyTree:
        return nnx.to_pure_dict(nnx.state(create(nnx.Rngs(key)), nnx.Param))

    def apply(params: PyTree, tokens: Array, key: Array | None = None) -> Prediction:
        return nnx.merge(graphdef, params)(tokens, key)

    def decode(params: PyTree, state: PyTree, tokens: Array) -> tuple[Array, PyTree]:
        return nnx.merge(graphdef, params).decode(state, tokens)

    def init_decode(params: PyTree, batch: int) -> PyTree:
        return nnx.merge(graphdef, params).init_decode(batch)

    return SequenceModel(init, apply, init_decode, decode, abstract.max_length)


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


def check_tokens(tokens: Array, max_length: int | None) -> None:
    """Raise ValueError unless ``tokens`` is an integer array ``[b, n]`` with ``1 <= n <=
    max_length``.
    """
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"tokens must be integers of shape [b, n], got {tokens.dtype} of shape {tokens.shape}"
        )
    if tokens.shape[1] < 1 or (max_length is not None and tokens.shape[1] > max_length):
        raise ValueError(f"tokens must hold 1 to {max_length} positions, got {tokens.shape[1]}")
