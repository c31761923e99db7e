"""The phases of a population: what it settles into at each temperature of the attention.

At a high temperature every agent listens to all others alike, at a low one only to those that
already agree with it. In between a population can change its state at once, from one consensus to
several camps. A sweep runs the same flow at many temperatures side by side, in one program, and
returns the curves by which such a transition is seen:

- attention entropy ``H_i = -sum_j beta_ij log beta_ij``, averaged over the agents, in nats: from
  ``log(n - 1)`` (all alike) down to 0 (one neighbour);
- susceptibility ``chi = mean_i Var_{beta_i}(KL_ij) / tau^2``, dimensionless. By the
  fluctuation-dissipation relation it is ``tau dH / dtau`` at fixed beliefs: the variance of what an
  agent attends to, and the slope of its entropy, are one number. It is the heat capacity of the
  attention;
- number of clusters, and the share of the agents in the largest: connected components of agents
  whose divergences from each other are within a threshold both ways.

A flow goes downhill from its start and stays in the first valley. Where two states are stable,
sweeps from two starts differ: that is hysteresis.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.agents import alignment
from vfejax.agents.clusters import components, two_way
from vfejax.agents.free_energy import free_energy
from vfejax.agents.order import attention_entropy
from vfejax.agents.pairwise import pairwise_kl
from vfejax.agents.population import Population, constrain, unconstrain
from vfejax.dynamics.rollout import rollout
from vfejax.geometry.groups import Generators
from vfejax.problems.population_flow import BELIEFS_AND_FRAMES, population_flow
from vfejax.types import Array, PyTree

__all__ = ["Order", "PhaseCurves", "order_of", "phase_sweep"]


class Order(NamedTuple):
    """How ordered a population is at one temperature, scalars.

    Attributes:
        attention_entropy: mean over the agents, in nats.
        susceptibility: ``mean_i Var_{beta_i}(KL_ij) / tau^2``, which is the slope of the entropy in
            ``log tau`` at fixed beliefs.
        num_clusters: int32, number of groups of agents that agree.
        largest_cluster: share of the agents in the largest group.
    """

    attention_entropy: Array
    susceptibility: Array
    num_clusters: Array
    largest_cluster: Array


class PhaseCurves(NamedTuple):
    """What a sweep over t temperatures found; every array has a leading axis t.

    Attributes:
        temperature: as given, in nats.
        energy: free energy in the end, in nats.
        last_change: change of the energy in the last step, in nats: near 0 where the flow has
            settled, NaN for fewer than two steps.
        order: order parameters in the end.
        population: the population in the end.
    """

    temperature: Array
    energy: Array
    last_change: Array
    order: Order
    population: Population


def order_of(
    population: Population,
    generators: Generators,
    temperature: float | Array,
    threshold: float | Array,
) -> Order:
    """Order parameters of the beliefs of a population at a point.

    Args:
        population: n agents, mean ``[n, k]``.
        generators: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``, which means
            the general exponential.
        temperature: tau of the attention, in nats, positive.
        threshold: agents are linked when both divergences between them are at most this, in nats.

    Returns:
        Scalars. Time and memory of arrays ``[n, n]``.

    >>> from vfejax.beliefs.gaussian import Gaussian
    >>> from vfejax.geometry import irreps
    >>> mean = jnp.array([0.0, 0.1, 5.0])[:, None]  # two that agree, and one far away
    >>> belief = Gaussian(mean, jnp.ones((3, 1, 1)))
    >>> agents = Population(belief, belief, jnp.zeros((3, 3)))
    >>> order = order_of(agents, irreps.so3((0,)), temperature=1.0, threshold=0.5)
    >>> int(order.num_clusters), round(float(order.largest_cluster), 3)
    (2, 0.667)
    """
    divergence = pairwise_kl(population.belief, population.phi, generators)
    num = divergence.shape[0]
    itself = jnp.eye(num, dtype=bool)
    divergence = jnp.where(itself, 0.0, divergence)
    scaled = divergence / jnp.asarray(temperature, divergence.dtype)
    bias = jnp.where(itself, -jnp.inf, jnp.zeros_like(scaled))
    beta = alignment.attention(scaled, bias, alignment.rows())
    # An agent that nobody attends to may be too far away for its divergence to be squared.
    ignored = beta == 0
    scaled = jnp.where(ignored, 0.0, scaled)
    mean = jnp.sum(beta * scaled, axis=1, keepdims=True)
    apart = jnp.where(ignored, 0.0, scaled - mean)
    variance = jnp.sum(beta * apart * apart, axis=1)
    label = components(two_way(divergence) <= threshold)
    sizes = jnp.sum(label[:, None] == label[None, :], axis=1)
    return Order(
        jnp.mean(attention_entropy(beta)),
        jnp.mean(variance),
        jnp.sum(label == jnp.arange(num, dtype=label.dtype), dtype=jnp.int32),
        (jnp.max(sizes) / num).astype(divergence.dtype),
    )


def phase_sweep(
    population: Population,
    generators: Generators,
    temperatures: Array,
    *,
    num_steps: int,
    threshold: float | Array,
    energy_fn: Callable[..., Array] = free_energy,
    step_size: float | Array = 0.02,
    trust_radius: float | Array = 0.3,
    rates: PyTree = BELIEFS_AND_FRAMES,
) -> PhaseCurves:
    """Flow of one population at many temperatures at once, and the order it settles into.

    Args:
        population: where every flow starts: n agents at a point.
        generators: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``.
        temperatures: tau ``[t]`` in nats, positive.
        num_steps: steps of :func:`vfejax.problems.population_flow.population_flow`; 0 takes the
            order of the population as it is.
        threshold: as in :func:`order_of`, in nats.
        energy_fn: ``(population, generators, temperature=tau) -> nats``; bind other options of
            :func:`vfejax.agents.free_energy.free_energy` by ``functools.partial``.
        step_size: fraction of the natural gradient that one step takes.
        trust_radius: longest step of one belief (Fisher length) and of one frame (radians).
        rates: multiples of the step size, a tree prefix of the coordinates; 0 freezes its leaves.

    Returns:
        Curves over the temperatures. Time is t times that of one flow, in one program; compile it
        with ``jax.jit``.

    Raises:
        ValueError: when the temperatures are not ``[t]``, or as the energy does.

    >>> from vfejax.beliefs.gaussian import Gaussian
    >>> from vfejax.geometry import irreps
    >>> belief = Gaussian(jnp.array([[0.0], [0.2], [2.0]]), jnp.ones((3, 1, 1)))
    >>> agents = Population(belief, belief, jnp.zeros((3, 3)))
    >>> curves = phase_sweep(
    ...     agents, irreps.so3((0,)), jnp.array([0.1, 100.0]), num_steps=0, threshold=0.1
    ... )
    >>> curves.order.attention_entropy.round(2)  # at most log 2 = 0.69
    Array([0.04, 0.69], dtype=float32)
    """
    temperatures = jnp.asarray(temperatures, population.belief.mean.dtype)
    if temperatures.ndim != 1:
        raise ValueError(f"temperatures must be [t], got shape {temperatures.shape}")
    start = unconstrain(population)

    def settle(temperature: Array) -> tuple[Array, Array, Order, Population]:
        def energy(coordinates: PyTree) -> Array:
            return energy_fn(constrain(coordinates), generators, temperature=temperature)

        if num_steps == 0:
            position, energies = start, energy(start)[None]
        else:
            flow = population_flow(energy, generators, step_size, trust_radius, rates)
            state, info = rollout(flow, flow.init(start), num_steps)
            position, energies = state.position, info.energy
        last = constrain(position)
        change = energies[-1] - energies[-2] if num_steps > 1 else jnp.nan * energies[-1]
        return energies[-1], change, order_of(last, generators, temperature, threshold), last

    energy, change, order, last = jax.vmap(settle)(temperatures)
    return PhaseCurves(temperatures, energy, change, order, last)
