"""Motion of a population with the inertia of its own beliefs.

``agents`` knows masses, ``dynamics`` knows integrators, and here they meet. Beliefs and frames
move, priors are closed over, and frames return to their chart together with their momenta.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from vfejax.agents.inertia import hold
from vfejax.agents.population import PopulationCoordinates
from vfejax.dynamics.hamiltonian import HamiltonianState
from vfejax.dynamics.implicit import ImplicitInfo, KineticFn, generalized_leapfrog
from vfejax.geometry.groups import Generators, Group, add, as_group, body_jacobian
from vfejax.numerics import matvec, transpose
from vfejax.types import Array, Integrator

__all__ = ["inertial_flow", "rechart"]


def rechart(phi: Array, covectors: Array, group: Group) -> tuple[Array, Array]:
    """Frames in the chart of the group, and the same covectors in the new coordinates.

    The body momentum ``pi = J(phi)^{-T} p`` does not depend on the chart, so ``p_new =
    J(phi_new)^T pi``. The change of coordinates is canonical: no energy changes, and no symplectic
    form.

    Args:
        phi: frame coordinates ``[..., a]``.
        covectors: momenta or forces at ``phi``, ``[c, ..., a]``.
        group: whose retraction names the chart.

    Returns:
        New coordinates and covectors; those of frames that are inside the chart are unchanged.

    >>> from vfejax.geometry import irreps
    >>> over = jnp.array([0.0, 0.0, 4.0])
    >>> phi, momentum = rechart(over, jnp.array([[1.0, 0.0, 2.0]]), irreps.so3((1,)))
    >>> round(float(phi[2]), 3), round(float(momentum[0, 0]), 3)  # 4 - 2 pi about the same axis
    (-2.283, -1.752)
    """
    moved = group.retract(phi, jnp.zeros_like(phi))
    before, after = body_jacobian(jnp.stack([phi, moved]), group)
    direction = group.natural_direction(jnp.broadcast_to(phi, covectors.shape), covectors)
    body = matvec(before[None], direction)
    inside = jnp.all(moved == phi, axis=-1, keepdims=True)
    return moved, jnp.where(inside[None], covectors, matvec(transpose(after)[None], body))


def inertial_flow(
    energy_fn: Callable[[PopulationCoordinates], Any],
    kinetic_fn: KineticFn,
    group: Generators,
    step_size: float | Array,
    friction: float | Array = 0.0,
    *,
    scheme: Callable[..., Integrator] = generalized_leapfrog,
    has_aux: bool = False,
) -> Integrator:
    """Hamiltonian flow of beliefs and frames under a kinetic energy that depends on them.

    Args:
        energy_fn: coordinates (:func:`vfejax.agents.population.unconstrain`) to a scalar in nats,
            or to ``(scalar, aux)`` with ``has_aux``.
        kinetic_fn: from :func:`vfejax.agents.inertia.kinetic_energy`, of the same problem.
        group: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``, which means the
            general exponential and frames without a chart to return to.
        step_size: dt. Means move in times of order 1, whatever the units of the data.
        friction: rate c >= 0 per unit of time.
        scheme: :func:`vfejax.dynamics.implicit.generalized_leapfrog` or ``implicit_midpoint``;
            ``functools.partial(scheme, solver=...)`` gives it another solver.
        has_aux: whether ``energy_fn`` returns something besides the energy.

    Returns:
        ``init(coordinates, momentum=None) -> HamiltonianState`` (at rest by default) and
        ``step(state) -> (HamiltonianState, ImplicitInfo)``. Priors stay, and no force acts on them.

    >>> import jax
    >>> from vfejax.agents.free_energy import free_energy
    >>> from vfejax.agents.inertia import kinetic_energy
    >>> from vfejax.agents.population import Population, constrain, unconstrain
    >>> from vfejax.beliefs.gaussian import Gaussian
    >>> from vfejax.dynamics.rollout import rollout
    >>> from vfejax.geometry import irreps
    >>> group = irreps.so3((1,))
    >>> belief = Gaussian(jnp.eye(3), jnp.tile(0.3 * jnp.eye(3), (3, 1, 1)))
    >>> start = unconstrain(Population(belief, belief, jnp.zeros((3, 3))))
    >>> energy_fn = lambda x: free_energy(constrain(x), group, temperature=10.0)
    >>> kinetic_fn = kinetic_energy(group, temperature=10.0, moment_of_inertia=30.0)
    >>> flow = inertial_flow(energy_fn, kinetic_fn, group, 0.02)
    >>> state, info = jax.jit(lambda x: rollout(flow, flow.init(x), 50))(start)
    >>> bool(info.converged.all()), bool(jnp.ptp(info.total) < 0.01 * info.kinetic.max())
    (True, True)
    """
    group = as_group(group)

    def held(coordinates: PopulationCoordinates) -> Any:
        return energy_fn(hold(coordinates, "prior"))

    flow = scheme(held, kinetic_fn, step_size, friction, has_aux=has_aux)

    def step(
        state: HamiltonianState, key: Array | None = None
    ) -> tuple[HamiltonianState, ImplicitInfo]:
        (position, momentum, force), info = flow.step(state)
        both = jnp.stack([momentum.phi, force.phi])
        phi, (p, f) = rechart(position.phi, both, group)
        state = HamiltonianState(
            position._replace(phi=phi), momentum._replace(phi=p), force._replace(phi=f)
        )
        return state, info

    # Without a chart to return to there is nothing to do.
    return flow if group.retract is add else Integrator(flow.init, step)
