"""Linear Gaussian chains by associative scans, for accelerators, and the choice by platform.

A stretch of the chain is an element (A, b, C, eta, J): given its first state x and its
observations, the last state is ``N(A x + b, C)``, and the observations have the likelihood ``exp(
eta^T x - x^T J x / 2)``. Two neighbours combine to one element, in any order of brackets, so that
all prefixes take O(log t) steps. They cost a few times the work, and on a CPU such a program
compiles for half a minute: :data:`PLATFORM` takes blocks there.

Source: Sarkka and Garcia-Fernandez, Temporal parallelization of Bayesian smoothers (2021), sections
IV.A and IV.B. Their ``(I + C J)^-1`` is formed from ``(C^-1 + J)^-1``, which stays symmetric.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax import lanes
from vfejax.inference._chain import Chain, Passes
from vfejax.inference._semidefinite import condition, solve
from vfejax.inference.chains.blocks import blocks, num_blocks_for
from vfejax.types import Array

__all__ = ["ASSOCIATIVE", "PLATFORM"]


class _Element(NamedTuple):
    """A stretch of the chain; vectors are columns, the stack of stretches is the first axis."""

    push: Array  # A
    mean: Array  # b
    cov: Array  # C
    vector: Array  # eta
    precision: Array  # J


class _Updated(NamedTuple):
    """A belief that took in an observation; the stack is last.

    Attributes:
        mean, cov: of the state.
        kept: ``I - K C`` with the gain K.
        errors: of the observation, whitened.
        log_det: of the covariance of the observation.
    """

    mean: Array
    cov: Array
    kept: Array
    errors: Array
    log_det: Array


def _stack_first(x: Array, num_steps: int) -> Array:
    """``[*item, t or 1]`` to ``[t, *item]``."""
    return jnp.moveaxis(jnp.broadcast_to(x, (*x.shape[:-1], num_steps)), -1, 0)


def _transposed(x: Array) -> Array:
    return jnp.swapaxes(x, 0, 1)


def _combine(first: _Element, second: _Element) -> _Element:
    first, second = (_Element(*(jnp.moveaxis(x, 0, -1) for x in e)) for e in (first, second))
    after = condition(first.cov, second.precision)
    eye = jnp.broadcast_to(jnp.eye(after.shape[0], dtype=after.dtype)[..., None], after.shape)
    kept = eye - lanes.matmul(after, second.precision)
    mean = lanes.matmul(kept, first.mean) + lanes.matmul(after, second.vector)
    push = lanes.matmul(second.push, kept)
    cov = lanes.matmul_nt(lanes.matmul(second.push, after), second.push) + second.cov
    back = lanes.matmul_tn(first.push, _transposed(kept))
    innovation = second.vector - lanes.matmul(second.precision, first.mean)
    precision = lanes.matmul(lanes.matmul(back, second.precision), first.push)
    combined = _Element(
        push=lanes.matmul(push, first.push),
        mean=lanes.matmul(second.push, mean) + second.mean,
        cov=0.5 * (cov + _transposed(cov)),
        vector=lanes.matmul(back, innovation) + first.vector,
        precision=0.5 * (precision + _transposed(precision)) + first.precision,
    )
    return _Element(*(jnp.moveaxis(x, -1, 0) for x in combined))


def _update(mean: Array, cov: Array, emission: Array, values: Array) -> _Updated:
    """Condition on all entries at once, the covariance in Joseph's form."""
    projected = lanes.matmul(emission, cov)
    eye = jnp.eye(values.shape[0], dtype=values.dtype)[..., None]
    spread = lanes.matmul_nt(projected, emission) + jnp.broadcast_to(
        eye, (*values.shape[:1], *values.shape[:1], values.shape[-1])
    )
    chol = lanes.cholesky(spread)
    error = values - lanes.matmul(emission, mean)
    gain = _transposed(lanes.triangular_solve(chol, projected))
    gain = _transposed(lanes.matmul_tn(lanes.triangular_inverse(chol), _transposed(gain)))
    eye = jnp.broadcast_to(jnp.eye(mean.shape[0], dtype=mean.dtype)[..., None], cov.shape)
    kept = eye - lanes.matmul(gain, emission)
    after = lanes.matmul_nt(lanes.matmul(kept, cov), kept) + lanes.matmul_nt(gain, gain)
    log_det = 2.0 * jnp.sum(jnp.log(jnp.diagonal(chol)), axis=-1)
    return _Updated(
        mean=mean + lanes.matmul(gain, error),
        cov=after,
        kept=kept,
        errors=lanes.triangular_solve(chol, error),
        log_det=log_det,
    )


