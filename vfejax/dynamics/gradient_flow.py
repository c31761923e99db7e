"""Gradient flow of any energy through optax, with one learning rate per leaf."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vfejax.numerics import cast_like, floating_tree, tree_norm
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

    >>> broadcast_prefix({"a": 0.1, "b": 0.0}, {"a": (1, 2), "b": 3})
    {'a': (0.1, 0.1), 'b': 0.0}
    """
    return jax.tree.map(lambda value, subtree: jax.tree.map(lambda _: value, subtree), prefix, tree)


def scale_by_tree(learning_rates: PyTree) -> optax.GradientTransformation:
    """Descend with one learning rate per leaf: ``update = -rate * gradient``.

    Args:
        learning_rates: a scalar, or a tree prefix of the position, of any real dtype. A rate of 0
            freezes its leaves, also where the gradient is infinite or NaN.

    Returns:
        A stateless optax transformation, to be chained behind any preconditioner.

    >>> descend = scale_by_tree({"a": 0.5, "b": 0.0})
    >>> updates, _ = descend.update({"a": jnp.ones(1), "b": jnp.full(1, jnp.inf)}, descend.init({}))
    >>> updates["a"].tolist(), (1.0 + updates["b"]).tolist()
    ([-0.5], [1.0])
    """

    def scale(rate: float | Array, update: Array) -> Array:
        rate = cast_like(rate, update)
        # 0 times infinity is NaN. A finite update passes, so that d/d rate is right at rate 0 too.
        frozen = jnp.broadcast_to(rate == 0, update.shape) & ~jnp.isfinite(update)
        return -rate * jnp.where(frozen, 0.0, update)

    def transform(updates: PyTree, _params: PyTree) -> PyTree:
        return jax.tree.map(scale, broadcast_prefix(learning_rates, updates), updates)

    return optax.stateless(transform)


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
            line search, which also wants the energy); :func:`scale_by_tree` gives a learning rate
            per group.
        has_aux: whether ``energy_fn`` returns something besides the energy.
        retract: ``(position, step) -> position``; by default their sum. A group's own retraction
            keeps its coordinates inside the chart.

    Returns:
        ``init(position) -> GradientFlowState`` and ``step(state, key=None) -> (GradientFlowState,
        GradientFlowInfo)``; the key is ignored.

    Raises:
        ValueError: when a leaf of the position is complex, naming it.

    >>> flow = gradient_flow(lambda x: jnp.sum((x - 2.0) ** 2), optax.sgd(0.5))
    >>> state, info = flow.step(flow.init(jnp.zeros(1)))
    >>> state.position.tolist(), float(info.energy)
    ([2.0], 0.0)
    """
    value_and_grad = jax.value_and_grad(energy_fn, has_aux=has_aux)

    def evaluate(position: PyTree) -> tuple[PyTree, Array, Any]:
        value, gradient = value_and_grad(position)
        energy, aux = value if has_aux else (value, None)
        return gradient, energy, aux

    def init(position: PyTree) -> GradientFlowState:
        position = floating_tree(position, "position")
        gradient, _, _ = evaluate(position)
        return GradientFlowState(position, gradient, optimizer.init(position))

    def step(
        state: GradientFlowState, key: Array | None = None
    ) -> tuple[GradientFlowState, GradientFlowInfo]:
        updates, optimizer_state = optimizer.update(
            state.gradient, state.optimizer_state, state.position
        )
        position = retract(state.position, updates)
        gradient, energy, aux = evaluate(position)
        state = GradientFlowState(position, gradient, optimizer_state)
        return state, GradientFlowInfo(energy, tree_norm(gradient), aux)

    return Integrator(init, step)
