"""Square-root filters and smoothers whose time the devices of a mesh share, inside ``shard_map``.

The element of a shard is one step of the same filter: a single observation of the first state, in
the place of all those of the shard, and the transition to the state behind it. Its emission is a
root of their information about the first state, so that no covariance is formed here either.

A belief (m, S) before a shard becomes one behind it, (m', S'). Its derivatives are ``dm' = W (dm +
dP g)`` and ``dP' = W dP W^T``, with ``dP = dS S^T + S dS^T``. Here g is the gradient of the log
density of the shard by m. W is a product over the sites of the shard: what the observation leaves
of a change, then the transition.
"""

from typing import NamedTuple

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
    identity_like,
    matmul,
    matmul_nt,
    matvec,
    transpose,
    triangular_inverse,
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
    # What is not a number spoils means, and no covariance.
    finite = jnp.all(jnp.isfinite(sites.values))
    sites = sites._replace(values=jnp.where(finite, sites.values, 0.0))
    like = sites.values
    start = _unknown(like, n), _zeros(like, n + 1, n + 1)
    ((columns, root), seen), _ = over_sites(step, start, sites)
    drift, values = (jnp.where(finite, x, jnp.nan) for x in (columns[:, n], seen[:n, n]))
    return Sites(columns[:, :n], root, drift, -seen[:n, :n], values)


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


class _Slope(NamedTuple):
    """What a shard makes of a change of the belief ``(m, S)`` before it.

    Where nothing was known, ``W S`` and ``S^T g`` are small differences of large numbers: they have
    values of their own.
    """

    influence: Array  # W
    through: Array  # W S
    gradient: Array  # g
    whitened: Array  # S^T g


def _slope(belief: Belief, sites: Sites, element: Sites) -> _Slope:
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
    influence = columns[:, :n]
    through, whitened = jax.lax.stop_gradient(_of_element(belief, element))
    return _Slope(
        influence,
        _with_value(matmul(influence, root), through),
        gradient,
        _with_value(matvec(transpose(root), gradient), whitened),
    )


def _of_element(belief: Belief, element: Sites) -> tuple[Array, Array]:
    """``W S`` and ``S^T g`` without subtractions: with A and C of the element and ``M = C S``, they
    are ``A S (1 + M^T M)^{-1}`` and ``(1 + M^T M)^{-1} M^T (y - C m)``.
    """
    mean, root = belief
    seen = matmul(element.emission, root)
    rows = jnp.concatenate([identity_like(seen), seen])
    inverse = triangular_inverse(triangularize(rows))
    through = matmul(matmul_nt(matmul(element.transition, root), inverse), inverse)
    error = matvec(transpose(seen), element.values - matvec(element.emission, mean))
    return through, matvec(transpose(inverse), matvec(inverse, error))


def _with_value(x: Array, value: Array) -> Array:
    """``value``, with the derivatives of x."""
    return value + (x - jax.lax.stop_gradient(x))


def _push(slope: _Slope, before: Belief, behind: Belief, tangent: Belief) -> Belief:
    (mean_change, root_change), change = tangent, matmul(slope.influence, tangent[1])
    half = matmul_nt(change, slope.through)
    inner = triangular_solve(behind[1], half + transpose(half))
    inner = triangular_solve(behind[1], transpose(inner))
    lower = jnp.tril(inner) - 0.5 * inner * jnp.eye(inner.shape[0], dtype=inner.dtype)
    mean = matvec(slope.influence, mean_change) + matvec(change, slope.whitened)
    mean = mean + matvec(slope.through, matvec(transpose(root_change), slope.gradient))
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
    >>> print(jax.jit(jax.vmap(shard, axis_name="time"))(values)[:, 0, 0].round(3))
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


def _slope_back(belief: Belief, _: BackwardChain, link: BackwardChain) -> _Slope:
    none = jnp.zeros_like(link.offset)
    return _Slope(link.gain, matmul(link.gain, belief[1]), none, none)


def smooth_shard(chain: BackwardChain, axis_name: str) -> tuple[Array, ...]:
    """What ``RootPasses.smooth`` returns, of a shard.

    Args:
        chain: of this shard.
        axis_name: axis of the mesh along the chain.

    >>> one = jnp.ones((2, 1, 1, 1))  # two shards of one state
    >>> gains = jnp.array([0.5, 0.0]).reshape(one.shape)
    >>> smooth = jax.vmap(lambda *x: smooth_shard(BackwardChain(*x), "time"), axis_name="time")
    >>> print(jax.jit(smooth)(gains, one[..., 0], one)[0][:, 0, 0])
    [1.5 1. ]
    """
    last = _zeros(chain.offset, chain.offset.shape[1]), jnp.zeros_like(chain.chol[-1])
    (belief,) = starts((BACKWARD,), _composed, axis_name, (last,), chain)
    return smoothed_links(chain, belief)


FORWARD = Way(_through, _swept, _slope, _push)
BACKWARD = Way(
    _pulled,
    _swept_back,
    _slope_back,
    _push,
    True,
)
