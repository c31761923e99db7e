"""Perceptrons with smooth derivatives, for learned energies and liftings of a few numbers."""

from functools import partial
from itertools import pairwise

import jax.numpy as jnp
from flax import nnx

from vfejax.types import Array

__all__ = ["Perceptron"]


class Perceptron(nnx.Module):
    """Linear layers with tanh between them.

    Args:
        sizes: of the input, of every hidden layer, and of the output.
        dtype: of weights and arithmetic.
        rngs: where first weights come from.

    >>> Perceptron([2, 8, 3], dtype=jnp.float32, rngs=nnx.Rngs(0))(jnp.ones((5, 2))).shape
    (5, 3)
    """

    def __init__(self, sizes: list[int], *, dtype: jnp.dtype, rngs: nnx.Rngs):
        linear = partial(nnx.Linear, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.layers = nnx.List([linear(*pair) for pair in pairwise(sizes)])

    def __call__(self, x: Array) -> Array:
        for layer in self.layers[:-1]:
            x = jnp.tanh(layer(x))
        return self.layers[-1](x)
