"""The devices of ``vfejax simulate``: how many have a share of the agents, and why."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vfejax.agents import pairwise
from vfejax.agents.pairwise import Method
from vfejax.agents.ring import ring
from vfejax.cli.simulate.config import SimulateConfig
from vfejax.cli.simulate.problem import Problem
from vfejax.training import sharding
from vfejax.types import PyTree

__all__ = ["method", "placed", "remark", "shared"]

_AXIS = "data"


def shared(config: SimulateConfig, problem: Problem) -> Mesh | None:
    """As many devices as can have equal shares of the agents; None where one has all of them."""
    if jax.device_count() == 1 or config.emergence:
        return None
    mesh = sharding.data_mesh(problem.population.phi.shape[0])
    return mesh if mesh.size > 1 else None


def method(mesh: Mesh | None, problem: Problem) -> Method:
    """How the energy of all pairs is computed; along a neighbour list there are none."""
    if mesh is None or problem.edges is not None:
        return pairwise.alignment_energy
    return ring(mesh, _AXIS)


def placed(mesh: Mesh | None, num_agents: int) -> Callable[[PyTree], PyTree]:
    """A copy of a state, whose arrays of all agents are shared out."""

    def put(leaf: PyTree) -> PyTree:
        if mesh is None or not isinstance(leaf, jax.Array):
            return jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf
        of_agents = leaf.ndim > 0 and leaf.shape[0] == num_agents
        spec = PartitionSpec(_AXIS) if of_agents else PartitionSpec()
        return sharding.place(jnp.copy(leaf), NamedSharding(mesh, spec))

    return lambda state: jax.tree.map(put, state)


def remark(config: SimulateConfig, used: int, present: int, num_agents: int) -> str:
    """How many devices are used and why, in one line; empty when there is only one.

    Args:
        config: the options.
        used: devices that share the agents.
        present: how many there are.
        num_agents: of the population.
    """
    if present == 1:
        return ""
    if config.emergence:
        return f"uses 1 of {present} devices: with --emergence one device has all agents"
    if used == present:
        return f"uses all {present} devices, each with {num_agents // used} of the agents"
    return (
        f"uses {used} of {present} devices, since no more of them have equal shares of the "
        f"{num_agents} agents; a multiple of {present} agents uses all"
    )
