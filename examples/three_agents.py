"""Three agents who see one thing in three frames come to agree.

Each believes something about one vector, in its own frame. Their free energy falls as they turn
their frames and move their beliefs.

    python examples/three_agents.py
"""

import jax
import jax.numpy as jnp

from vfejax.agents.free_energy import free_energy
from vfejax.agents.pairwise import pairwise_kl
from vfejax.agents.population import Population, constrain, unconstrain
from vfejax.beliefs.gaussian import Gaussian
from vfejax.dynamics.rollout import rollout
from vfejax.geometry import irreps
from vfejax.problems.population_flow import population_flow

group = irreps.so3((1,))  # frames that rotate one 3-vector: spin 1
key_mean, key_frame = jax.random.split(jax.random.key(0))
belief = Gaussian(jax.random.normal(key_mean, (3, 3)), jnp.tile(0.3 * jnp.eye(3), (3, 1, 1)))
prior = Gaussian(belief.mean, jnp.tile(jnp.eye(3), (3, 1, 1)))
start = unconstrain(Population(belief, prior, jax.random.normal(key_frame, (3, 3))))


@jax.jit
def energy_fn(coordinates):
    return free_energy(constrain(coordinates), group, temperature=100.0)


@jax.jit
def farthest_apart(coordinates):
    agents = constrain(coordinates)
    return pairwise_kl(agents.belief, agents.phi, group).max()


flow = population_flow(energy_fn, group)  # natural gradient of beliefs and frames
state, info = jax.jit(lambda x: rollout(flow, flow.init(x), 200))(start)
print(f"free energy {energy_fn(start):.2f} -> {info.energy[-1]:.2f} nats")
print(f"farthest apart {farthest_apart(start):.1f} -> {farthest_apart(state.position):.2f} nats")
