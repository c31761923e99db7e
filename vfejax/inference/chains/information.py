"""Linear Gaussian chains in information form: sum-product with natural parameters.

A message is ``exp(h^T x - x^T J x / 2)``. Observations add to it, so a start that knows nothing, J
= 0, is allowed, and forward and backward messages multiply to the posterior. Q and R must be
positive definite. With ``M = J + A^T Q^-1 A`` a step forwards is ``J' = Q^-1 - Q^-1 A M^-1 A^T
Q^-1``, and a step backwards is ``J' = A^T (Q^-1 - Q^-1 (J + Q^-1)^-1 Q^-1) A``.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.inference._chain import checked, prepare
from vfejax.inference.chains.linear_gaussian import LinearGaussian
from vfejax.numerics import (
    as_floating,
    cholesky,
    matmul,
    matmul_nt,
    matmul_tn,
    matvec,
    symmetrize,
    transpose,
    triangular_inverse,
)
from vfejax.types import Array

__all__ = ["InformationMessages", "information_messages", "information_moments"]


class InformationMessages(NamedTuple):
    """Natural parameters of each state: information vector and precision.

    Attributes:
        forward_vector: given the observations up to each state, ``[t, n]``.
        forward_precision: ``[t, n, n]``; singular until enough has been observed.
        backward_vector: the likelihood of the observations after it, ``[t, n]``.
        backward_precision: ``[t, n, n]``.
    """

    forward_vector: Array
    forward_precision: Array
    backward_vector: Array
    backward_precision: Array


def _inverse(matrix: Array) -> Array:
    root = triangular_inverse(cholesky(matrix))
    return matmul_tn(root, root)


def _forward(message: tuple[Array, Array], a: Array, b: Array, p: Array) -> tuple[Array, Array]:
    """Through ``x' = a x + b + N(0, p^-1)``."""
    vector, precision = message
    back = matmul(p, a)
    spread = _inverse(precision + matmul_tn(a, back))
    gain = matmul(back, spread)
    moved = matvec(gain, vector - matvec(transpose(back), b)) + matvec(p, b)
    return moved, symmetrize(p - matmul_nt(gain, back))


def _backward(message: tuple[Array, Array], a: Array, b: Array, p: Array) -> tuple[Array, Array]:
    vector, precision = message
    kept = matmul(p, _inverse(precision + p))
    after = vector - matvec(precision, b)
    pulled = symmetrize(p - matmul(kept, p))
    return matvec(transpose(a), matvec(kept, after)), matmul_tn(a, matmul(pulled, a))


def information_messages(
    model: LinearGaussian,
    observations: Array,
    mask: Array | None = None,
    controls: Array | None = None,
    *,
    initial_precision: Array,
) -> InformationMessages:
    """Forward and backward messages of a chain whose start is given by its precision. O(t n^3).

    Args:
        model: its ``initial_cov`` is not read, its covariances are positive definite.
        observations, mask, controls: as
            :func:`vfejax.inference.chains.linear_gaussian.kalman_filter` takes them.
        initial_precision: of the first state before its observation, ``[n, n]``; zeros where
            nothing is known.

    Returns:
        The messages, in natural parameters.

    Raises:
        ValueError: naming the argument whose shape or dtype does not fit.

    Source: Kailath, Sayed and Hassibi, Linear Estimation (2000), section 9.5; Bishop (2006),
        section 13.3.

    >>> one = jnp.eye(1)
    >>> model = LinearGaussian(jnp.zeros(1), one, one, one, one, one)
    >>> found = information_messages(model, jnp.ones((2, 1)), initial_precision=jnp.zeros((1, 1)))
    >>> found.forward_precision[:, 0, 0].tolist()
    [1.0, 1.5]
    """
    model, y, mask, controls = checked(model, observations, mask, controls)
    start = as_floating(initial_precision, "initial_precision").astype(y.dtype)
    if start.shape != model.initial_cov.shape:
        raise ValueError(
            f"initial_precision must be {list(model.initial_cov.shape)}, got {list(start.shape)}"
        )
    t, n = y.shape[0], start.shape[0]
    chain = prepare(model, y, mask, controls)
    a, q, b, c = (
        jnp.moveaxis(jnp.broadcast_to(x, (*x.shape[:-1], t)), -1, 0)
        for x in (chain.transition, chain.noise, chain.drift, chain.emission)
    )
    steps = a[:-1], b[:-1], _inverse(q[:-1])
    seen = jnp.einsum("ton,ot->tn", c, chain.values), jax.vmap(matmul_tn)(c, c)

    def onward(message: tuple, xs: tuple) -> tuple[tuple, tuple]:
        now = tuple(x + y for x, y in zip(message, xs[0], strict=True))
        return _forward(now, *xs[1]), now

    def back(message: tuple, xs: tuple) -> tuple[tuple, tuple]:
        later = tuple(x + y for x, y in zip(message, xs[0], strict=True))
        now = _backward(later, *xs[1])
        return now, now

    first = matvec(start, model.initial_mean), start
    head, tail = tuple(x[:-1] for x in seen), tuple(x[1:] for x in seen)
    last, forward = jax.lax.scan(onward, first, (head, steps))
    zero = jnp.zeros((n,), y.dtype), jnp.zeros((n, n), y.dtype)
    _, backward = jax.lax.scan(back, zero, (tail, steps), reverse=True)
    ends = tuple(x + y[-1] for x, y in zip(last, seen, strict=True))
    joined = [jnp.concatenate([x, end[None]]) for x, end in zip(forward, ends, strict=True)]
    joined += [jnp.concatenate([x, end[None]]) for x, end in zip(backward, zero, strict=True)]
    return InformationMessages(*joined)


def information_moments(messages: InformationMessages) -> tuple[Array, Array]:
    """Means ``[t, n]`` and covariances ``[t, n, n]`` given all observations: the products of both
    messages. NaN where the observations do not determine a state.

    >>> one = jnp.eye(1)
    >>> model = LinearGaussian(jnp.zeros(1), one, one, one, one, one)
    >>> found = information_messages(model, jnp.ones((2, 1)), initial_precision=jnp.zeros((1, 1)))
    >>> print(information_moments(found)[0][:, 0].round(3))
    [1. 1.]
    """
    cov = _inverse(messages.forward_precision + messages.backward_precision)
    return matvec(cov, messages.forward_vector + messages.backward_vector), cov
