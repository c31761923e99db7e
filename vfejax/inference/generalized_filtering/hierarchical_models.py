"""Hierarchical dynamic models in generalised coordinates, as data.

Level i has hidden states x and is driven by the causes v that the level above puts out:

    y      = g_1(x_1, v_1) + z_1          what is observed
    dx_1   = f_1(x_1, v_1) + w_1
    v_1    = g_2(x_2, v_2) + z_2
    dx_2   = f_2(x_2, v_2) + w_2          and so on
    v_last = eta + z                      prior of the causes

All noise is smooth, with autocorrelation ``exp(-h^2 / 4 s^2)`` and precision ``Pi = sum_c
exp(lambda_c) Q_c``. The free energy of a path is in
:mod:`vfejax.inference.generalized_filtering.path_energy`.

The last derivative of a state has no motion in ``D x~``. Its error ``-f~`` is left out by default,
because it says that the last derivative of the flow is 0, which no model claims. ``motion_order =
order`` takes it in, as Friston et al. (2008) do.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vfejax.inference.generalized_filtering.generalized_coordinates import (
    DerivativesFn,
    locally_linear,
)
from vfejax.types import Array, PyTree

__all__ = [
    "Hyperparameters",
    "Level",
    "Model",
    "Observation",
    "Path",
    "check_model",
    "motion_order",
    "observation",
    "rest",
    "zero_hyperparameters",
]


class Level(NamedTuple):
    """One level of a hierarchy.

    Attributes:
        motion_fn: f, ``(states [n], causes [m], parameters) -> [n]``, in units of x per time.
        output_fn: g, ``(states [n], causes [m], parameters) -> [o]``.
        output_precision: components Q of the precision of z, ``[c, o, o]``.
        state_precision: components Q of the precision of w, ``[c, n, n]``; ``[1, 0, 0]`` for a
            level without states.
    """

    motion_fn: Callable[[Array, Array, PyTree], Array]
    output_fn: Callable[[Array, Array, PyTree], Array]
    output_precision: Array | np.ndarray
    state_precision: Array | np.ndarray


class Model(NamedTuple):
    """A hierarchy, lowest level first.

    Attributes:
        levels: at least one.
        cause_precision: of the prior of the causes of the highest level, ``[m, m]``; ``[0, 0]``
            without causes.
        order: number of derivatives of states and observations, the value included.
        cause_order: number of derivatives of the causes; further ones are 0.
        smoothness: s, in units of time, of all noise.
        cause_smoothness: s of the prior of the causes; None for that of the noise.
        motion_order: number of derivatives whose motion is predicted; None for ``order - 1``.
        sensed_covariance: ``[order, order]``, covariance in time of the noise of the generalised
            observation; None for that of exact derivatives, S. An observation that was embedded
            from samples has another
            (:func:`vfejax.inference.generalized_filtering.embedded_samples.embedded_covariance`).
        derivatives_fn: generalised motion of a function, ``locally_linear`` or another of
            :mod:`vfejax.inference.generalized_filtering.generalized_coordinates`.
    """

    levels: tuple[Level, ...]
    cause_precision: Array | np.ndarray
    order: int
    cause_order: int
    smoothness: ArrayLike
    cause_smoothness: ArrayLike | None = None
    motion_order: int | None = None
    sensed_covariance: Array | np.ndarray | None = None
    derivatives_fn: DerivativesFn = locally_linear


class Path(NamedTuple):
    """Generalised states ``[order, n]`` and causes ``[cause_order, m]`` of every level."""

    states: tuple[Array, ...]
    causes: tuple[Array, ...]


class Observation(NamedTuple):
    """What a filter is given at one time: ``sensed [order, o]``, the generalised observation, and
    ``prior [cause_order, m]``, the expectation of the causes of the highest level.
    """

    sensed: Array
    prior: Array


class Hyperparameters(NamedTuple):
    """Logarithms of the weights of precision components, ``[c]`` for every level."""

    output: tuple[Array, ...]
    state: tuple[Array, ...]


def _sizes(model: Model) -> tuple[list[int], list[int], list[int]]:
    """Numbers of states, causes and outputs of every level of a model whose shapes fit."""
    _check_sizes(model)
    outputs = [level.output_precision.shape[-1] for level in model.levels]
    states = [level.state_precision.shape[-1] for level in model.levels]
    return states, [*outputs[1:], model.cause_precision.shape[-1]], outputs


def _precisions(model: Model) -> dict[str, Array | np.ndarray]:
    """All precisions by name, ``[components, k, k]``."""
    if isinstance(model.levels, Level):
        raise ValueError("levels must be a tuple of levels, got one level; (level,) is a tuple")
    found = {}
    for i, level in enumerate(model.levels):
        for name in ("output_precision", "state_precision"):
            found[f"levels[{i}].{name}"] = getattr(level, name)
    return found


def _check_sizes(model: Model) -> None:
    """Refuse orders and shapes that do not fit; values may be traced, but for a smoothness that is
    known.
    """
    if not 1 <= model.cause_order <= model.order:
        raise ValueError(
            f"cause_order must be from 1 to order = {model.order}, got {model.cause_order}"
        )
    if not 0 <= motion_order(model) <= model.order:
        raise ValueError(
            f"motion_order must be from 0 to order = {model.order}, got {model.motion_order}"
        )
    for name in ("smoothness", "cause_smoothness"):
        width = getattr(model, name)
        if (
            width is not None
            and not isinstance(width, jax.core.Tracer)
            and np.any(np.asarray(width) <= 0)
        ):
            raise ValueError(f"{name} must be above 0, in units of time, got {width}")
    for name, components in _precisions(model).items():
        shape = np.shape(components)
        if len(shape) != 3 or shape[1] != shape[2]:
            raise ValueError(
                f"{name} must be [components, k, k], got shape {shape}; one precision p for all is "
                "p * np.eye(k)[None]"
            )
    shape = np.shape(model.cause_precision)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(
            f"cause_precision must be [m, m], got shape {shape}; one precision p for all is "
            "p * np.eye(m)"
        )


def motion_order(model: Model) -> int:
    """Number of derivatives whose motion is predicted.

    >>> motion_order(Model((), jnp.eye(1), order=3, cause_order=1, smoothness=1.0))
    2
    """
    return model.order - 1 if model.motion_order is None else model.motion_order


def check_model(model: Model) -> Model:
    """The model itself, when shapes and orders fit and all precisions are symmetric positive
    semi-definite; its functions are not called.

    Args:
        model: with concrete precisions.

    Returns:
        ``model``.

    Raises:
        ValueError: naming the level and the precision that does not fit.

    >>> model = Model((), jnp.eye(1), order=2, cause_order=3, smoothness=1.0)
    >>> check_model(model)
    Traceback (most recent call last):
        ...
    ValueError: cause_order must be from 1 to order = 2, got 3
    """
    _check_sizes(model)
    _check_precision(np.asarray(model.cause_precision)[None], "cause_precision")
    for name, components in _precisions(model).items():
        _check_precision(np.asarray(components), name)
    return model


def _check_precision(components: np.ndarray, name: str) -> None:
    for c, matrix in enumerate(components):
        if not np.allclose(matrix, matrix.T):
            raise ValueError(f"{name}[{c}] must be symmetric")
        least = np.linalg.eigvalsh(matrix).min(initial=0.0)
        if least < -1e-6 * np.abs(matrix).max(initial=0.0):
            raise ValueError(
                f"{name}[{c}] must be positive semi-definite, got eigenvalue {least:g}"
            )


def zero_hyperparameters(
    model: Model, dtype: jax.typing.DTypeLike | None = None
) -> Hyperparameters:
    """Weights of 1 for all precision components.

    Args:
        model: the hierarchy.
        dtype: of the arrays; the default float if None.

    Returns:
        Logarithms 0.

    Raises:
        ValueError: when a precision is not ``[components, k, k]``, or the model does not fit
            together otherwise.

    >>> zero_hyperparameters(Model((), jnp.eye(1), 1, 1, 1.0))
    Hyperparameters(output=(), state=())
    """
    _check_sizes(model)
    dtype = dtype or jnp.result_type(float)
    return Hyperparameters(
        tuple(jnp.zeros(len(level.output_precision), dtype) for level in model.levels),
        tuple(jnp.zeros(len(level.state_precision), dtype) for level in model.levels),
    )


def rest(model: Model, dtype: jax.typing.DTypeLike | None = None) -> Path:
    """The path in which everything is 0.

    Args:
        model: the hierarchy.
        dtype: of the arrays; the default float if None.

    Returns:
        The path.

    >>> from vfejax.problems.linear_convolution import convolution_model
    >>> rest(convolution_model()[0]).states[0].shape
    (6, 2)
    """
    dtype = dtype or jnp.result_type(float)
    states, causes, _ = _sizes(model)
    return Path(
        tuple(jnp.zeros((model.order, n), dtype) for n in states),
        tuple(jnp.zeros((model.cause_order, m), dtype) for m in causes),
    )


def observation(model: Model, sensed: Array, prior: Array | None = None) -> Observation:
    """A generalised observation, or a sequence of them, with a prior of 0 for the causes.

    Args:
        model: the hierarchy.
        sensed: ``[..., order, o]``.
        prior: ``[..., cause_order, m]``; 0 if None.

    Returns:
        Both.

    Raises:
        ValueError: when a shape does not fit the model.

    >>> model = Model((), jnp.eye(1), order=2, cause_order=1, smoothness=1.0)
    >>> observation(model._replace(levels=()), jnp.ones((5, 2, 0))).prior.shape
    (5, 1, 1)
    """
    _, causes, outputs = _sizes(model)
    wanted = model.order, outputs[0] if outputs else 0
    if sensed.shape[-2:] != wanted:
        raise ValueError(f"sensed must be [..., {wanted[0]}, {wanted[1]}], got {sensed.shape}")
    shape = *sensed.shape[:-2], model.cause_order, causes[-1]
    prior = jnp.zeros(shape, sensed.dtype) if prior is None else prior
    if prior.shape != shape:
        raise ValueError(f"prior must be {shape}, got {prior.shape}")
    return Observation(sensed, prior)
