"""Natural gradient: steepest descent in the metric of the space the position lives in."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from vfejax.numerics import safe_sqrt, tree_dot, tree_norm
from vfejax.types import Array, PyTree

__all__ = ["natural_gradient"]


def natural_gradient(
    direction_fn: Callable[[PyTree, PyTree], PyTree], *, max_norm: float | None = None
) -> optax.GradientTransformation:
    """Replace a gradient g by ``v = G(x)^{-1} g``, as an optax transformation.

    Chain it before a learning rate: ``optax.chain(natural_gradient(metric),
    scale_by_tree(rates))``. On Gaussian coordinates every step stays a Gaussian
    (:mod:`vfejax.beliefs.coordinates`), so covariances are positive definite by construction.

    Directions of this package: :func:`vfejax.beliefs.coordinates.natural_direction` (Gaussians),
    :func:`vfejax.geometry.groups.natural_direction` and ``Group.natural_direction`` (frames),
    :func:`vfejax.agents.metric.natural_direction` (a population).

    Args:
        direction_fn: ``(position, gradient) -> direction``.
        max_norm: trust region: shorten v so that its length in the metric, ``sqrt(g . v)``, is at
            most this positive number. Without it a belief much wider than its target overshoots,
            until the exponential of its log scale underflows.

    Returns:
        A stateless transformation; its ``update`` needs the position as ``params``.

    Raises:
        ValueError: when ``max_norm`` is not positive.

    Source: Amari, Neural Computation 10 (1998) 251, eq. (3.3).

    >>> double = natural_gradient(lambda position, gradient: 2.0 * gradient, max_norm=1.0)
    >>> direction, _ = double.update(jnp.array([8.0]), double.init(None), jnp.zeros(1))
    >>> round(float(direction[0]), 4)  # sqrt(8 * 16) = 11.3, shortened to length 1
    1.4142
    """

    if max_norm is not None and not max_norm > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm}")

    def update(gradient: PyTree, position: PyTree) -> PyTree:
        direction = direction_fn(position, gradient)
        if max_norm is None:
            return direction
        length = _length(gradient, direction)
        shrink = max_norm / jnp.maximum(length, max_norm)
        return jax.tree.map(lambda v: v * shrink.astype(v.dtype), direction)

    return optax.stateless(update)


def _length(gradient: PyTree, direction: PyTree) -> Array:
    """``sqrt(g . v)``, also where its square is beyond the largest number."""
    norms = [tree_norm(jax.lax.stop_gradient(tree)) for tree in (gradient, direction)]
    norms = [jnp.where(norm == 0, 1.0, norm) for norm in norms]
    units = [
        jax.tree.map(lambda x, norm=norm: x / norm.astype(x.dtype), tree)
        for norm, tree in zip(norms, (gradient, direction), strict=True)
    ]
    return jnp.sqrt(norms[0]) * jnp.sqrt(norms[1]) * safe_sqrt(tree_dot(*units))
