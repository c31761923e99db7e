"""The flow of a population: natural gradient, trust region and retraction, put together once.

``agents`` knows populations and ``dynamics`` knows integrators, and neither knows the other. Here
they meet. Any other integrator of :mod:`vfejax.dynamics` takes the same energy of coordinates, such
as ``velocity_verlet(energy_fn, 0.01, mass)``.

Sampling instead of descending. A sampler of another library takes ``-energy_fn`` as its log
density, and four things go wrong silently (``examples/posterior_sampling.py`` does it right):

- Priors are leaves of the coordinates, too. Close over them (vary ``x.belief`` alone), or the
  sampler moves the priors towards the beliefs.
- A density of beliefs becomes one of coordinates by the Jacobian of ``population.constrain``: add
  the sum of the diagonal of ``factor`` for a density of Cholesky factors.
- The triangle of ``factor`` above the diagonal has no effect, so ``exp(-F)`` cannot be normalised
  along it. Sample the lower triangle.
- The free energy is no log density of frames: turning all of them together changes nothing, so
  ``phi`` has directions along which ``exp(-F)`` cannot be normalised. Sample frames relative to one
  that is held fixed, or leave them out.
"""

from collections.abc import Callable
from typing import Any, cast

import jax
import optax

from vfejax.agents.metric import natural_direction
from vfejax.agents.population import PopulationCoordinates, limit_step, retract
from vfejax.dynamics.gradient_flow import gradient_flow, scale_by_tree
from vfejax.dynamics.natural_gradient import natural_gradient
from vfejax.geometry.groups import Generators
from vfejax.types import Array, Integrator, PyTree

__all__ = ["BELIEFS_AND_FRAMES", "natural_step", "population_flow"]

# Rates that let beliefs and frames move and hold the priors, which are what an agent was given.
BELIEFS_AND_FRAMES: PyTree = cast(Any, PopulationCoordinates)(belief=1.0, prior=0.0, phi=1.0)


def natural_step(
    group: Generators,
    step_size: float | Array = 0.02,
    trust_radius: float | Array = 0.3,
    rates: PyTree = BELIEFS_AND_FRAMES,
    *,
    damping: float | Array = 1.0,
    measure: Array | None = None,
) -> optax.GradientTransformation:
    """From a gradient to the step of :func:`population_flow`, as an optax transformation.

    Args:
        group: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``.
        step_size: fraction of the natural gradient that one step takes.
        trust_radius: longest step of one belief or prior (Fisher length) and of one frame
            (radians).
        rates: multiples of the step size, a tree prefix of the coordinates; 0 freezes its leaves.
        damping: nats per radian squared added to the frames' metric.
        measure: weight of each agent at each point of the base manifold ``[n, *grid]``; 1 by
            default.

    Returns:
        A stateless transformation; its ``update`` needs the position as ``params``. Frames move by
        :func:`vfejax.agents.population.retract`.

    >>> import jax.numpy as jnp
    >>> from vfejax.beliefs.coordinates import GaussianCoordinates
    >>> from vfejax.geometry import irreps
    >>> belief = GaussianCoordinates(jnp.zeros((1, 3)), jnp.zeros((1, 3, 3)))
    >>> here = PopulationCoordinates(belief, belief, jnp.zeros((1, 3)))
    >>> slope = here._replace(phi=jnp.array([[4.0, 0.0, 0.0]]))
    >>> optimizer = natural_step(irreps.so3((1,)), 0.5)
    >>> step, _ = optimizer.update(slope, optimizer.init(here), here)
    >>> round(float(step.phi[0, 0]), 4)  # half of it is shortened to the trust radius
    -0.3
    """

    def metric(position: PopulationCoordinates, gradient: PopulationCoordinates) -> PyTree:
        return natural_direction(position, gradient, group, damping=damping, measure=measure)

    def limit(step: PopulationCoordinates, position: PopulationCoordinates) -> PyTree:
        return limit_step(step, position, gaussian_radius=trust_radius, frame_radius=trust_radius)

    scaled = jax.tree.map(lambda rate: step_size * rate, rates)
    return optax.chain(natural_gradient(metric), scale_by_tree(scaled), optax.stateless(limit))


def population_flow(
    energy_fn: Callable[[PopulationCoordinates], Any],
    group: Generators,
    step_size: float | Array = 0.02,
    trust_radius: float | Array = 0.3,
    rates: PyTree = BELIEFS_AND_FRAMES,
    *,
    damping: float | Array = 1.0,
    measure: Array | None = None,
    has_aux: bool = False,
) -> Integrator:
    """Natural gradient flow of beliefs, priors and frames under a trust region.

    A step goes down :func:`vfejax.agents.metric.natural_direction`, scaled by ``step_size`` times
    the rate of each group. What is then longer than ``trust_radius`` is shortened, agent by agent,
    and frames are brought back into the chart of the group.

    Args:
        energy_fn: coordinates (:func:`vfejax.agents.population.unconstrain`) to a scalar in nats,
            or to ``(scalar, aux)`` with ``has_aux``.
        group: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``, which means the
            general exponential and frames without a chart to return to.
        step_size: fraction of the natural gradient that one step takes.
        trust_radius: longest step of one belief or prior (Fisher length) and of one frame
            (radians). It is applied to the scaled step, so it bounds what an agent really moves.
        rates: multiples of the step size, a tree prefix of the coordinates; 0 freezes its leaves.
            By default beliefs and frames move and priors stay.
        damping: nats per radian squared added to the frames' metric; see
            :func:`vfejax.agents.metric.natural_direction`.
        measure: weight of each agent at each point of the base manifold ``[n, *grid]``, from
            :func:`vfejax.agents.supports.measure`; 1 by default.
        has_aux: whether ``energy_fn`` returns something besides the energy.

    Returns:
        ``init(coordinates) -> GradientFlowState`` and ``step(state) -> (GradientFlowState,
        GradientFlowInfo)``, to be iterated by :func:`vfejax.dynamics.rollout.rollout`.

    >>> import jax.numpy as jnp
    >>> from vfejax.agents.free_energy import free_energy
    >>> from vfejax.agents.population import Population, constrain, unconstrain
    >>> from vfejax.beliefs.gaussian import Gaussian
    >>> from vfejax.dynamics.rollout import rollout
    >>> from vfejax.geometry import irreps
    >>> group = irreps.so3((1,))
    >>> belief = Gaussian(jnp.eye(3), jnp.tile(0.3 * jnp.eye(3), (3, 1, 1)))
    >>> start = unconstrain(Population(belief, belief, jnp.zeros((3, 3))))
    >>> energy_fn = lambda x: free_energy(constrain(x), group, temperature=10.0)
    >>> flow = population_flow(energy_fn, group)
    >>> state, info = jax.jit(lambda x: rollout(flow, flow.init(x), 50))(start)
    >>> bool(info.energy[-1] < 0.5 * energy_fn(start))
    True
    """

    optimizer = natural_step(
        group, step_size, trust_radius, rates, damping=damping, measure=measure
    )

    def move(position: PopulationCoordinates, step: PopulationCoordinates) -> PyTree:
        return retract(position, step, group)

    return gradient_flow(energy_fn, optimizer, has_aux=has_aux, retract=move)
