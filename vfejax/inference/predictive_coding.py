"""Predictive coding: a hierarchy of Gaussian layers that perceives and learns by local errors.

Layer l predicts the activity above it, ``x_l = f_l(x_{l-1}; w_l) + noise`` with precision Pi_l,
from the clamped input x_0 to the clamped target x_L. The free energy of activities is

    F = sum_l (Pi_l / 2) |x_l - f_l(x_{l-1}; w_l)|^2     [nats, up to constants].

Perception descends F in the activities between; each of them reads its own error and that of the
next layer. Learning then descends F in the weights; each layer reads its own error and input. At
the fixed point of perception that is the whole gradient of ``min_x F`` by the weights, because what
the activities would add is 0 there. For linear layers ``min_x F`` is minus the log evidence of the
target but for its log determinant.

Source: Rao and Ballard, Nat. Neurosci. 2 (1999) 79; Whittington and Bogacz, Neural Comput. 29
(2017) 1229.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.numerics import cast_like
from vfejax.types import Array, PyTree

__all__ = [
    "LayerFn",
    "Network",
    "PerceptionInfo",
    "energy",
    "forward",
    "learning_gradient",
    "perceive",
    "prediction_errors",
]

LayerFn = Callable[[PyTree, Array], Array]
"""A layer's prediction: weights and the activity below ``[n]`` to the activity ``[m]``."""


class Network(NamedTuple):
    """Layers from the input to the target, and the precision of each one's noise."""

    layers: tuple[LayerFn, ...]
    precisions: tuple[float, ...]


class PerceptionInfo(NamedTuple):
    """How far perception came: F before and after, in nats, and the norm of its gradient."""

    initial_energy: Array
    energy: Array
    gradient_norm: Array


def forward(network: Network, weights: Sequence[PyTree], stimulus: Array) -> tuple[Array, ...]:
    """Activities ``x_1 ... x_L`` without any error: the prediction of the network.

    Args:
        network: the layers.
        weights: one pytree per layer.
        stimulus: x_0, ``[n]``.

    Returns:
        One array per layer; the last one is the predicted target.

    >>> double = Network((lambda w, x: w * x,) * 2, (1.0, 1.0))
    >>> [x.tolist() for x in forward(double, (2.0, 3.0), jnp.ones(1))]
    [[2.0], [6.0]]
    """
    activities = []
    for layer, weight in zip(network.layers, weights, strict=True):
        stimulus = layer(weight, stimulus)
        activities.append(stimulus)
    return tuple(activities)


def prediction_errors(
    network: Network,
    weights: Sequence[PyTree],
    stimulus: Array,
    hidden: Sequence[Array],
    target: Array,
) -> tuple[Array, ...]:
    """``x_l - f_l(x_{l-1}; w_l)`` of every layer.

    Args:
        network: the layers.
        weights: one pytree per layer.
        stimulus: x_0, ``[n]``.
        hidden: activities ``x_1 ... x_{L-1}``.
        target: x_L.

    Returns:
        One array per layer.

    Raises:
        ValueError: when there is not one activity fewer than layers, or the target does not fit.

    >>> double = Network((lambda w, x: w * x,) * 2, (1.0, 1.0))
    >>> errors = prediction_errors(double, (2.0, 3.0), jnp.ones(1), (jnp.ones(1),), jnp.ones(1))
    >>> [e.tolist() for e in errors]
    [[-1.0], [-2.0]]
    """
    if len(hidden) != len(network.layers) - 1:
        raise ValueError(
            f"hidden must have one activity fewer than the {len(network.layers)} layers, got "
            f"{len(hidden)}"
        )
    below, above = (stimulus, *hidden), (*hidden, target)
    predicted = [f(w, x) for f, w, x in zip(network.layers, weights, below, strict=True)]
    if predicted[-1].shape != target.shape:
        raise ValueError(f"target must be {predicted[-1].shape}, got {target.shape}")
    return tuple(x - p for x, p in zip(above, predicted, strict=True))


