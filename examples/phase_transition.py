"""Two camps of agents come to a consensus when their attention is warm, and at once.

Half of n = 2m agents have priors around one mean, half around another, a distance D apart. All
align their beliefs, with the entropic energy and the weight lambda. Agents of opposite camps whose
means are d apart diverge by K = d^2 / 2, and each agent pays

    F / n = (d - D)^2 / 8 - lambda tau log((m - 1 + m exp(-K / tau)) / (n - 1)).

This is stationary where ``d (1 + 4 lambda beta) = D``, with beta the attention that an agent pays
to the other camp. The equation has one solution at high and at low temperatures, and three in
between. Sweeps from the two ends jump at different temperatures: a transition of first order, with
hysteresis.

    python examples/phase_transition.py
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.agents import alignment
from vfejax.agents.free_energy import free_energy
from vfejax.agents.population import Population, PopulationCoordinates
from vfejax.beliefs.coordinates import GaussianCoordinates
from vfejax.beliefs.gaussian import Gaussian
from vfejax.figures.phases import phase_diagram
from vfejax.geometry import groups
from vfejax.problems.phase_sweep import phase_sweep

DISTANCE = 4.0  # D, between the priors of the camps, in standard deviations
WEIGHT = 2.0  # lambda, of the alignment
TEMPERATURES = np.geomspace(0.3, 10.0, 49)  # tau, in nats
NO_FRAMES = groups.general(np.zeros((1, 1, 1)))  # one component, which no frame turns
# Rates: covariances, priors and frames stay.
ONLY_MEANS = PopulationCoordinates(GaussianCoordinates(1.0, 0.0), 0.0, 0.0)


def camps(num_agents, spread):
    """Agents whose priors are in two camps, and whose beliefs start ``spread`` apart."""
    side = np.where(np.arange(num_agents) < num_agents // 2, -0.5, 0.5)[:, None]
    chol = jnp.ones((num_agents, 1, 1))
    belief, prior = (Gaussian(jnp.asarray(x * side, float), chol) for x in (spread, DISTANCE))
    return Population(belief, prior, jnp.zeros((num_agents, 1)))


def theory(num_agents, temperature):
    """Distances d of the camps that are stationary, in ascending order: one or three."""
    half = num_agents // 2
    d = np.linspace(0.0, DISTANCE, 200_001)
    other = half * np.exp(-(d**2) / (2 * temperature))
    force = d * (1 + 4 * WEIGHT * other / (half - 1 + other)) - DISTANCE
    return d[1:][np.sign(force[1:]) != np.sign(force[:-1])]


def main(num_agents=16, num_steps=300, out=Path("runs/examples")):
    """Sweep from both ends; print the jumps and draw the curves.

    Returns the curves of the two sweeps by name, and the theory's distances by temperature.
    """
    energy_fn = partial(free_energy, weights=(1, WEIGHT, 0, 0), alignment_fn=alignment.entropic)
    sweep = jax.jit(
        lambda agents: phase_sweep(
            agents,
            NO_FRAMES,
            TEMPERATURES,
            num_steps=num_steps,
            threshold=1.0,
            energy_fn=energy_fn,
            step_size=0.1,
            rates=ONLY_MEANS,
        )
    )
    starts = {"from two camps": DISTANCE, "from consensus": 0.01}
    curves = {name: jax.device_get(sweep(camps(num_agents, d))) for name, d in starts.items()}
    stationary = [theory(num_agents, tau) for tau in TEMPERATURES]
    for name, found in curves.items():
        jump = TEMPERATURES[np.argmax(found.order.num_clusters == 1)]
        print(f"{name:<15} one cluster from temperature {jump:.2f} nats")
    both = [tau for tau, d in zip(TEMPERATURES, stationary, strict=True) if len(d) == 3]
    print(f"theory          two stable states from {min(both):.2f} to {max(both):.2f} nats")

    means = {name: found.population.belief.mean[..., 0] for name, found in curves.items()}
    figure = phase_diagram(
        TEMPERATURES,
        {
            "distance of the camps": {n: np.ptp(mean, axis=1) for n, mean in means.items()},
            "attention entropy (nats)": {n: c.order.attention_entropy for n, c in curves.items()},
            "susceptibility": {n: c.order.susceptibility for n, c in curves.items()},
            "number of clusters": {n: c.order.num_clusters for n, c in curves.items()},
        },
        reference={
            "distance of the camps": [
                (tau, d) for tau, ds in zip(TEMPERATURES, stationary, strict=True) for d in ds
            ]
        },
    )
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "phase_transition.png")
    return curves, stationary


if __name__ == "__main__":
    main()
