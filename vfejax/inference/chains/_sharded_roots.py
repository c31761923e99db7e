"""Square-root filters and smoothers whose time the devices of a mesh share, inside ``shard_map``.

The element of a shard is one step of the same filter: a single observation of the first state, in
the place of all those of the shard, and the transition to the state behind it. Its emission is a
root of their information about the first state, so that no covariance is formed here either.

A belief (m, S) before a shard becomes one behind it with derivatives ``dm' = W (dm + dP g)`` and
``dP' = W dP W^T``, with ``dP = dS S^T + S dS^T``, W the product of the transitions after what each
observation leaves of a change, and g the gradient of the log density of the shard by m.
"""

from typing import Any

import jax
import jax.numpy as jnp

from vfejax.inference.chains._root_steps import (
    BackwardChain,
    Sites,
    filtered_sites,
    in_last_column,
    onward,
    over_sites,
    pull,
    smoothed_links,
)
from vfejax.inference.chains._shards import Way, starts
from vfejax.numerics import (
    matmul,
    matmul_nt,
    matvec,
    transpose,
    triangular_solve,
    triangularize,
)
from vfejax.types import Array

__all__ = ["filter_shard", "smooth_shard"]

Belief = tuple[Array, Array]


def _zeros(like: Array, *shape: int) -> Array:
    """Zeros that may differ from device to device as another array does."""
    return jax.lax.full_like(like, 0, shape=shape)


def _unknown(like: Array, n: int) -> Belief:
    """Columns and root of a state as what it depends on: itself."""
    eye = jnp.eye(n, n + 1, dtype=bool)
    zeros = _zeros(like, n, n + 1)
    return jnp.where(eye, jnp.ones_like(zeros), zeros), zeros[:, :n]


def _element(sites: Sites) -> Sites:
    n = sites.drift.shape[1]

    def step(carry: tuple[Belief, Array], site: Sites) -> tuple[tuple[Belief, Array], None]:
        belief, seen = carry
        belief, (_, _, error, _) = onward(belief, site)
        return (belief, transpose(triangularize(jnp.concatenate([seen, error])))), None

    # Derivatives are those of the sweep and the slope. A root of too low a rank, as those of the
    # first sites are, has none.
    sites = jax.lax.stop_gradient(sites)
    like = sites.values
    start = _unknown(like, n), _zeros(like, n + 1, n + 1)
    ((columns, root), seen), _ = over_sites(step, start, sites)
    return Sites(columns[:, :n], root, columns[:, n], -seen[:n, :n], seen[:n, n])


def _through(element: Sites, belief: Belief) -> Belief:
    mean, root = belief
    (mean, root), _ = onward((mean[:, None], root), element)
    return mean[:, 0], root


def _swept(belief: Belief, sites: Sites) -> Belief:
    mean, root = belief

    @jax.checkpoint
    def step(belief: Belief, site: Sites) -> tuple[Belief, None]:
        return onward(belief, site)[0], None

    (mean, root), _ = over_sites(step, (mean[:, None], root), sites)
    return mean[:, 0], root


def _slope(belief: Belief, sites: Sites, _: Any) -> tuple[Array, Array]:
    """W ``[n, n]`` and g ``[n]`` of a shard."""
    mean, root = belief
    n = mean.shape[0]
    influence, _ = _unknown(mean, n)
    columns = influence + in_last_column(mean, influence)

    def step(carry: tuple[Belief, Array], site: Sites) -> tuple[tuple[Belief, Array], None]:
        belief, gradient = carry
        belief, (_, _, error, _) = onward(belief, site)
        return (belief, gradient - matvec(transpose(error[:, :n]), error[:, n])), None

    start = (columns, root), jnp.zeros_like(mean)
    ((columns, _), gradient), _ = over_sites(step, start, sites)
    return columns[:, :n], gradient


