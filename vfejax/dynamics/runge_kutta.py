"""Flow of any motion ``dz/dt = f(z)`` by the classical Runge-Kutta scheme.

Of fourth order, and not symplectic: the energy of a Hamiltonian system drifts in one direction, for
as long as it runs. :mod:`vfejax.dynamics.hamiltonian` and :mod:`vfejax.dynamics.implicit` keep it.
"""

from collections.abc import Callable

import jax

from vfejax.numerics import cast_like, floating_tree
from vfejax.types import Array, Integrator, PyTree

__all__ = ["runge_kutta4"]


def runge_kutta4(motion_fn: Callable[[PyTree], PyTree], step_size: float | Array) -> Integrator:
    """The classical scheme of fourth order, four evaluations per step.

    Args:
        motion_fn: f, from a state to its derivative in time, of the same shapes.
        step_size: dt, in units of time.

    Returns:
        ``init(position) -> position``, floating, and ``step(position, key=None) -> (position,
        motion)``: a step later, and the motion before it; the key is ignored.

    Raises:
        ValueError: when a leaf of the position is complex, naming it.

    Source: Kutta, Z. Math. Phys. 46 (1901) 435.

    >>> import jax.numpy as jnp
    >>> decay = runge_kutta4(lambda z: -z, 0.1)
    >>> position, motion = decay.step(decay.init(jnp.ones(())))
    >>> round(float(position), 6), float(motion)  # exp(-0.1)
    (0.904837, -1.0)
    """

    def ahead(z: PyTree, slope: PyTree, share: float) -> PyTree:
        return jax.tree.map(
            lambda x, f: x + cast_like(share, x) * cast_like(step_size, x) * f.astype(x.dtype),
            z,
            slope,
        )

    def init(position: PyTree) -> PyTree:
        return floating_tree(position, "position")

    def step(z: PyTree, key: Array | None = None) -> tuple[PyTree, PyTree]:
        first = motion_fn(z)
        second = motion_fn(ahead(z, first, 0.5))
        third = motion_fn(ahead(z, second, 0.5))
        fourth = motion_fn(ahead(z, third, 1.0))
        mean = jax.tree.map(
            lambda a, b, c, d: (a + 2.0 * b + 2.0 * c + d) / 6.0, first, second, third, fourth
        )
        return ahead(z, mean, 1.0), first

    return Integrator(init, step)
