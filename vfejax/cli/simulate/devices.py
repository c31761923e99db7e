"""The devices of ``vfejax simulate``: how many have a share of the agents, and why."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vfejax.agents import pairwise
from vfejax.agents.pairwise import Method
from vfejax.agents.ring import ring
from vfejax.cli.simulate.config import SimulateConfig
from vfejax.cli.simulate.problem import Problem
from vfejax.errors import UserError
from vfejax.runs import processes
from vfejax.training import sharding
from vfejax.types import PyTree

__all__ = ["gathered", "method", "placed", "remark", "shared"]

_AXIS = "data"


def shared(config: SimulateConfig, problem: Problem) -> Mesh | None:
    """As many devices as can have equal shares of the agents; None where one has all of them.

    Raises:
        UserError: across processes, where all devices must have one.
    """
    present, num_agents = jax.device_count(), problem.population.phi.shape[0]
    if present == 1 or config.emergence:
        return None
    try:
        mesh = sharding.data_mesh(num_agents)
    except ValueError as error:
        sharing = f"the {present} devices of {processes.count()} processes share the agents"
        subject = _number_of_agents(config, num_agents)
        raise UserError(f"{subject} must be a multiple of {present}, since {sharing}") from error
    return mesh if mesh.size > 1 else None


def _number_of_agents(config: SimulateConfig, num_agents: int) -> str:
    """Subject of a sentence about it: the option that decides it."""
    for option in ("initial", "observations"):
        path = getattr(config, option)
        if path is not None:
            return f"--{option} {path}: holds {num_agents} agents, whose number"
    return f"--agents {num_agents}:"


def method(mesh: Mesh | None, problem: Problem) -> Method:
    """How the energy of all pairs is computed; along a neighbour list there are none."""
    if mesh is None or problem.edges is not None:
        return pairwise.alignment_energy
    return ring(mesh, _AXIS)


def placed(mesh: Mesh | None, num_agents: int) -> Callable[[PyTree], PyTree]:
    """A copy of a state, whose arrays of all agents are shared out."""

    def put(leaf: PyTree) -> PyTree:
        if mesh is None or not isinstance(leaf, jax.Array):
            # Unlike jnp.copy it compiles nothing.
            return jax.device_put(leaf, may_alias=False) if isinstance(leaf, jax.Array) else leaf
        of_agents = leaf.ndim > 0 and leaf.shape[0] == num_agents
        spec = PartitionSpec(_AXIS) if of_agents else PartitionSpec()
        return sharding.place(jnp.copy(leaf), NamedSharding(mesh, spec))

    return lambda state: jax.tree.map(put, state)


def gathered(mesh: Mesh | None) -> Callable[[PyTree], PyTree]:
    """What brings the arrays of a state whole to every process, one after the other."""
    if mesh is None:
        return lambda state: state

    def whole(leaf: jax.Array) -> np.ndarray:
        near = leaf if leaf.is_fully_addressable else sharding.replicate(mesh, leaf)
        return np.asarray(near)

    return lambda state: jax.tree.map(whole, state)


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
