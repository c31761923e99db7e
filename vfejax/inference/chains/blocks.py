"""The Kalman filter and smoother, one step after the other, in one block or in many side by side.

A step is far too little work for a processor: reading its instructions takes longer than its
numbers. So a long chain is cut into blocks, and one step runs for all blocks at once, along the
last axis. Three passes make that exact:

1. each block is filtered as if its first state were known; that state's influence is carried along
   as further columns of the mean, and the observations' information about it is summed;
2. over the blocks, one after the other, the belief about their first states follows;
3. each block is filtered from its belief.

Two and a half times the work of one block, but n / blocks steps instead of n. The smoother works
the same way, backwards. With one block only the last pass is left: the textbook's recursion.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfejax import lanes
from vfejax.inference._chain import Chain, Passes
from vfejax.inference._semidefinite import condition, solve
from vfejax.types import Array

__all__ = ["SEQUENTIAL", "blocks", "num_blocks_for"]

# A chain shorter than this stays one block: three passes compile for 4 s where one takes 1 s.
_MIN_STEPS = 1000
# Larger matrices fill the processor's registers by themselves.
_MAX_SIZE = 16


class _Steps(NamedTuple):
    """Arrays of a chain in the layout of the scan: ``[l, *item, blocks]``, or ``[*item, blocks]``
    where nothing changes.
    """

    transition: Any
    noise: Any
    drift: Any
    emission: Any
    values: Any
    real: Any  # [l, blocks]: False at the padding behind the last observation


class _Moments(NamedTuple):
    """Of every state, before and after its own observation: means ``[l, n, 1, blocks]`` and
    covariances ``[l, n, n, blocks]``.
    """

    predicted_mean: Array
    predicted_cov: Array
    mean: Array
    cov: Array


class _Backward(NamedTuple):
    """``x_i = gain x_{i+1} + mean + N(0, cov)`` given all up to i, at every step of the scan."""

    gain: Array
    mean: Array
    cov: Array


_RANKS = (3, 3, 2, 3, 2, 1)


def _to_scan(x: Array, blocks: int, length: int) -> Array:
    """``[*item, t]`` to ``[l, *item, blocks]``, padded with zeros; ``[*item, 1]`` to ``[*item,
    blocks]``.
    """
    if x.shape[-1] == 1 and blocks * length > 1:
        return jnp.broadcast_to(x, (*x.shape[:-1], blocks))
    spare = blocks * length - x.shape[-1]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, spare)])
    return jnp.moveaxis(x.reshape(*x.shape[:-1], blocks, length), -1, 0)


def _from_scan(x: Array, num_steps: int) -> Array:
    """``[l, *item, blocks]`` to ``[t, *item]``."""
    x = jnp.moveaxis(x, -1, 0)
    return x.reshape(-1, *x.shape[2:])[:num_steps]


def _steps(chain: Chain, blocks: int, length: int) -> _Steps:
    t = chain.values.shape[-1]
    values = jnp.pad(chain.values, [(0, 0), (0, blocks * length - t)])
    values = jnp.moveaxis(values.reshape(-1, blocks, length), -1, 0)
    real = (jnp.arange(blocks * length) < t).reshape(blocks, length).T
    transition, noise, drift, emission = (
        _to_scan(x, blocks, length)
        for x in (chain.transition, chain.noise, chain.drift, chain.emission)
    )
    return _Steps(transition, noise, drift, emission, values, real)


def _split(steps: _Steps) -> tuple[_Steps, _Steps]:
    """What changes along the scan, and what does not; None in the places of the others."""
    changes = [x.ndim > rank for x, rank in zip(steps, _RANKS, strict=True)]
    pairs = list(zip(steps, changes, strict=True))
    return (
        _Steps(*(x if change else None for x, change in pairs)),
        _Steps(*(None if change else x for x, change in pairs)),
    )


def _joined(varying: _Steps, constant: _Steps) -> _Steps:
    pairs = zip(varying, constant, strict=True)
    return _Steps(*(c if v is None else v for v, c in pairs))


def _take_in(
    belief: tuple[Array, Array], entry: tuple[Array, Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Condition on one whitened number: Joseph's form, which stays symmetric and positive.

    ``mean [n, q, s]`` and ``value [q, s]`` have further columns for what the mean depends on.
    """
    (mean, cov), (row, value) = belief, entry
    row = row[:, None]
    spread = lanes.matmul(cov, row)
    variance = 1.0 + lanes.matmul_tn(row, spread)
    error = value[None] - lanes.matmul_tn(row, mean)
    gain = spread / variance
    mean = mean + gain * error
    cov = cov - gain * jnp.swapaxes(spread, 0, 1)
    left = gain - lanes.matmul(cov, row)
    cov = cov + left * jnp.swapaxes(gain, 0, 1)
    return (mean, cov), (error[0], variance[0, 0])


