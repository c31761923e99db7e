"""A learned lifting: a perceptron whose outputs are observables for :mod:`vfejax.koopman`.

It is trained to maximise :func:`vfejax.koopman.variational.vamp2`; the linear map of what it has
learned is then fitted as of any other observables.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from vfejax.koopman.variational import vamp2
from vfejax.models.blocks import check_options
from vfejax.models.perceptron import Perceptron
from vfejax.models.protocol import first_weights, merging
from vfejax.types import Array, PyTree

__all__ = ["Lifting", "LiftingConfig", "lifting", "loss"]


@dataclass(frozen=True)
class LiftingConfig:
    """Sizes of the perceptron."""

    observables: int = 8
    """What it makes of a state."""
    hidden: int = 64
    """Units of a hidden layer."""
    layers: int = 2
    """Hidden layers."""


class Lifting(NamedTuple):
    """A perceptron as pure functions; the weights are a pytree that the caller holds.

    Attributes:
        init: ``init(key) -> params``.
        apply: ``apply(params, x [..., n]) -> z [..., d]``.
        dim: n, length of a state.
    """

    init: Callable[[Array], PyTree]
    apply: Callable[[PyTree, Array], Array]
    dim: int


def lifting(
    dim: int, config: LiftingConfig = LiftingConfig(), dtype: jnp.dtype | type = jnp.float32
) -> Lifting:
    """A perceptron with tanh between its layers.

    Args:
        dim: length of a state, at least 1.
        config: sizes.
        dtype: of weights and arithmetic.

    Raises:
        ValueError: for a length or a size below 1.

    >>> import jax
    >>> model = lifting(2, LiftingConfig(observables=3, hidden=8))
    >>> model.apply(model.init(jax.random.key(0)), jnp.ones((5, 2))).shape
    (5, 3)
    """
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")
    check_options(config, observables=1, hidden=1, layers=1)
    sizes = [dim, *[config.hidden] * config.layers, config.observables]

    def create(rngs: nnx.Rngs) -> Perceptron:
        return Perceptron(sizes, dtype=jnp.dtype(dtype), rngs=rngs)

    merged = merging(create)

    def apply(params: PyTree, x: Array) -> Array:
        if x.ndim < 1 or x.shape[-1] != dim:
            raise ValueError(f"x must be states [..., {dim}], got shape {x.shape}")
        return merged(params)(x)

    return Lifting(first_weights(create), apply, dim)


def loss(model: Lifting, params: PyTree, now: Array, following: Array) -> Array:
    """Minus the score of the observables of pairs of states.

    Args:
        model: the perceptron.
        params: its weights.
        now: states ``[m, n]``.
        following: the states that follow them ``[m, n]``.

    >>> import jax
    >>> model = lifting(1, LiftingConfig(observables=2, hidden=8))
    >>> x = jnp.linspace(-1.0, 1.0, 50)[:, None]
    >>> -2.0 <= loss(model, model.init(jax.random.key(0)), x, x) < -1.9
    Array(True, dtype=bool)
    """
    return -vamp2(model.apply(params, now), model.apply(params, following))
