"""Gradient flow of any energy through optax, with one learning rate per leaf."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vfejax.types import Array, EnergyFn, Integrator, PyTree

__all__ = [
    "GradientFlowInfo",
    "GradientFlowState",
    "broadcast_prefix",
    "gradient_flow",
    "scale_by_tree",
]


class GradientFlowState(NamedTuple):
    """Position, the energy's gradient there and the optimiser's own state."""

    position: PyTree
    gradient: PyTree
    optimizer_state: PyTree


class GradientFlowInfo(NamedTuple):
    """Energy at the new position (nats), Euclidean norm of the gradient there, and what the energy
    returned besides.
    """

    energy: Array
    gradient_norm: Array
    aux: Any


def broadcast_prefix(prefix: PyTree, tree: PyTree) -> PyTree:
    """Give every leaf of ``tree`` the value of the leaf of ``prefix`` above it; a scalar serves the
    whole tree.
    """
    return jax.tree.map(lambda value, subtree: jax.tree.map(lambda _: value, subtree), prefix, tree)


def scale_by_tree(learning_rates: PyTree) -> optax.GradientTransformation:
    """Descend with one learning rate per leaf: ``update = -rate * gradient``.

    Args:
        learning_rates: a scalar, or a tree prefix of the position; a rate of 0 freezes its leaves.

    Returns:
        A stateless optax transformation, to be chained behind any preconditioner.
    """

    def update(updates: PyTree, _params: PyTree) -> PyTree:
        return jax.tree.map(
            lambda rate, u: -rate * u, broadcast_prefix(learning_rates, updates), updates
        )

    return optax.stateless(update)


def gradient_flow(
    energy_fn: EnergyFn,
    optimizer: optax.GradientTransformation,
    *,
    has_aux: bool = False,
    retract: Callable[[PyTree, PyTree], PyTree] = optax.apply_updates,
) -> Integrator:
    """Descent ``x <- retract(x, optimizer(grad F(x)))``.

    With ``optax.sgd(step_size)`` it is Euler's method for ``dx/dt = -grad F``. The gradient is
    carried, so one step costs one value and gradient, and the info describes the position the step
    arrived at.

    Args:
        energy_fn: position to scalar, or to ``(scalar, aux)`` with ``has_aux`` (as in
            ``jax.value_and_grad``).
        optimizer: any optax transformation that asks for no more than gradient and position (so no
            line search, which also
            wants the energy); :func:`scale_by_tree` gives a learning rate per group.
        has_aux: whether ``energy_fn`` returns something besides the energy.
        retract: ``(position, step) -> position``; by default their sum. A group's own retraction
            keeps its coordinates inside the chart.

    Returns:
        ``init(position) -> GradientFlowState`` and ``step(state) -> (GradientFlowState,
        GradientFlowInfo)``.
    """
    value_and_grad = jax.value_and_grad(energy_fn, has_aux=has_aux)

    def evaluate(position: PyTree) -> tuple[PyTree, Array, Any]:
        value, gradient = value_and_grad(position)
        energy, aux = value if has_aux else (value, None)
        return gradient, energy, aux

    def init(position: PyTree) -> GradientFlowState:
        gradient, _, _ = evaluate(position)
        return GradientFlowState(position, gradient, optimizer.init(position))

    def step(state: GradientFlowState) -> tuple[GradientFlowState, GradientFlowInfo]:
        updates, optimizer_state = optimizer.update(
            state.gradient, state.optimizer_state, state.position
        )
        position = retract(state.position, updates)
        gradient, energy, aux = evaluate(position)
        squares = jax.tree.reduce(jnp.add, jax.tree.map(lambda g: jnp.sum(g * g), gradient))
        return GradientFlowState(position, gradient, optimizer_state), GradientFlowInfo(
            energy, jnp.sqrt(squares), aux
        )

    return Integrator(init, step)