def _step(belief: tuple, step: _Steps) -> tuple[tuple, tuple]:
    """One observation, then one transition; a step of padding changes nothing."""
    rest = belief[0].shape[1] - 1
    values = jnp.pad(step.values[:, None], [(0, 0), (0, rest), (0, 0)])
    (mean, cov), (errors, variances) = jax.lax.scan(_take_in, belief, (step.emission, values))
    drift = jnp.pad(step.drift[:, None], [(0, 0), (0, rest), (0, 0)])
    moved = lanes.matmul(step.transition, mean) + drift
    spread = lanes.matmul_nt(lanes.matmul(step.transition, cov), step.transition) + step.noise
    spread = 0.5 * (spread + jnp.swapaxes(spread, 0, 1))
    real = step.real[None, None]
    after = tuple(
        jnp.where(jnp.broadcast_to(real, new.shape), new, old)
        for new, old in zip((moved, spread), belief, strict=True)
    )
    return after, (mean, cov, errors, variances)


def _first_beliefs(chain: Chain, varying: _Steps, constant: _Steps) -> tuple:
    """Passes 1 and 2: mean ``[n, 1, blocks]`` and covariance of the first state of each block."""
    n, blocks = chain.initial_mean.shape[0], varying.values.shape[-1]
    eye = jnp.eye(n, 1 + n, 1, dtype=chain.initial_mean.dtype)
    influence = jnp.broadcast_to(eye[..., None], (n, 1 + n, blocks))
    gram = jnp.zeros((1 + n, 1 + n, blocks), eye.dtype)

    def known_start(carry: tuple, xs: _Steps) -> tuple[tuple, None]:
        mean, cov, gram = carry
        step = _joined(xs, constant)
        (mean, cov), (_, _, errors, variances) = _step((mean, cov), step)
        scaled = errors / variances[:, None]
        new = gram + lanes.matmul_tn(scaled, errors)
        return (mean, cov, jnp.where(jnp.broadcast_to(step.real, new.shape), new, gram)), None

    start = (influence, jnp.zeros((n, n, blocks), eye.dtype), gram)
    (ends, covs, gram), _ = jax.lax.scan(known_start, start, varying)

    def over_blocks(belief: tuple[Array, Array], block: tuple) -> tuple[tuple, tuple]:
        (mean, cov), (end, end_cov, information) = belief, block
        matrix, vector = information[1:, 1:, None], -information[1:, :1, None]
        after = condition(cov, matrix)
        known = mean + lanes.matmul(after, vector - lanes.matmul(matrix, mean))
        push, drift = end[:, 1:, None], end[:, :1, None]
        moved = lanes.matmul(push, known) + drift
        spread = lanes.matmul_nt(lanes.matmul(push, after), push) + end_cov[..., None]
        return (moved, 0.5 * (spread + jnp.swapaxes(spread, 0, 1))), belief

    first = chain.initial_mean[:, None, None], chain.initial_cov[..., None]
    by_block = tuple(jnp.moveaxis(x, -1, 0) for x in (ends, covs, gram))
    _, (means, covs) = jax.lax.scan(over_blocks, first, by_block)
    return tuple(jnp.moveaxis(x[..., 0], 0, -1) for x in (means, covs))


