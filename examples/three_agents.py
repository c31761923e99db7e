"""Three agents who see one thing in three frames come to agree.

Each believes something about one vector, in its own frame. Their free energy falls as they turn
their frames and move their beliefs.

    python examples/three_agents.py
"""

import jax
import jax.numpy as jnp

from vfejax.agents.free_energy import free_energy
from vfejax.agents.population import Population, constrain, unconstrain
from vfejax.beliefs.gaussian import Gaussian
from vfejax.dynamics.rollout import rollout
from vfejax.geometry import irreps
from vfejax.problems.population_flow import population_flow

group = irreps.so3((1,))  # beliefs about one vector, frames that rotate it
key_mean, key_frame = jax.random.split(jax.random.key(0))
belief = Gaussian(jax.random.normal(key_mean, (3, 3)), jnp.tile(0.3 * jnp.eye(3), (3, 1, 1)))
prior = Gaussian(belief.mean, jnp.tile(jnp.eye(3), (3, 1, 1)))
start = unconstrain(Population(belief, prior, jax.random.normal(key_frame, (3, 3))))


def energy_fn(coordinates):
    return free_energy(constrain(coordinates), group, temperature=10.0)


flow = population_flow(energy_fn, group)  # an Integrator: init and step
state, info = jax.jit(lambda x: rollout(flow, flow.init(x), 200))(start)
gradient = jax.grad(energy_fn)(start)  # the force on an agent is minus this
print(f"free energy {energy_fn(start):.2f} -> {info.energy[-1]:.2f} nats")
print(f"torque on the first frame at the start: {-gradient.phi[0]}")
