"""Sixty-four sensors that do not know how they are turned find one common frame by minimising a
free energy.

Each sensor measures the same three landmarks, four times, with 0.2 m of noise, in its own unknown
orientation. It starts from what it can believe alone. Alignment then turns its frame and moves its
belief until the population agrees; what comes out is compared with the maximum-likelihood
registration of all measurements, the reference for this problem.

    python examples/sensor_network.py
"""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.agents import observation
from vfejax.agents import population as populations
from vfejax.agents.free_energy import Weights, free_energy_terms
from vfejax.agents.population import Population
from vfejax.beliefs.gaussian import Gaussian
from vfejax.dynamics.rollout import rollout
from vfejax.figures import energies as energy_figures
from vfejax.geometry import irreps
from vfejax.geometry.transport import frames
from vfejax.problems import sensor_network
from vfejax.problems.population_flow import population_flow

GROUP = irreps.so3((1, 1, 1))  # a belief holds three landmarks, each a vector
ALIGNMENT = 10.0  # weight of the alignment against a sensor's own measurements
TEMPERATURE = 1000.0  # nats; high, so that at the start every sensor listens to all others


def start(observations: observation.Observations) -> Population:
    """Every sensor's own posterior, and no idea of its orientation."""
    num_agents, _, k = observations.values.shape
    prior = Gaussian(
        jnp.zeros((num_agents, k)), jnp.broadcast_to(3.0 * jnp.eye(k), (num_agents, k, k))
    )
    prior = jax.tree.map(lambda x: x.astype(observations.values.dtype), prior)
    belief = jax.jit(observation.posterior)(prior, observations)
    return Population(belief, prior, jnp.zeros_like(belief.mean[:, :3]))


def align(population: Population, observations: observation.Observations, num_steps: int):
    """Natural gradient flow of beliefs and frames; the last population and the energy terms of
    every step.
    """

    def energy_fn(coordinates):
        terms = free_energy_terms(
            populations.constrain(coordinates),
            GROUP,
            weights=Weights(belief_alignment=ALIGNMENT),
            temperature=TEMPERATURE,
            observations=observations,
        )
        return terms.total, terms

    flow = population_flow(energy_fn, GROUP, has_aux=True)
    state, info = jax.jit(lambda x: rollout(flow, flow.init(x), num_steps))(
        populations.unconstrain(population)
    )
    return populations.constrain(state.position), info.aux


def errors(
    rotations: np.ndarray, landmarks: np.ndarray, truth: sensor_network.Truth
) -> tuple[float, float]:
    """Root-mean-square errors against the truth: landmarks in metres, relative rotations in
    degrees.
    """
    place = sensor_network.landmark_errors(landmarks, truth.landmarks)
    turn = sensor_network.relative_rotation_errors(rotations, truth.rotations)
    return math.sqrt(np.mean(place**2)), math.degrees(math.sqrt(np.mean(turn**2)))


def main(num_agents: int = 64, num_steps: int = 500, out: Path = Path("runs/examples")) -> dict:
    """Align a network, print its errors, draw its energy; returns ``{method: (landmarks in m,
    rotations in degrees)}``.
    """
    observations, truth = sensor_network.simulate(np.random.default_rng(0), num_agents)
    population, terms = align(start(observations), observations, num_steps)

    measured = sensor_network.mean_observations(observations)
    best = sensor_network.maximum_likelihood(measured)
    rotations = jax.jit(lambda phi: frames(phi, irreps.so3((1,))))(population.phi)
    unturned = np.broadcast_to(np.eye(3), truth.rotations.shape)
    rows = {
        "a sensor alone": errors(unturned, measured, truth),
        "this run": errors(rotations, np.reshape(population.belief.mean, measured.shape), truth),
        "maximum likelihood": errors(best.rotations, best.landmarks, truth),
    }
    print(
        f"{num_agents} sensors, {num_steps} steps: "
        f"free energy {terms.total[0]:.6g} -> {terms.total[-1]:.6g} nats"
    )
    print(f"{'rms error against the truth':<28}{'landmarks':>12}{'relative rotations':>20}")
    for name, (place, turn) in rows.items():
        print(f"{name:<28}{1e3 * place:>9.1f} mm{turn:>16.2f} deg")

    out.mkdir(parents=True, exist_ok=True)
    energy_figures.energy_terms(np.arange(1, num_steps + 1), terms._asdict()).savefig(
        out / "sensor_network.png"
    )
    print(f"wrote {out / 'sensor_network.png'}")
    return rows


if __name__ == "__main__":
    main()
