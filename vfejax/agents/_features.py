"""Rows whose products are the divergences of all pairs of agents, centred and scaled."""

import jax
import jax.numpy as jnp

from vfejax import lanes
from vfejax.agents.packing import packed_gram
from vfejax.beliefs.gaussian import Gaussian
from vfejax.types import Array

__all__ = ["feature_rows"]


def _centre_and_scale(mean: Array, factor: Array, present: Array | None) -> tuple[Array, Array]:
    """Common mean ``[k, 1]`` and root of the mean variances ``[k, 1]`` of the agents present, with
    means ``[k, n]`` and covariances ``factor^T factor``.

    Any centre and any scale give the same divergences, so no gradient flows through the choice.
    """
    variance = jnp.sum(factor * factor, axis=0)
    # A broken agent, or one that is nowhere and may be anywhere, is left out, not multiplied by 0:
    # the divergences of the others stay theirs.
    here = jnp.all(jnp.isfinite(mean) & jnp.isfinite(variance), axis=0, keepdims=True)
    if present is not None:
        here = here & (present > 0)[None]
    share = here.astype(mean.dtype)
    share = share / jnp.maximum(jnp.sum(share), 1.0)
    mean, variance = (jnp.where(here, x, 0.0) for x in (mean, variance))
    centre = jnp.sum(share * mean, axis=-1, keepdims=True)
    spread = jnp.sum(share * variance, axis=-1, keepdims=True)
    centre, spread = jax.lax.stop_gradient((centre, spread))
    return centre, jnp.sqrt(jnp.where(spread == 0, 1.0, spread))


def feature_rows(
    gaussian: Gaussian, outward: Array, inward: Array, log_det: Array, present: Array | None
) -> tuple[Array, Array]:
    """Rows of receivers and senders, both ``[n, k (k + 1) / 2 + k + 2]``, as
    :func:`vfejax.agents.pairwise.pair_features` returns them.

    Args:
        gaussian: mean ``[n, k]``, chol ``[n, k, k]``.
        outward: frames ``[n, k, k]``.
        inward: their inverses.
        log_det: log determinants of the frames, ``[n]``.
        present: supports ``[n]``, or None.

    >>> agents = Gaussian(jnp.eye(3), jnp.tile(jnp.eye(3), (3, 1, 1)))
    >>> receiver, sender = feature_rows(agents, agents.chol, agents.chol, jnp.zeros(3), None)
    >>> round(float(receiver[0] @ sender[1]), 4)
    1.0
    """
    k = gaussian.mean.shape[-1]
    # From here on agents are the last axis (see vfejax.lanes), up to the rows that are returned.
    mean = lanes.stack_last(gaussian.mean, core=1)
    chol = lanes.tril(lanes.stack_last(gaussian.chol, core=2))
    outward, inward = (lanes.stack_last(x, core=2) for x in (outward, inward))
    log_det = 2.0 * (jnp.sum(jnp.log(lanes.diagonal(chol)), axis=0) - log_det)[None]
    columns = jnp.concatenate([chol, mean[:, None]], axis=1)
    moments = lanes.matmul_tn(columns, jnp.swapaxes(inward, 0, 1))
    factor, mean = moments[:k], moments[k]
    whitener = lanes.triangular_solve(chol, outward)

    centre, scale = _centre_and_scale(mean, factor, present)
    mean, scale = (mean - centre) / scale, scale[None]
    whitener = whitener * scale
    one = jnp.ones_like(mean[:1])
    affine = jnp.concatenate([mean, -one])[None]
    spread = jnp.concatenate([factor / scale, jnp.zeros_like(mean)[:, None]], axis=1)
    second_moment = packed_gram(jnp.concatenate([spread, affine]), 2.0)
    whitened = jnp.concatenate([whitener, lanes.matmul(whitener, mean[:, None])], axis=1)
    precision = packed_gram(whitened, 1.0)

    receiver = [second_moment, -log_det - k]
    sender = [precision[:-1], precision[-1:] + log_det, one]
    return 0.5 * jnp.concatenate(receiver).T, jnp.concatenate(sender).T
