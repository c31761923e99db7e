"""Parameters of linear Gaussian chains from observations, by expectation maximisation.

A step is ``maximize(model, expect(model, observations))``, in closed form. Expected statistics are
sums over time, so those of several series add up, and the log evidence of all of them never falls.

What has a time axis is known and stays; what has none is learned. The matrices beside a covariance
that changes have no closed form: they must be known too, or be learned by gradients
(:mod:`vfejax.inference.chains.coordinates`).

Source: Shumway and Stoffer (1982). Missing entries are integrated out, given the
others: their part of R is the conditional one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.inference._chain import Passes, checked, emission_offsets
from vfejax.inference.chains.linear_gaussian import LinearGaussian, kalman_smoother
from vfejax.inference.chains.parallel import PLATFORM
from vfejax.numerics import (
    cholesky,
    matmul,
    matmul_nt,
    symmetrize,
    transpose,
    triangular_inverse,
)
from vfejax.types import Array

__all__ = [
    "GaussianStatistics",
    "expect",
    "maximize",
]


class GaussianStatistics(NamedTuple):
    """Expected sums of a linear Gaussian chain; those of several series add up leaf by leaf.

    With ``z = (x, u, 1)``, ``x'`` the next state and ``y`` the observation, both less what is known
    of them: ``past`` sums ``z z^T`` over all moves, ``moved`` sums ``x' z^T``, ``future`` sums ``x'
    x'^T``; ``states`` sums ``z z^T`` over all times, ``seen`` sums ``y z^T``, ``outputs`` sums ``y
    y^T``. ``first`` and ``first_square`` are the moments of the first state, ``num_series``,
    ``num_moves`` and ``num_outputs`` count.
    """

    first: Array
    first_square: Array
    past: Array
    moved: Array
    future: Array
    states: Array
    seen: Array
    outputs: Array
    num_series: Array
    num_moves: Array
    num_outputs: Array
    log_evidence: Array


def _solve(matrix: Array, right: Array) -> Array:
    """``right matrix^-1`` for a symmetric positive definite matrix."""
    inverse = triangular_inverse(cholesky(matrix))
    return matmul(matmul_nt(right, inverse), inverse)


class _Equation(NamedTuple):
    """One of the two equations of a model: ``output = matrix x + control u + offset + noise``."""

    matrix: Array
    control: Array | None
    offset: Array | None
    cov: Array

    def known(self, num_inputs: int) -> Array | None:
        """The parts that change with time as a matrix of z, ``[t, rows, p]``; None without any."""
        parts: list[tuple[Array, slice]] = []
        if jnp.ndim(self.matrix) == 3:
            parts.append((self.matrix, slice(self.matrix.shape[-1])))
        if self.offset is not None and jnp.ndim(self.offset) == 2:
            parts.append((self.offset[..., None], slice(num_inputs - 1, num_inputs)))
        if not parts:
            return None
        first = parts[0][0]
        whole = jnp.zeros((*first.shape[:2], num_inputs), first.dtype)
        for part, place in parts:
            whole = whole.at[..., place].set(part)
        return whole

    def learned(self, num_inputs: int) -> np.ndarray:
        """Places in z of the parts that do not change."""
        n = jnp.shape(self.matrix)[-1]
        places = np.full(num_inputs, self.control is not None)
        places[:n] = jnp.ndim(self.matrix) == 2
        places[-1] = self.offset is not None and jnp.ndim(self.offset) == 1
        return np.flatnonzero(places)


def _equations(model: LinearGaussian) -> tuple[_Equation, _Equation]:
    m = model
    return (
        _Equation(m.transition, m.transition_control, m.transition_offset, m.transition_cov),
        _Equation(m.emission, m.emission_control, m.emission_offset, m.emission_cov),
    )


def _check_learnable(model: LinearGaussian) -> None:
    for name, equation in zip(("transition", "emission"), _equations(model), strict=True):
        if jnp.ndim(equation.cov) == 3:
            ranks = {"": (equation.matrix, 3), "_control": (equation.control, 3)}
            ranks["_offset"] = (equation.offset, 2)
            for suffix, (part, rank) in ranks.items():
                if part is not None and jnp.ndim(part) < rank:
                    raise ValueError(
                        f"{name}_cov has a time axis, so {name}{suffix} is not learned in closed "
                        "form: give it a time axis too (a control as an offset), or learn by "
                        "gradients"
                    )


def _moments(mean: Array, square: Array, controls: Array | None) -> Array:
    """Second moments of ``(x, u, 1)``, ``[t, p, p]``, from ``mean [t, n]`` and ``square``."""
    rest = jnp.ones((mean.shape[0], 1), mean.dtype)
    if controls is not None:
        rest = jnp.concatenate([controls, rest], axis=1)
    cross = mean[:, :, None] * rest[:, None, :]
    top = jnp.concatenate([square, cross], axis=2)
    bottom = jnp.concatenate([transpose(cross), rest[:, :, None] * rest[:, None, :]], axis=2)
    return jnp.concatenate([top, bottom], axis=1)


def _unexplained(
    known: Array | None, square: Array, cross: Array, outputs: Array
) -> tuple[Array, Array]:
    """Sums of ``v z^T`` and ``v v^T`` for ``v = output - known z``, from moments at every time."""
    if known is not None:
        part, lead = matmul(known, square), matmul_nt(known, cross)
        outputs = outputs - lead - transpose(lead) + matmul_nt(part, known)
        cross = cross - part
    return jnp.sum(cross, axis=0), jnp.sum(outputs, axis=0)


def _completion(cov: Array, mask: Array) -> tuple[Array, Array]:
    """``W`` and ``V`` with ``y = W y + (1 - W) C x + N(0, V)`` given the observed entries of y."""
    o = cov.shape[-1]
    both = mask[:, None] & mask[None]
    eye = jnp.eye(o, dtype=cov.dtype)
    weights = _solve(jnp.where(both, cov, eye), jnp.where(mask[None], cov, 0.0))
    kept = eye - weights
    return weights, matmul(matmul(kept, cov), transpose(kept))


def expect(
    model: LinearGaussian,
    observations: Array,
    mask: Array | None = None,
    controls: Array | None = None,
    *,
    passes: Passes = PLATFORM,
) -> GaussianStatistics:
    """Expected statistics of one series under the posterior.

    Args:
        model: what has a time axis is known.
        observations: ``[t, o]``, t >= 2.
        mask: booleans ``[t, o]``, True where an entry was observed.
        controls: ``[t, u]``, for a model with control matrices.
        passes: the algorithm of the smoother.

    Returns:
        The sums, and the log evidence of this model.

    Raises:
        ValueError: when an argument does not fit, or a covariance changes with time and what stands
            beside it is to be learned.

    >>> one = jnp.eye(1)
    >>> model = LinearGaussian(jnp.zeros(1), one, one, one, one, one)
    >>> float(expect(model, jnp.zeros((3, 1))).num_moves)
    2.0
    """
    model, y, mask, u = checked(model, observations, mask, controls)
    _check_learnable(model)
    smoothed = kalman_smoother(model, y, mask, u, passes=passes)
    mean, second = smoothed.mean, smoothed.cov + smoothed.mean[:, :, None] * smoothed.mean[:, None]
    square = _moments(mean, second, u)
    n, p = mean.shape[1], square.shape[-1]
    # z without x is known.
    beside = mean[1:, :, None] * square[:-1, -1:, n:]
    moved = smoothed.cross_cov + mean[1:, :, None] * mean[:-1, None]
    moved = jnp.concatenate([moved, beside], axis=2)
    transition, emission = _equations(model)
    moved, future = _unexplained(transition.known(p), square[:-1], moved, second[1:])
    seen, outputs = _observed(model, y, mask, u, square)
    seen, outputs = _unexplained(emission.known(p), square, seen, outputs)
    t, count = y.shape[0], jnp.asarray(1.0, y.dtype)
    return GaussianStatistics(
        first=mean[0],
        first_square=second[0],
        past=jnp.sum(square[:-1], axis=0),
        moved=moved,
        future=future,
        states=jnp.sum(square, axis=0),
        seen=seen,
        outputs=outputs,
        num_series=count,
        num_moves=count * (t - 1),
        num_outputs=count * t,
        log_evidence=smoothed.log_evidence,
    )


def _observed(
    model: LinearGaussian, y: Array, mask: Array | None, u: Array | None, square: Array
) -> tuple[Array, Array]:
    """Expected ``y z^T`` and ``y y^T`` at every time, missing entries given the observed ones."""
    if mask is None:
        return y[:, :, None] * square[:, -1:, :], y[:, :, None] * y[:, None, :]
    t, n, p = y.shape[0], model.initial_mean.shape[0], square.shape[-1]
    # The offset carries the controls, which are known.
    column = emission_offsets(model, y, u)[..., None]
    emission = jnp.broadcast_to(model.emission, (t, y.shape[1], n))
    emission = jnp.concatenate([emission, jnp.zeros((t, y.shape[1], p - n - 1), y.dtype)], axis=2)
    emission = jnp.concatenate([emission, column], axis=2)
    cov = jnp.broadcast_to(model.emission_cov, (t, *model.emission_cov.shape[-2:]))

    def one(y: Array, mask: Array, square: Array, emission: Array, cov: Array) -> tuple:
        weights, spread = _completion(cov, mask)
        known = matmul(weights, jnp.where(mask, y, 0.0)[:, None])
        rest = emission - matmul(weights, emission)
        z = square[:, -1:]
        seen = matmul_nt(known, z) + matmul(rest, square)
        cross = matmul_nt(known, matmul(rest, z))
        outputs = matmul_nt(known, known) + cross + transpose(cross)
        return seen, outputs + matmul_nt(matmul(rest, square), rest) + spread

    return jax.vmap(one)(y, mask, square, emission, cov)


def _regression(
    equation: _Equation, inputs: Array, cross: Array, outputs: Array, count: Array
) -> _Equation:
    """The equation with every part learned that does not change with time."""
    if jnp.ndim(equation.cov) == 3:
        return equation
    n, p = jnp.shape(equation.matrix)[-1], inputs.shape[0]
    places = equation.learned(p)
    whole = jnp.zeros_like(cross)
    if len(places):
        weights = _solve(inputs[places][:, places], cross[:, places])
        outputs = outputs - matmul_nt(weights, cross[:, places])
        whole = whole.at[:, places].set(weights)
    return _Equation(
        equation.matrix if jnp.ndim(equation.matrix) == 3 else whole[:, :n],
        None if equation.control is None else whole[:, n : p - 1],
        whole[:, -1] if p - 1 in places else equation.offset,
        symmetrize(outputs) / count,
    )


def maximize(model: LinearGaussian, statistics: GaussianStatistics) -> LinearGaussian:
    """The model under which these statistics are most probable, in closed form: every array of it
    that does not change with time.

    Offsets and control matrices are learned where the model has them. ``maximize(...)._replace(
    emission=...)`` would hold an array fixed only approximately: the covariance beside it is that
    of the new one. An array with a time axis is held fixed exactly.

    Args:
        model: says what there is to learn.
        statistics: of :func:`expect`, of one series or summed over several.

    Returns:
        The new model.

    >>> one = jnp.eye(1)
    >>> model = LinearGaussian(jnp.zeros(1), one, one, one, one, one)
    >>> model = maximize(model, expect(model, jnp.array([[1.0], [2.0], [1.5]])))
    >>> model.transition.shape
    (1, 1)
    """
    s = statistics
    first = s.first / s.num_series
    spread = s.first_square / s.num_series - first[:, None] * first[None]
    transition, emission = _equations(model)
    a = _regression(transition, s.past, s.moved, s.future, s.num_moves)
    c = _regression(emission, s.states, s.seen, s.outputs, s.num_outputs)
    return LinearGaussian(
        first,
        symmetrize(spread),
        *(a.matrix, a.cov),
        *(c.matrix, c.cov),
        *(a.offset, c.offset),
        *(a.control, c.control),
    )