def energy(
    network: Network,
    weights: Sequence[PyTree],
    stimulus: Array,
    hidden: Sequence[Array],
    target: Array,
) -> Array:
    """F of the activities.

    Args:
        network: the layers.
        weights: one pytree per layer.
        stimulus: x_0, ``[n]``.
        hidden: activities ``x_1 ... x_{L-1}``.
        target: x_L.

    Returns:
        A scalar, in nats.

    >>> double = Network((lambda w, x: w * x,) * 2, (1.0, 1.0))
    >>> float(energy(double, (2.0, 3.0), jnp.ones(1), (jnp.ones(1),), jnp.ones(1)))
    2.5
    """
    errors = prediction_errors(network, weights, stimulus, hidden, target)
    squares = [
        cast_like(p, e) * jnp.sum(e**2) for p, e in zip(network.precisions, errors, strict=True)
    ]
    return 0.5 * sum(squares[1:], squares[0])


def _norm(tree: PyTree) -> Array:
    leaves = jax.tree.leaves(tree)
    return jnp.sqrt(sum((jnp.sum(x**2) for x in leaves[1:]), jnp.sum(leaves[0] ** 2)))


def perceive(
    network: Network,
    weights: Sequence[PyTree],
    stimulus: Array,
    target: Array,
    *,
    step_size: float,
    num_steps: int,
) -> tuple[tuple[Array, ...], PerceptionInfo]:
    """Activities that explain stimulus and target, by gradient descent from the prediction.

    Args:
        network: at least two layers.
        weights: one pytree per layer.
        stimulus: x_0, ``[n]``.
        target: x_L.
        step_size: below 2 over the largest curvature of F.
        num_steps: how many steps. Derivatives go through them.

    Returns:
        ``x_1 ... x_{L-1}`` and the info.

    Raises:
        ValueError: for a network of fewer layers, which has no activity to find.

    >>> double = Network((lambda w, x: w * x,) * 2, (1.0, 1.0))
    >>> hidden, info = perceive(double, (1.0, 1.0), jnp.zeros(1), jnp.ones(1), step_size=0.5,
    ...     num_steps=20)
    >>> round(float(hidden[0][0]), 4), round(float(info.energy), 4)
    (0.5, 0.25)
    """
    if len(network.layers) < 2:
        raise ValueError(
            f"network must have at least two layers to have activities, got {len(network.layers)}"
        )
    slope = jax.value_and_grad(lambda x: energy(network, weights, stimulus, x, target))
    start = forward(network, weights, stimulus)[:-1]

    def step(hidden: tuple[Array, ...], _: None) -> tuple[tuple[Array, ...], None]:
        _, gradient = slope(hidden)
        return jax.tree.map(lambda x, g: x - cast_like(step_size, x) * g, hidden, gradient), None

    hidden, _ = jax.lax.scan(step, start, None, length=num_steps)
    value, gradient = slope(hidden)
    return hidden, PerceptionInfo(slope(start)[0], value, _norm(gradient))


def learning_gradient(
    network: Network,
    weights: Sequence[PyTree],
    stimulus: Array,
    hidden: Sequence[Array],
    target: Array,
) -> tuple[PyTree, ...]:
    """``dF/dw`` with the activities held: each layer's own error times its own input.

    Args:
        network: the layers.
        weights: one pytree per layer.
        stimulus: x_0, ``[n]``.
        hidden: activities ``x_1 ... x_{L-1}``, from :func:`perceive`.
        target: x_L.

    Returns:
        One pytree per layer.

    >>> double = Network((lambda w, x: w * x,) * 2, (1.0, 1.0))
    >>> gradient = learning_gradient(double, (2.0, 3.0), jnp.ones(1), (jnp.ones(1),), jnp.ones(1))
    >>> [float(g) for g in gradient]
    [1.0, 2.0]
    """
    return jax.grad(lambda w: energy(network, w, stimulus, hidden, target))(tuple(weights))
