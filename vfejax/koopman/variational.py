"""VAMP-2, a score for learning observables, which is least for constant ones."""

import jax.numpy as jnp
from jax.typing import ArrayLike

from vfejax.numerics import as_floating, cholesky, identity_like, matmul_tn, transpose
from vfejax.numerics import triangular_solve as solve
from vfejax.types import Array

__all__ = ["vamp2"]


def vamp2(now: Array, following: Array, ridge: ArrayLike = 1e-6) -> Array:
    """How much of the variance of what follows is a linear function of what is now, in the units of
    each::

        |C_00^(-1/2) C_01 C_11^(-1/2)|_F^2

    with the covariances of centred observables, and ``ridge I`` added to C_00 and C_11. It is the
    sum of the squares of the d canonical correlations.

    What cannot collapse. Means are taken off, so that a constant observable, whose eigenvalue 1 is
    of no interest, scores 0, the least there is. Whitening makes two equal observables score as
    one. Learning maximises it: descend ``-vamp2``.

    Args:
        now: ``[m, d]``.
        following: ``[m, d]``, the observables of the states that follow.
        ridge: positive, in units of the variance of an observable. Below it an observable counts
            as noise, so that it can be no way to a high score.

    Returns:
        A number from 0 to d, largest where the observables span those d functions, other than the
        constant, that the system keeps best.

    Raises:
        ValueError: for shapes that do not fit, or fewer than two samples.

    Source: Wu and Noe, Variational approach for learning Markov processes from time series data
        (2020), equation 19.

    >>> x = jnp.array([[1.0], [-1.0], [1.0], [-1.0]])
    >>> vamp2(x, -x).round(4).item(), vamp2(jnp.ones((4, 1)), x).item()
    (1.0, 0.0)
    """
    now, following = as_floating(now, "now"), as_floating(following, "following")
    if now.ndim != 2 or now.shape != following.shape or len(now) < 2:
        raise ValueError(
            "now and following must be samples [m, d] with m at least 2, got shapes "
            f"{now.shape} and {following.shape}"
        )
    now = now - jnp.mean(now, axis=0, keepdims=True)
    following = following - jnp.mean(following, axis=0, keepdims=True)
    num = now.shape[0]
    floor = jnp.asarray(ridge, now.dtype) * identity_like(matmul_tn(now, now))
    first = cholesky(matmul_tn(now, now) / num + floor)
    second = cholesky(matmul_tn(following, following) / num + floor)
    whitened = solve(second, transpose(solve(first, matmul_tn(now, following) / num)))
    return jnp.sum(whitened**2)
