"""Natural gradient: steepest descent in the metric of the space the position lives in."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from vfejax.types import PyTree

__all__ = ["natural_gradient"]


def natural_gradient(
    direction_fn: Callable[[PyTree, PyTree], PyTree], *, max_norm: float | None = None
) -> optax.GradientTransformation:
    """Replace a gradient g by ``v = G(x)^{-1} g``, as an optax transformation.

    Chain it before a learning rate: ``optax.chain(natural_gradient(metric),
    scale_by_tree(rates))``. On Gaussian coordinates every step stays a Gaussian
    (:mod:`vfejax.beliefs.coordinates`), so covariances are positive definite by construction.

    Args:
        direction_fn: ``(position, gradient) -> direction``.
        max_norm: trust region: shorten v so that its length in the metric, ``sqrt(g . v)``, is at
            most this. Without it a belief much wider than its target overshoots, until the
            exponential of its log scale underflows.

    Returns:
        A stateless transformation; its ``update`` needs the position as ``params``.

    Source: Amari, Neural Computation 10 (1998) 251, eq. (3.3).
    """

    def update(gradient: PyTree, position: PyTree) -> PyTree:
        direction = direction_fn(position, gradient)
        if max_norm is None:
            return direction
        products = jax.tree.map(lambda g, v: jnp.sum(g * v), gradient, direction)
        length = jnp.sqrt(jax.tree.reduce(jnp.add, products))
        shrink = jnp.minimum(1.0, max_norm / jnp.where(length > 0, length, 1.0))
        return jax.tree.map(lambda v: v * shrink.astype(v.dtype), direction)

    return optax.stateless(update)
