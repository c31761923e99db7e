"""Roll an integrator forward in one compiled loop."""

import operator

import jax
import jax.numpy as jnp

from vfejax.types import Array, Integrator, PyTree

__all__ = ["rollout"]


def rollout(
    integrator: Integrator,
    state: PyTree,
    num_steps: int,
    key: Array | None = None,
    *,
    first_step: int | Array = 0,
) -> tuple[PyTree, PyTree]:
    """Take ``num_steps`` steps by ``lax.scan``.

    Step i of a trajectory uses the key ``fold_in(key, i)``. So a trajectory may be cut anywhere:
    continued with the same key and ``first_step`` at the number of steps taken, it is the same one.

    Args:
        integrator: any ``(init, step)`` of this package.
        state: from ``integrator.init``.
        num_steps: static number of steps, at least 0.
        key: of ``jax.random``, for a stochastic integrator. Without it every step is called as
            ``step(state)``.
        first_step: how many steps of this trajectory were taken before.

    Returns:
        The last state, and the infos of all steps stacked along a new leading axis ``[num_steps,
        ...]``.

    Raises:
        ValueError: when ``num_steps`` is no whole number of at least 0, or a step finds that the
            state is not one of its own, as when it is a position.

    >>> from vfejax.dynamics.hamiltonian import velocity_verlet
    >>> oscillator = velocity_verlet(lambda x: 0.5 * jnp.sum(x**2), 0.1)
    >>> state, info = rollout(oscillator, oscillator.init(jnp.ones(1)), 63)  # one period: 2 pi
    >>> round(float(state.position[0]), 2), info.total.shape
    (1.0, (63,))
    """
    try:
        operator.index(num_steps)
    except TypeError as error:
        raise ValueError(
            f"num_steps must be a static whole number, got {type(num_steps).__name__}; the order "
            "is rollout(integrator, state, num_steps)"
        ) from error
    if num_steps < 0:
        raise ValueError(f"num_steps must be at least 0, got {num_steps}")

    def step(carry: PyTree, index: Array) -> tuple[PyTree, PyTree]:
        keys = () if key is None else (jax.random.fold_in(key, index),)
        try:
            return integrator.step(carry, *keys)
        except AttributeError as error:
            # The state itself, or what a loop inside the step makes of it.
            if type(error.obj) is not type(carry):
                raise
            raise ValueError(
                f"state: a step asked a {type(state).__name__} for its {error.name}, which it has "
                "not; the state to begin with is integrator.init(position)"
            ) from error

    return jax.lax.scan(step, state, jnp.asarray(first_step, int) + jnp.arange(num_steps))