def _push(slope: tuple[Array, Array], before: Belief, behind: Belief, tangent: Belief) -> Belief:
    (influence, gradient), (_, root), (mean_change, root_change) = slope, before, tangent
    half = matmul_nt(root_change, root)
    cov_change = half + transpose(half)
    moved = matmul_nt(matmul(influence, cov_change), influence)
    inner = triangular_solve(behind[1], moved)
    inner = triangular_solve(behind[1], transpose(inner))
    lower = jnp.tril(inner) - 0.5 * inner * jnp.eye(inner.shape[0], dtype=inner.dtype)
    mean = matvec(influence, mean_change + matvec(cov_change, gradient))
    return mean, matmul(behind[1], lower)


def filter_shard(first: Belief, sites: Sites, axis_name: str) -> tuple[Array, ...]:
    """What ``RootPasses.filter`` returns, of a shard.

    Args:
        first: mean and root of the first state of the chain, the same on all devices.
        sites: of this shard.
        axis_name: axis of the mesh along the chain.

    >>> one = jnp.ones((1, 1, 1))
    >>> shard = lambda y: filter_shard(
    ...     (jnp.zeros(1), one[0]), Sites(one, one, jnp.zeros((1, 1)), one, y), "time"
    ... )[0]
    >>> values = jnp.array([[[2.0]], [[0.0]]])  # two shards of one observation
    >>> print(jax.vmap(shard, axis_name="time")(values)[:, 0, 0].round(3))
    [1.  0.4]
    """
    (belief,) = starts((FORWARD,), _element, axis_name, (first,), sites)
    return filtered_sites(belief, sites)


def _composed(chain: BackwardChain) -> BackwardChain:
    """The backward chain of a shard as one link."""

    def step(belief: Belief, link: BackwardChain) -> tuple[Belief, None]:
        mean, root = pull(belief, link)
        return (mean, jax.lax.stop_gradient(root)), None

    n = chain.offset.shape[1]
    # As in _element: the slope reads the gain alone.
    chain = chain._replace(chol=jax.lax.stop_gradient(chain.chol))
    start = _unknown(chain.offset, n)
    (columns, root), _ = jax.lax.scan(step, start, chain, reverse=True)
    return BackwardChain(columns[:, :n], columns[:, n], jax.lax.stop_gradient(root))


def _pulled(link: BackwardChain, belief: Belief) -> Belief:
    mean, root = pull((belief[0][:, None], belief[1]), link)
    return mean[:, 0], root


def _swept_back(belief: Belief, chain: BackwardChain) -> Belief:
    @jax.checkpoint
    def step(belief: Belief, link: BackwardChain) -> tuple[Belief, None]:
        return pull(belief, link), None

    (mean, root), _ = jax.lax.scan(step, (belief[0][:, None], belief[1]), chain, reverse=True)
    return mean[:, 0], root


def smooth_shard(chain: BackwardChain, axis_name: str) -> tuple[Array, ...]:
    """What ``RootPasses.smooth`` returns, of a shard.

    Args:
        chain: of this shard.
        axis_name: axis of the mesh along the chain.

    >>> one = jnp.ones((2, 1, 1, 1))  # two shards of one state
    >>> gains = jnp.array([0.5, 0.0]).reshape(one.shape)
    >>> smooth = jax.vmap(lambda *x: smooth_shard(BackwardChain(*x), "time"), axis_name="time")
    >>> print(smooth(gains, one[..., 0], one)[0][:, 0, 0])
    [1.5 1. ]
    """
    last = _zeros(chain.offset, chain.offset.shape[1]), jnp.zeros_like(chain.chol[-1])
    (belief,) = starts((BACKWARD,), _composed, axis_name, (last,), chain)
    return smoothed_links(chain, belief)


FORWARD = Way(_through, _swept, _slope, _push)
BACKWARD = Way(
    _pulled,
    _swept_back,
    lambda _start, _arrays, link: (link.gain, jnp.zeros_like(link.offset)),
    _push,
    True,
)