def _elements(chain: Chain, emission: Array, values: Array) -> _Element:
    """One element for each observation: the transition before it, and the observation."""
    n, t = chain.initial_mean.shape[0], values.shape[-1]
    push, noise, drift = (
        jnp.moveaxis(_stack_first(x, t)[:-1], 0, -1)
        for x in (chain.transition, chain.noise, chain.drift)
    )
    first = jnp.zeros((n, n, 1), push.dtype)
    push = jnp.concatenate([first, push], axis=-1)
    noise = jnp.concatenate([chain.initial_cov[..., None], noise], axis=-1)
    drift = jnp.concatenate([chain.initial_mean[:, None], drift], axis=-1)[:, None]
    after = _update(drift, noise, emission, values)
    # The likelihood of the first state of the stretch: its observation's covariance is C Q C^T + 1.
    seen = lanes.matmul(emission, push)
    eye = jnp.broadcast_to(
        jnp.eye(values.shape[0], dtype=push.dtype)[..., None], (values.shape[0], values.shape[0], t)
    )
    spread = lanes.matmul_nt(lanes.matmul(emission, noise), emission) + eye
    chol = lanes.cholesky(spread)
    rows = lanes.triangular_solve(chol, seen)
    error = lanes.triangular_solve(chol, values - lanes.matmul(emission, drift))
    found = _Element(
        push=lanes.matmul(after.kept, push),
        mean=after.mean,
        cov=after.cov,
        vector=lanes.matmul_tn(rows, error),
        precision=lanes.matmul_tn(rows, rows),
    )
    return _Element(*(jnp.moveaxis(x, -1, 0) for x in found))


def _filter(chain: Chain) -> tuple[Array, ...]:
    t = chain.values.shape[-1]
    emission = jnp.broadcast_to(chain.emission, (*chain.emission.shape[:-1], t))
    values = chain.values[:, None]
    found = jax.lax.associative_scan(_combine, _elements(chain, emission, values))
    later, later_cov = (jnp.moveaxis(x, 0, -1) for x in (found.mean, found.cov))
    push, noise, drift = (
        jnp.broadcast_to(x, (*x.shape[:-1], t))[..., :-1]
        for x in (chain.transition, chain.noise, chain.drift)
    )
    mean = lanes.matmul(push, later[..., :-1]) + drift[:, None]
    cov = lanes.matmul_nt(lanes.matmul(push, later_cov[..., :-1]), push) + noise
    mean = jnp.concatenate([chain.initial_mean[:, None, None], mean], axis=-1)
    cov = jnp.concatenate([chain.initial_cov[..., None], cov], axis=-1)
    # Once more from the predictions: the same moments, and the evidence of each step.
    after = _update(mean, cov, emission, values)
    evidence = chain.constant - 0.5 * (jnp.sum(after.errors[:, 0] ** 2, axis=0) + after.log_det)
    mean, cov, later, later_cov = (
        jnp.moveaxis(x, -1, 0) for x in (mean, cov, after.mean, after.cov)
    )
    return mean[..., 0], cov, later[..., 0], later_cov, evidence


def _smooth(chain: Chain) -> tuple[Array, ...]:
    t = chain.values.shape[-1]
    filtered = _filter(chain)
    mean, cov, later, later_cov = (jnp.moveaxis(x, 0, -1) for x in filtered[:4])
    push, noise = (
        jnp.broadcast_to(x, (*x.shape[:-1], t))[..., :-1] for x in (chain.transition, chain.noise)
    )
    gain = _transposed(solve(cov[..., 1:], lanes.matmul(push, later_cov[..., :-1])))
    eye = jnp.broadcast_to(jnp.eye(gain.shape[0], dtype=gain.dtype)[..., None], gain.shape)
    kept = eye - lanes.matmul(gain, push)
    rest = lanes.matmul_nt(lanes.matmul(kept, later_cov[..., :-1]), kept)
    rest = rest + lanes.matmul_nt(lanes.matmul(gain, noise), gain)
    offset = later[:, None, :-1] - lanes.matmul(gain, mean[:, None, 1:])
    last = jnp.zeros_like(later_cov[..., :1])
    elements = (
        jnp.concatenate([gain, last], axis=-1),
        jnp.concatenate([offset, later[:, None, -1:]], axis=-1),
        jnp.concatenate([rest, later_cov[..., -1:]], axis=-1),
    )

    def combine(late: tuple[Array, ...], early: tuple[Array, ...]) -> tuple[Array, ...]:
        (g1, m1, c1), (g0, m0, c0) = (
            tuple(jnp.moveaxis(x, 0, -1) for x in e) for e in (late, early)
        )
        cov = lanes.matmul_nt(lanes.matmul(g0, c1), g0) + c0
        combined = lanes.matmul(g0, g1), lanes.matmul(g0, m1) + m0, 0.5 * (cov + _transposed(cov))
        return tuple(jnp.moveaxis(x, -1, 0) for x in combined)

    first = tuple(jnp.moveaxis(x, -1, 0) for x in elements)
    _, means, covs = jax.lax.associative_scan(combine, first, reverse=True)
    cross = lanes.matmul_nt(jnp.moveaxis(covs, 0, -1)[..., 1:], gain)
    return (*filtered, means[..., 0], covs, jnp.moveaxis(cross, -1, 0))


ASSOCIATIVE = Passes(_filter, _smooth)
"""All prefixes by an associative scan."""


def _for_cpu(chain: Chain) -> Passes:
    return blocks(num_blocks_for(chain.values.shape[-1], chain.initial_mean.shape[0]))


PLATFORM = Passes(
    lambda chain: jax.lax.platform_dependent(
        chain, cpu=lambda x: _for_cpu(x).filter(x), default=ASSOCIATIVE.filter
    ),
    lambda chain: jax.lax.platform_dependent(
        chain, cpu=lambda x: _for_cpu(x).smooth(x), default=ASSOCIATIVE.smooth
    ),
)
"""Blocks side by side on a CPU, associative scans elsewhere."""
