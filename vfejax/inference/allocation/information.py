"""Mutual information of tables and of Gaussian variables, and the information of single outcomes.

    I(q; c) = sum_qc p(q, c) log p(q, c) / (p(q) p(c))
    i(c)    = KL(p(q | c) || p(q)),           I(q; c) = E_p(c) i(c)

The second is the information about q in one outcome c. It is never negative, and a picture whose
pixels are told apart by c has it pixel by pixel.
"""

import jax.numpy as jnp

from vfejax.beliefs.categorical import kl_divergence, xlogy
from vfejax.numerics import (
    as_floating,
    cholesky,
    common_dtype,
    identity_like,
    log_det_cholesky,
    matmul,
    matmul_nt,
    symmetrize,
    triangular_inverse,
)
from vfejax.types import Array

__all__ = ["gaussian_information", "mutual_information", "specific_information"]


def mutual_information(joint: Array) -> Array:
    """``I(q; c)`` of joint probabilities, in nats.

    Args:
        joint: probabilities ``[..., q, c]`` that sum to 1 over both axes.

    Returns:
        ``[...]``, at least 0 up to rounding.

    Raises:
        ValueError: for fewer than two axes.

    >>> round(float(mutual_information(jnp.eye(2) / 2)), 4)  # log(2)
    0.6931
    """
    joint = _table(joint)
    separate = sum(
        jnp.sum(xlogy(x, x), axis=-1) for x in (jnp.sum(joint, axis=-1), jnp.sum(joint, axis=-2))
    )
    return jnp.sum(xlogy(joint, joint), axis=(-2, -1)) - separate


def specific_information(joint: Array) -> Array:
    """``i(c) = KL(p(q | c) || p(q))``: what each outcome c tells about q, in nats.

    Args:
        joint: probabilities ``[..., q, c]`` that sum to 1 over both axes.

    Returns:
        ``[..., c]``; its mean under p(c) is the mutual information. 0 for an outcome that never
        comes.

    Raises:
        ValueError: for fewer than two axes.

    Source: DeWeese and Meister, How to measure the information gained from one symbol, Network 10
    (1999) 325, where it is the specific surprise.

    >>> [round(float(i), 4) for i in specific_information(jnp.eye(2) / 2)]
    [0.6931, 0.6931]
    """
    joint = _table(joint)
    outcome = jnp.sum(joint, axis=-2, keepdims=True)
    prior = jnp.broadcast_to(jnp.sum(joint, axis=-1, keepdims=True), joint.shape)
    never = outcome == 0
    told = jnp.where(never, prior, joint / jnp.where(never, 1.0, outcome))
    return kl_divergence(jnp.swapaxes(told, -1, -2), jnp.swapaxes(prior, -1, -2))


def gaussian_information(moment: Array, query: Array, noise_cov: Array) -> Array:
    """``I(y; x) = 1/2 log |1 + R^-1 W S W^T|`` for ``y = W x + noise`` and Gaussian x, in nats.

    Args:
        moment: S, the covariance of the contents x, ``[..., d, d]``, such as the second moment of
            the features of a patch about their mean in the background.
        query: W, what is asked of them, ``[m, d]``.
        noise_cov: R, covariance of the noise, ``[m, m]``, positive definite.

    Returns:
        ``[...]``; NaN where the noise is not positive definite.

    Raises:
        ValueError: when the shapes do not fit.

    >>> round(float(gaussian_information(3 * jnp.eye(1), jnp.eye(1), jnp.eye(1))), 4)  # log(4) / 2
    0.6931
    """
    moment, query, noise_cov = (
        as_floating(x, name)
        for x, name in ((moment, "moment"), (query, "query"), (noise_cov, "noise_cov"))
    )
    fits = query.ndim == 2 and moment.ndim >= 2
    fits = fits and moment.shape[-2:] == (query.shape[1],) * 2
    if not fits or noise_cov.shape != (query.shape[0],) * 2:
        raise ValueError(
            "moment, query and noise_cov must have shapes [..., d, d], [m, d] and [m, m], got "
            f"{list(moment.shape)}, {list(query.shape)} and {list(noise_cov.shape)}"
        )
    dtype = common_dtype(moment, query, noise_cov)
    moment, query, noise_cov = (x.astype(dtype) for x in (moment, query, noise_cov))
    asked = matmul(triangular_inverse(cholesky(noise_cov)), query)
    wide = jnp.broadcast_to(asked, (*moment.shape[:-2], *asked.shape))
    heard = symmetrize(matmul_nt(matmul(wide, moment), wide))
    return 0.5 * log_det_cholesky(cholesky(identity_like(heard) + heard))


def _table(joint: Array) -> Array:
    joint = as_floating(joint, "joint")
    if joint.ndim < 2:
        raise ValueError(f"joint must have shape [..., q, c], got {list(joint.shape)}")
    return joint
