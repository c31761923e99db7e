"""The learning phase of a layer: beliefs that are nudged towards what was observed.

The descent takes natural-gradient steps (Fisher metric of the beliefs, curvature of F) and starts
at q0, where a force is left because the free phase ends after a few steps. That force is
subtracted. The curvature of O is not known to it, so a large nudge may overshoot: no belief goes
farther from q0 than a ball of Fisher length ``FARTHEST``, which small nudges never reach.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vfejax.models.pure_fep.gaussians import IrrepGaussian, Irreps
from vfejax.models.pure_fep.parameters import Anatomy
from vfejax.types import Array

__all__ = ["FARTHEST", "natural_direction", "nudged"]

FARTHEST = 8.0
"""Farthest that an agent's belief in one head goes in the learning phase, as a Fisher length at the
belief of the free phase."""


def natural_direction(slope: IrrepGaussian, at: IrrepGaussian, kind: Irreps) -> IrrepGaussian:
    """Inverse Fisher information of a Gaussian times a slope: variance for means, ``2 / k_r`` for
    log variances.

    Args:
        slope: of any function of beliefs.
        at: the beliefs.
        kind: the irreps of a head.

    >>> from vfejax.models.pure_fep.gaussians import irreps
    >>> slope = IrrepGaussian(jnp.ones((1, 3)), jnp.ones((1, 1)))
    >>> at = IrrepGaussian(jnp.zeros((1, 3)), jnp.log(jnp.full((1, 1), 2.0)))
    >>> natural_direction(slope, at, irreps((1,))).mean.round(3).tolist()
    [[2.0, 2.0, 2.0]]
    """
    mean = slope.mean * kind.to_channels(jnp.exp(at.log_variance))
    return IrrepGaussian(mean, 2.0 * slope.log_variance / kind.sizes(mean.dtype))


def _within(belief: IrrepGaussian, free: IrrepGaussian, kind: Irreps) -> IrrepGaussian:
    """The belief, or where the straight way to it from ``free`` leaves the ball ``FARTHEST``."""
    change = jax.tree.map(jnp.subtract, belief, free)
    # In units of the radius: the square of a float32 overflows at 1e19.
    mean, logs = jax.tree.map(lambda x: x / FARTHEST, change)
    square = kind.to_irreps(jnp.square(mean)) * jnp.exp(-free.log_variance)
    square = square + 0.5 * kind.sizes(logs.dtype) * jnp.square(logs)
    square = jnp.sum(square, axis=-1, keepdims=True)
    share = jax.lax.rsqrt(jnp.maximum(square, 1.0))
    return jax.tree.map(
        lambda near, far, way: jnp.where(square > 1.0, near + share * way, far),
        free,
        belief,
        change,
    )


def nudged(
    free: IrrepGaussian,
    force_fn: Callable[[IrrepGaussian], IrrepGaussian],
    observe_fn: Callable[[IrrepGaussian], IrrepGaussian],
    curvature: Array,
    nudge: float,
    parts: Anatomy,
) -> IrrepGaussian:
    """Beliefs that descend ``F + e O`` from the free phase, with what was left of F's force there
    subtracted, within the ball ``FARTHEST``.

    Args:
        free: q0, ``[b, n, h, c]``.
        force_fn: slope of F in the beliefs.
        observe_fn: slope of O in the beliefs.
        curvature: of F in the metric of the beliefs, ``[b | 1, n, h, 1]``.
        nudge: e; a negative one pushes away from what was observed.
        parts: the model.
    """
    kind, steps = parts.rules.kind, parts.config.nudge_steps

    def moved(belief: IrrepGaussian, force: IrrepGaussian | None) -> IrrepGaussian:
        slope = jax.tree.map(lambda x: nudge * x, observe_fn(belief))
        if force is not None:
            slope = jax.tree.map(jnp.add, slope, force)
        direction = natural_direction(slope, free, kind)
        there = jax.tree.map(lambda x, d: x - d / curvature, belief, direction)
        return _within(there, free, kind)

    first = moved(free, None)  # where what is left is subtracted from itself
    if steps == 1:
        return first
    rest = force_fn(free)

    def step(belief: IrrepGaussian, none: None) -> tuple[IrrepGaussian, None]:
        return moved(belief, jax.tree.map(jnp.subtract, force_fn(belief), rest)), none

    return jax.lax.scan(step, first, length=steps - 1)[0]
