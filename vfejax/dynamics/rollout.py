"""Roll an integrator forward in one compiled loop."""

import jax

from vfejax.types import Integrator, PyTree

__all__ = ["rollout"]


def rollout(integrator: Integrator, state: PyTree, num_steps: int) -> tuple[PyTree, PyTree]:
    """Take ``num_steps`` steps by ``lax.scan``.

    Args:
        integrator: any ``(init, step)`` of this package.
        state: from ``integrator.init``.
        num_steps: static number of steps.

    Returns:
        The last state, and the infos of all steps stacked along a new leading axis ``[num_steps,
        ...]``.
    """
    return jax.lax.scan(lambda carry, _: integrator.step(carry), state, length=num_steps)
