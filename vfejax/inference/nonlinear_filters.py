"""Extended and unscented Kalman filters, and the extended smoother, of nonlinear Gaussian state
spaces in discrete time.

    x_0 ~ N(m, P),   x_{t+1} = f(x_t, u_t) + w_t,  w ~ N(0, Q),   y_t = h(x_t, u_t) + v_t,  v ~ N(0,
    R)

Noise is white: independent from step to step. For linear f and h all three are the exact Kalman
filter and smoother, and P and Q may be singular.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.inference._semidefinite import semidefinite, solve
from vfejax.inference.chains.square_root import semidefinite_root
from vfejax.numerics import (
    as_floating,
    cast_like,
    cholesky,
    log_det_cholesky,
    matmul,
    matmul_nt,
    matvec,
    symmetrize,
    transpose,
    triangular_inverse,
)
from vfejax.types import Array

__all__ = [
    "FilterResult",
    "NonlinearGaussian",
    "SmootherResult",
    "extended_kalman_filter",
    "extended_kalman_smoother",
    "unscented_kalman_filter",
]


class NonlinearGaussian(NamedTuple):
    """A state space with white Gaussian noise.

    Attributes:
        initial_mean: m ``[n]``, of the state at the first observation.
        initial_cov: P ``[n, n]``; it may be singular, as Q may.
        transition_fn: f, ``(state [n], control [u]) -> [n]``.
        transition_cov: Q ``[n, n]``.
        emission_fn: h, ``(state [n], control [u]) -> [o]``.
        emission_cov: R ``[o, o]``.
    """

    initial_mean: Array
    initial_cov: Array
    transition_fn: Callable[[Array, Array], Array]
    transition_cov: Array
    emission_fn: Callable[[Array, Array], Array]
    emission_cov: Array


class FilterResult(NamedTuple):
    """Beliefs about the state given the observations so far.

    Attributes:
        mean, cov: after the observation, ``[t, n]`` and ``[t, n, n]``.
        predicted_mean, predicted_cov: before it.
        log_evidence: of all observations, in nats; an approximation for nonlinear models.
    """

    mean: Array
    cov: Array
    predicted_mean: Array
    predicted_cov: Array
    log_evidence: Array


class SmootherResult(NamedTuple):
    """Beliefs given all observations: ``mean [t, n]``, ``cov [t, n, n]``, and the log evidence."""

    mean: Array
    cov: Array
    log_evidence: Array


class _Joint(NamedTuple):
    """A Gaussian pushed through a function: moments of the image, and its covariance with x."""

    mean: Array
    cov: Array
    cross: Array


_PushFn = Callable[[Callable[[Array], Array], Array, Array], _Joint]


def _linearized(function: Callable[[Array], Array], mean: Array, cov: Array) -> _Joint:
    jacobian = jax.jacfwd(function)(mean)
    cross = matmul_nt(cov, jacobian)
    return _Joint(function(mean), matmul(jacobian, cross), cross)


def _unscented(spread: Array | float) -> _PushFn:
    """Means over 2 n + 1 points at the mean and ``sqrt(n + spread)`` standard deviations off."""

    def push(function: Callable[[Array], Array], mean: Array, cov: Array) -> _Joint:
        num = mean.shape[0]
        if not isinstance(spread, jax.core.Tracer) and not num + spread > 0:
            raise ValueError(f"spread must be above {-num}, got {spread}")
        steps = cast_like((num + spread) ** 0.5, mean) * transpose(semidefinite_root(cov))
        steps = jnp.concatenate([jnp.zeros_like(steps[:1]), steps, -steps])
        weights = [spread / (num + spread)] + [0.5 / (num + spread)] * (2 * num)
        weight = jnp.asarray(weights, mean.dtype)[:, None]
        images = jax.vmap(function)(mean[None, :] + steps)
        center = jnp.sum(weight * images, axis=0)
        deviations = images - center[None, :]
        weighted = weight * deviations
        spread_of_images = matmul(transpose(deviations), weighted)
        return _Joint(center, spread_of_images, matmul(transpose(steps), weighted))

    return push


def _solve(factor: Array, right: Array) -> Array:
    inverse = triangular_inverse(factor)
    return matmul(transpose(inverse), matmul(inverse, right))


def _update(
    model: NonlinearGaussian, push: _PushFn, mean: Array, cov: Array, seen: Array, control: Array
) -> tuple[Array, Array, Array]:
    """Conditional moments and the log density of the observation."""
    image = push(lambda x: model.emission_fn(x, control), mean, cov)
    factor = cholesky(symmetrize(image.cov + model.emission_cov))
    gain = transpose(_solve(factor, transpose(image.cross)))
    error = seen - image.mean
    white = matvec(triangular_inverse(factor), error)
    constant = seen.shape[0] * jnp.log(2 * jnp.pi).astype(white.dtype)
    log_density = -0.5 * (jnp.sum(white**2) + log_det_cholesky(factor) + constant)
    # K S K^T as a square keeps the covariance symmetric.
    half = matmul(gain, factor)
    return mean + matvec(gain, error), symmetrize(cov - matmul_nt(half, half)), log_density


def _checked(
    model: NonlinearGaussian, observations: Array, controls: Array | None
) -> tuple[NonlinearGaussian, Array, Array]:
    observations = as_floating(observations, "observations")
    if observations.ndim != 2:
        raise ValueError(f"observations must be [t, o], got shape {observations.shape}")
    dtype = observations.dtype
    names = ("initial_mean", "initial_cov", "transition_cov", "emission_cov")
    fields = {name: as_floating(getattr(model, name), name).astype(dtype) for name in names}
    num, outputs = fields["initial_mean"].shape[0], observations.shape[1]
    wanted = {"initial_cov": num, "transition_cov": num, "emission_cov": outputs}
    for name, size in wanted.items():
        if fields[name].shape != (size, size):
            raise ValueError(f"{name} must be [{size}, {size}], got {fields[name].shape}")
    # NaN where a covariance has a negative eigenvalue.
    sound = {name: semidefinite(fields[name][..., None])[..., 0] for name in wanted}
    model = model._replace(
        initial_mean=fields["initial_mean"],
        initial_cov=sound["initial_cov"],
        transition_cov=sound["transition_cov"],
        emission_cov=sound["emission_cov"],
    )
    if controls is None:
        controls = jnp.zeros((observations.shape[0], 0), dtype)
    if controls.ndim != 2 or controls.shape[0] != observations.shape[0]:
        raise ValueError(
            f"controls must be [{observations.shape[0]}, u], got shape {controls.shape}"
        )
    return model, observations, controls.astype(dtype)


def _filter(
    model: NonlinearGaussian, observations: Array, controls: Array | None, push: _PushFn
) -> FilterResult:
    model, observations, controls = _checked(model, observations, controls)

    def step(carry: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[tuple, FilterResult]:
        predicted_mean, predicted_cov = carry
        seen, control = now
        mean, cov, log_density = _update(model, push, *carry, seen, control)
        image = push(lambda x: model.transition_fn(x, control), mean, cov)
        carry = image.mean, symmetrize(image.cov + model.transition_cov)
        return carry, FilterResult(mean, cov, predicted_mean, predicted_cov, log_density)

    start = model.initial_mean, model.initial_cov
    _, rows = jax.lax.scan(step, start, (observations, controls))
    return rows._replace(log_evidence=jnp.sum(rows.log_evidence))


def extended_kalman_filter(
    model: NonlinearGaussian, observations: Array, controls: Array | None = None
) -> FilterResult:
    """Kalman filter of the model linearised at the current mean.

    Args:
        model: the state space.
        observations: ``[t, o]``.
        controls: ``[t, u]``, known inputs; entry t enters the observation t and the transition from
            t on.

    Returns:
        Beliefs after every observation.

    Raises:
        ValueError: when a shape does not fit, naming the argument.

    Source: Jazwinski, Stochastic Processes and Filtering Theory (1970), section 8.3.

    >>> walk = NonlinearGaussian(jnp.zeros(1), jnp.eye(1), lambda x, u: x, jnp.zeros((1, 1)),
    ...     lambda x, u: x, jnp.eye(1))
    >>> print(extended_kalman_filter(walk, jnp.ones((2, 1))).mean[:, 0].round(4))
    [0.5    0.6667]
    """
    return _filter(model, observations, controls, _linearized)


def unscented_kalman_filter(
    model: NonlinearGaussian,
    observations: Array,
    controls: Array | None = None,
    *,
    spread: Array | float = 1.0,
) -> FilterResult:
    """Kalman filter with moments from 2 n + 1 points instead of a linearisation.

    Args:
        model: the state space.
        observations: ``[t, o]``.
        controls: ``[t, u]``, as in :func:`extended_kalman_filter`.
        spread: kappa > -n: points lie ``sqrt(n + kappa)`` standard deviations off. Below 0 a
            covariance may lose its definiteness, which gives NaN.

    Returns:
        Beliefs after every observation.

    Raises:
        ValueError: when a shape does not fit, or the spread is not above -n, naming the argument.

    Source: Julier and Uhlmann, Proc. IEEE 92 (2004) 401, equations (12) to (15).

    >>> walk = NonlinearGaussian(jnp.zeros(1), jnp.eye(1), lambda x, u: x, jnp.zeros((1, 1)),
    ...     lambda x, u: x, jnp.eye(1))
    >>> print(unscented_kalman_filter(walk, jnp.ones((2, 1))).mean[:, 0].round(4))
    [0.5    0.6667]
    """
    return _filter(model, observations, controls, _unscented(spread))


def extended_kalman_smoother(
    model: NonlinearGaussian, observations: Array, controls: Array | None = None
) -> SmootherResult:
    """Rauch, Tung and Striebel's smoother after :func:`extended_kalman_filter`.

    Args:
        model: the state space.
        observations: ``[t, o]``.
        controls: ``[t, u]``, as in :func:`extended_kalman_filter`.

    Returns:
        Beliefs given all observations.

    Raises:
        ValueError: when a shape does not fit, naming the argument.

    Source: Sarkka, Bayesian Filtering and Smoothing (2013), section 9.1.

    >>> walk = NonlinearGaussian(jnp.zeros(1), jnp.eye(1), lambda x, u: x, 1e-6 * jnp.eye(1),
    ...     lambda x, u: x, jnp.eye(1))
    >>> smoothed = extended_kalman_smoother(walk, jnp.ones((2, 1)))
    >>> [round(x, 3) for x in smoothed.mean[:, 0].tolist()]
    [0.667, 0.667]
    """
    result = extended_kalman_filter(model, observations, controls)
    model, observations, controls = _checked(model, observations, controls)

    def step(carry: tuple[Array, Array], now: tuple) -> tuple[tuple, tuple]:
        mean, cov, control, next_predicted, next_cov = now
        image = _linearized(lambda x: model.transition_fn(x, control), mean, cov)
        # Directions of no variance, if there are any, have no covariance with the state either.
        gain = transpose(solve(next_cov[..., None], transpose(image.cross)[..., None])[..., 0])
        change = matmul_nt(matmul(gain, carry[1] - next_cov), gain)
        smoothed = mean + matvec(gain, carry[0] - next_predicted), symmetrize(cov + change)
        return smoothed, smoothed

    last = result.mean[-1], result.cov[-1]
    before = (result.mean[:-1], result.cov[:-1], controls[:-1])
    after = (result.predicted_mean[1:], result.predicted_cov[1:])
    _, (mean, cov) = jax.lax.scan(step, last, (*before, *after), reverse=True)
    mean = jnp.concatenate([mean, last[0][None]])
    return SmootherResult(mean, jnp.concatenate([cov, last[1][None]]), result.log_evidence)
