"""Skeleton of an integrator: gradient flow by the explicit midpoint rule."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.types import Array, EnergyFn, Integrator, PyTree


class MidpointState(NamedTuple):
    """What the next step needs: the position and the gradient of the energy there."""

    position: PyTree
    gradient: PyTree


class MidpointInfo(NamedTuple):
    """What a reader wants: the energy at the new position, in nats."""

    energy: Array


def midpoint(energy_fn: EnergyFn, step_size: float) -> Integrator:
    """Second-order scheme for ``dx/dt = -grad F``: ``y = x - dt/2 grad F(x)``, then
    ``x <- x - dt grad F(y)``.

    Args:
        energy_fn: F, position to a scalar in nats.
        step_size: dt.

    Returns:
        ``init(position) -> MidpointState`` and ``step(state, key=None) -> (MidpointState,
        MidpointInfo)``; two gradients per step.

    >>> flow = midpoint(lambda x: 0.5 * x * x, step_size=1.0)
    >>> state, info = flow.step(flow.init(jnp.float32(8.0)))
    >>> float(state.position), float(info.energy)
    (4.0, 8.0)
    """
    value_and_grad = jax.value_and_grad(energy_fn)

    def descend(position: PyTree, gradient: PyTree, length: float) -> PyTree:
        # The cast keeps float32 positions float32 when 64-bit numbers are enabled.
        return jax.tree.map(lambda x, g: x - jnp.asarray(length, x.dtype) * g, position, gradient)

    def init(position: PyTree) -> MidpointState:
        return MidpointState(position, value_and_grad(position)[1])

    def step(state: MidpointState, key: Array | None = None) -> tuple[MidpointState, MidpointInfo]:
        del key  # a deterministic integrator ignores it, a stochastic one refuses None
        halfway = descend(state.position, state.gradient, 0.5 * step_size)
        position = descend(state.position, jax.grad(energy_fn)(halfway), step_size)
        energy, gradient = value_and_grad(position)
        return MidpointState(position, gradient), MidpointInfo(energy)

    return Integrator(init, step)