def _filter(chain: Chain, blocks: int) -> tuple[_Steps, _Moments, Array]:
    """The filter in the layout of the scan: steps, moments, and the log evidence ``[l, blocks]``
    without the constant.
    """
    length = -(-chain.values.shape[-1] // blocks)
    steps = _steps(chain, blocks, length)
    varying, constant = _split(steps)
    first: tuple
    if blocks == 1:
        first = chain.initial_mean[:, None, None], chain.initial_cov[..., None]
    else:
        first = _first_beliefs(chain, varying, constant)

    def run(belief: tuple[Array, Array], xs: _Steps) -> tuple[tuple, tuple]:
        after, out = _step(belief, _joined(xs, constant))
        return after, (belief, out)

    _, (predicted, (mean, cov, errors, variances)) = jax.lax.scan(run, first, varying)
    scores = errors[:, :, 0] ** 2 / variances + jnp.log(variances)
    moments = _Moments(predicted[0], predicted[1], mean, cov)
    return steps, moments, -0.5 * jnp.sum(scores, axis=1)


def _outputs(chain: Chain, moments: _Moments, evidence: Array) -> tuple[Array, ...]:
    t = chain.values.shape[-1]
    mean, cov, later, later_cov = (_from_scan(x, t) for x in moments)
    return mean[..., 0], cov, later[..., 0], later_cov, _from_scan(evidence, t) + chain.constant


def _backward(
    step: _Steps, moments: _Moments, following: tuple[Array, Array], last: Array
) -> _Backward:
    """``x_i`` given ``x_{i+1}`` and all up to i; ``following`` is the prediction of ``x_{i+1}``.
    Nothing follows the last one.
    """
    (next_mean, next_cov), mean, cov = following, moments.mean, moments.cov
    stack = jnp.swapaxes(solve(next_cov, lanes.matmul(step.transition, cov)), 0, 1)
    end = jnp.broadcast_to(last, stack.shape)
    gain = jnp.where(end, 0.0, stack)
    eye = jnp.broadcast_to(jnp.eye(gain.shape[0], dtype=gain.dtype)[..., None], gain.shape)
    kept = eye - lanes.matmul(gain, step.transition)
    rest = lanes.matmul_nt(lanes.matmul(kept, cov), kept)
    rest = rest + lanes.matmul_nt(lanes.matmul(gain, step.noise), gain)
    toward = jnp.where(end[:, :1], 0.0, lanes.matmul(gain, next_mean))
    return _Backward(gain, mean - toward, 0.5 * (rest + jnp.swapaxes(rest, 0, 1)))


def _pull(belief: tuple, step: _Backward) -> tuple[tuple, tuple]:
    mean, cov = belief
    offset = jnp.pad(step.mean, [(0, 0), (0, mean.shape[1] - 1), (0, 0)])
    mean = lanes.matmul(step.gain, mean) + offset
    cross = lanes.matmul(step.gain, cov)
    return (mean, lanes.matmul_nt(cross, step.gain) + step.cov), (mean, cov)


def _smooth(chain: Chain, blocks: int) -> tuple[Array, ...]:
    t, n = chain.values.shape[-1], chain.initial_mean.shape[0]
    steps, moments, evidence = _filter(chain, blocks)
    length = evidence.shape[0]
    varying, constant = _split(steps)
    last = (jnp.arange(blocks * length) >= t - 1).reshape(blocks, length).T
    following = _next(moments.predicted_mean), _next(moments.predicted_cov)
    dtype = chain.initial_mean.dtype
    eye = jnp.broadcast_to(jnp.eye(n, 1 + n, 1, dtype=dtype)[..., None], (n, 1 + n, blocks))
    zero = jnp.zeros((n, n, blocks), dtype)

    def compose(carry: tuple, xs: tuple) -> tuple[tuple, _Backward]:
        step, given, ahead, end = xs
        back = _backward(_joined(step, constant), given, ahead, end[None, None])
        return (_pull(carry, back)[0] if blocks > 1 else carry), back

    (push, spread), backward = jax.lax.scan(
        compose, (eye, zero), (varying, moments, following, last), reverse=True
    )

    def over_blocks(belief: tuple, block: tuple) -> tuple[tuple, tuple]:
        push, spread = (x[..., None] for x in block)
        return _pull(belief, _Backward(push[:, 1:], push[:, :1], spread))[0], belief

    after: tuple = (jnp.zeros((n, 1, blocks), dtype), zero)
    if blocks > 1:
        by_block = tuple(jnp.moveaxis(x, -1, 0) for x in (push, spread))
        start = tuple(x[..., :1] for x in after)
        _, after = jax.lax.scan(over_blocks, start, by_block, reverse=True)
        after = tuple(jnp.moveaxis(x[..., 0], 0, -1) for x in after)

    def run(belief: tuple, back: _Backward) -> tuple[tuple, tuple]:
        now, (_, later_cov) = _pull(belief, back)
        return now, (*now, lanes.matmul_nt(later_cov, back.gain))

    _, (mean, cov, cross) = jax.lax.scan(run, after, backward, reverse=True)
    smoothed = (_from_scan(mean, t)[..., 0], _from_scan(cov, t), _from_scan(cross, t)[:-1])
    return (*_outputs(chain, moments, evidence), *smoothed)


def _next(x: Array) -> Array:
    """``[l, *item, b]`` moved one step ahead; the last step of all has zeros."""
    first = jnp.concatenate([x[:1, ..., 1:], jnp.zeros_like(x[:1, ..., :1])], axis=-1)
    return jnp.concatenate([x[1:], first])


def num_blocks_for(num_steps: int, size: int) -> int:
    """How many blocks serve a chain on a CPU: about ``sqrt(t / 2)``, in multiples of 8, so that the
    steps within a block and the steps over blocks take equally long; 1 for short chains and for
    large states.

    >>> num_blocks_for(10_000, 4), num_blocks_for(500, 4), num_blocks_for(10_000, 40)
    (64, 1, 1)
    """
    if num_steps < _MIN_STEPS or size > _MAX_SIZE:
        return 1
    return max(1, int(math.sqrt(num_steps / 2)) // 8) * 8


def blocks(num_blocks: int) -> Passes:
    """The algorithm with a given number of blocks.

    >>> blocks(16).filter.__name__
    'filter_chain'
    """
    if num_blocks < 1:
        raise ValueError(f"num_blocks must be at least 1, got {num_blocks}")

    def filter_chain(chain: Chain) -> tuple[Array, ...]:
        _, moments, evidence = _filter(chain, num_blocks)
        return _outputs(chain, moments, evidence)

    def smooth_chain(chain: Chain) -> tuple[Array, ...]:
        return _smooth(chain, num_blocks)

    return Passes(filter_chain, smooth_chain)


SEQUENTIAL = blocks(1)
"""One step after the other."""
