"""Linear Gaussian chains: the Kalman filter, the smoother, and predictions, exactly.

``x_0 ~ N(m, P)``, ``x_{i+1} = A x_i + B u_i + a + N(0, Q)``, ``y_i = C x_i + D u_i + c + N(0, R)``.

Every array but the first two may change with time, observations may lack entries, and Q and P may
be singular. Nothing is added to any covariance. R must be positive definite.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.inference._chain import Passes, checked, emission_offsets, prepare
from vfejax.inference.chains.parallel import PLATFORM
from vfejax.numerics import as_floating, matmul, matmul_nt, matvec, symmetrize
from vfejax.types import Array

__all__ = [
    "Filtered",
    "LinearGaussian",
    "Predicted",
    "Smoothed",
    "check_model",
    "kalman_filter",
    "kalman_smoother",
    "predict",
]


class LinearGaussian(NamedTuple):
    """A linear Gaussian state space model.

    Attributes:
        initial_mean: mean of the state at the first observation, before it is seen, ``[n]``.
        initial_cov: its covariance, ``[n, n]``, positive semidefinite.
        transition: A, ``[n, n]``, or ``[t - 1, n, n]`` where entry i leads from i to i + 1.
        transition_cov: Q, the same shapes, positive semidefinite.
        emission: C, ``[o, n]`` or ``[t, o, n]``.
        emission_cov: R, ``[o, o]`` or ``[t, o, o]``, positive definite.
        transition_offset: a, ``[n]`` or ``[t - 1, n]``; None for 0.
        emission_offset: c, ``[o]`` or ``[t, o]``; None for 0.
        transition_control: B, ``[n, u]``; None without controls.
        emission_control: D, ``[o, u]``; None where controls do not enter observations.

    >>> model = LinearGaussian(*(jnp.ones(1), jnp.eye(1)), *[jnp.eye(1)] * 4)
    """

    initial_mean: Array
    initial_cov: Array
    transition: Array
    transition_cov: Array
    emission: Array
    emission_cov: Array
    transition_offset: Array | None = None
    emission_offset: Array | None = None
    transition_control: Array | None = None
    emission_control: Array | None = None


class Filtered(NamedTuple):
    """What is known of each state from the observations up to it.

    Attributes:
        mean: ``[t, n]``.
        cov: ``[t, n, n]``.
        log_evidence: log density of all observations, in nats.
        predicted_mean: of each state before its observation, ``[t, n]``.
        predicted_cov: ``[t, n, n]``.
        step_log_evidence: log density of each observation given those before it, ``[t]``, in nats;
            0 where all its entries are missing.
    """

    mean: Array
    cov: Array
    log_evidence: Array
    predicted_mean: Array
    predicted_cov: Array
    step_log_evidence: Array


class Smoothed(NamedTuple):
    """What is known of each state from all observations.

    Attributes:
        mean: ``[t, n]``.
        cov: ``[t, n, n]``.
        log_evidence: log density of all observations, in nats.
        cross_cov: ``Cov(x_{i+1}, x_i)``, ``[t - 1, n, n]``.
        filtered: the filter's result.
    """

    mean: Array
    cov: Array
    log_evidence: Array
    cross_cov: Array
    filtered: Filtered


class Predicted(NamedTuple):
    """States and observations after the last one seen.

    Attributes:
        mean: of the states, ``[steps, n]``.
        cov: ``[steps, n, n]``.
        observation_mean: ``[steps, o]``.
        observation_cov: ``[steps, o, o]``, with the noise of an observation.
    """

    mean: Array
    cov: Array
    observation_mean: Array
    observation_cov: Array


def _filtered(parts: tuple[Array, ...]) -> Filtered:
    predicted_mean, predicted_cov, mean, cov, steps = parts
    return Filtered(mean, cov, jnp.sum(steps), predicted_mean, predicted_cov, steps)


def kalman_filter(
    model: LinearGaussian,
    observations: Array,
    mask: Array | None = None,
    controls: Array | None = None,
    *,
    passes: Passes = PLATFORM,
) -> Filtered:
    """The posterior of each state given the observations up to it, and the log evidence.

    The entries of an observation are whitened and taken in one after the other, by Joseph's form:
    no matrix of the state's size is inverted. O(t (n^3 + o n^2)).

    Args:
        model: matrices that change with time fit the number of observations.
        observations: ``[t, o]``, t >= 1.
        mask: booleans ``[t, o]``, True where an entry was observed; what stands elsewhere is
            ignored, NaN too. None where all were.
        controls: u, ``[t, u]``, for a model with control matrices.
        passes: the algorithm. The default runs blocks of the chain side by side on a CPU, and
            associative scans elsewhere.

    Returns:
        The moments, in the widest dtype of the arguments. NaN where R is not positive definite or
        another covariance not semidefinite: :func:`check_model` says which.

    Raises:
        ValueError: naming the argument whose shape or dtype does not fit.

    Source: Sarkka and Svensson, Bayesian Filtering and Smoothing (2023), section 6.3, where all
        entries are taken in at once.

    >>> one = jnp.eye(1)
    >>> model = LinearGaussian(jnp.zeros(1), one, one, one, one, one)
    >>> [round(float(x), 3) for x in kalman_filter(model, jnp.array([[2.0], [0.0]])).mean[:, 0]]
    [1.0, 0.4]
    """
    model, y, mask, controls = checked(model, observations, mask, controls)
    return _filtered(passes.filter(prepare(model, y, mask, controls)))


def kalman_smoother(
    model: LinearGaussian,
    observations: Array,
    mask: Array | None = None,
    controls: Array | None = None,
    *,
    passes: Passes = PLATFORM,
) -> Smoothed:
    """The posterior of each state, and of neighbouring pairs, given all observations.

    With the gain ``G_i = P_i A^T P_{i+1|i}^-``, state i given the next one and the past is ``N(m_i
    + G_i (x_{i+1} - m_{i+1|i}), (1 - G_i A) P_i (1 - G_i A)^T + G_i Q G_i^T)``, a sum of
    positive matrices. O(t n^3).

    Args:
        model, observations, mask, controls, passes: as :func:`kalman_filter` takes them.

    Returns:
        The moments, the cross covariances that learning needs, and the filter's result.

    Raises:
        ValueError: naming the argument whose shape or dtype does not fit.

    Source: Rauch, Tung and Striebel (1965), in the form above in place of ``P_i + G (P_s - P_p)
        G^T``, which subtracts.

    >>> one = jnp.eye(1)
    >>> model = LinearGaussian(jnp.zeros(1), one, one, one, one, one)
    >>> print(kalman_smoother(model, jnp.array([[2.0], [0.0]])).mean[:, 0].round(3))
    [0.8 0.4]
    """
    model, y, mask, controls = checked(model, observations, mask, controls)
    *filtered, mean, cov, cross = passes.smooth(prepare(model, y, mask, controls))
    result = _filtered(tuple(filtered))
    return Smoothed(mean, cov, result.log_evidence, cross, result)


def predict(
    model: LinearGaussian,
    mean: Array,
    cov: Array,
    num_steps: int,
    controls: Array | None = None,
) -> Predicted:
    """States and observations of the steps after the last one, for a model that does not change.

    Args:
        model: without time axes.
        mean: of the last state, ``[n]``: ``filtered.mean[-1]``.
        cov: its covariance, ``[n, n]``.
        num_steps: how many steps ahead.
        controls: ``[num_steps + 1, u]``, from the last observed step on, for a model with control
            matrices: the first one moves the last state.

    Returns:
        The moments of each step.

    Raises:
        ValueError: when an argument does not fit or the model changes with time.

    >>> one = jnp.eye(1)
    >>> model = LinearGaussian(jnp.zeros(1), one, 0.5 * one, one, one, one)
    >>> predict(model, jnp.ones(1), one, 2).mean.tolist()
    [[0.5], [0.25]]
    """
    if num_steps < 0:
        raise ValueError(f"num_steps must not be negative, got {num_steps}")
    varying = [
        name
        for name, value in model._asdict().items()
        if value is not None and jnp.ndim(value) > (1 if name.endswith(("mean", "offset")) else 2)
    ]
    if varying:
        raise ValueError(
            f"predict needs a model that does not change; {varying[0]} has a time axis"
        )
    o = jnp.shape(model.emission)[0]
    like = jnp.zeros((num_steps + 1, o), as_floating(mean, "mean").dtype)
    start = model._replace(initial_mean=mean, initial_cov=cov)
    start, y, _, u = checked(start, like, None, controls)
    chain = prepare(start, y, None, u)
    drift = jnp.broadcast_to(chain.drift, (chain.drift.shape[0], num_steps + 1))

    noise = chain.noise[..., 0]

    def step(belief: tuple[Array, Array], push: Array) -> tuple[tuple, tuple]:
        mean, cov = belief
        mean = matvec(start.transition, mean) + push
        cov = matmul_nt(matmul(start.transition, cov), start.transition) + noise
        return (mean, symmetrize(cov)), (mean, symmetrize(cov))

    first = chain.initial_mean, chain.initial_cov
    _, (means, covs) = jax.lax.scan(step, first, drift[:, :-1].T)
    seen = matmul_nt(means, start.emission) + emission_offsets(start, y, u)[1:]
    spread = jax.vmap(lambda p: matmul_nt(matmul(start.emission, p), start.emission))(covs)
    own = jnp.broadcast_to(start.emission_cov, spread.shape)
    return Predicted(means, covs, seen, spread + own)


def check_model(model: LinearGaussian) -> None:
    """Refuse a model whose values cannot be right, on concrete arrays.

    Every covariance must be finite, symmetric, and positive semidefinite, and that of an
    observation positive definite; everything else must be finite. Rounding is allowed for: ``100 n
    eps`` relative to the largest entry.

    Raises:
        ValueError: naming the field, the time where there is one, and the entry or the eigenvalue.

    >>> one = jnp.eye(1)
    >>> check_model(LinearGaussian(jnp.zeros(1), -one, one, one, one, one))
    Traceback (most recent call last):
    ...
    ValueError: initial_cov must be positive semidefinite; its smallest eigenvalue is -1
    """
    for name, value in model._asdict().items():
        if value is None:
            continue
        array = np.asarray(value)
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            raise ValueError(f"{name} has {array[tuple(bad[0])]} at {bad[0].tolist()}")
        if name in ("initial_cov", "transition_cov", "emission_cov"):
            _check_covariance(name, array, definite=name == "emission_cov")


def _check_covariance(name: str, array: np.ndarray, definite: bool) -> None:
    double = array.astype(np.float64)
    stack = double.reshape(-1, *double.shape[-2:])
    scale = 100 * stack.shape[-1] * np.finfo(array.dtype if array.dtype.kind == "f" else float).eps
    slack = scale * np.max(np.abs(stack), axis=(1, 2), initial=0.0)
    skew = np.abs(stack - np.swapaxes(stack, 1, 2))
    lowest = np.linalg.eigvalsh(0.5 * (stack + np.swapaxes(stack, 1, 2))).min(
        axis=1, initial=np.inf
    )
    for i, (limit, values, low) in enumerate(zip(slack, skew, lowest, strict=True)):
        place = f"{name}[{i}]" if array.ndim == 3 else name
        if values.max(initial=0.0) > limit:
            row, column = np.unravel_index(np.argmax(values), values.shape)
            raise ValueError(
                f"{place} must be symmetric; its entries [{row}, {column}] and [{column}, {row}] "
                f"are {stack[i, row, column]:.6g} and {stack[i, column, row]:.6g}"
            )
        if low <= 0.0 if definite else low < -limit:
            kind = "definite" if definite else "semidefinite"
            raise ValueError(
                f"{place} must be positive {kind}; its smallest eigenvalue is {low:.6g}"
            )
