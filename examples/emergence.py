"""Agents that agree become one agent a scale up, and those that come to agree another, unasked.

Sixteen agents measure four places, each agent one of them, in a frame of its own. The places lie in
two pairs: those of a pair are a little apart, the pairs far apart. Nobody is told how many places
there are, or who measures which. At a low temperature an agent attends to those of its own place,
and four groups form. A group's meta-agent has nobody closer than that of the other place of the
pair. The two align, come to agree, and form one meta-agent a scale up.

Then one agent measures something else. It leaves its meta-agent. The other three stay, and so does
all that is above them.

    python examples/emergence.py
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.agents.alignment import saturating
from vfejax.agents.emergence import Criteria
from vfejax.agents.hierarchy import initial_hierarchy
from vfejax.agents.hierarchy_energy import CrossScale, energy_terms
from vfejax.agents.observation import identity_observations
from vfejax.agents.pairwise import pairwise_kl
from vfejax.agents.population import Population
from vfejax.beliefs.gaussian import Gaussian
from vfejax.figures.hierarchies import memberships
from vfejax.geometry import irreps
from vfejax.geometry.transport import frames
from vfejax.problems.emergent_flow import emergent_flow
from vfejax.problems.partitions import adjusted_rand_index, spectral_clustering

GROUP = irreps.so3((1,))
NUM_AGENTS, CAPACITIES = 16, (6, 3)
# In metres: the places, how far each coordinate of a measurement is off, and how far away from its
# place the agent that is pulled measures from half-time on.
PLACES = np.array([[-3.0, -0.6, 0.0], [-3.0, 0.6, 0.0], [3.0, -0.6, 0.0], [3.0, 0.6, 0.0]])
NOISE, NUM_MEASUREMENTS = 0.4, 4
PULLED, SHIFT = 5, np.array([0.0, 0.0, 4.0])
TEMPERATURE, LIMIT = 1.0, 20.0  # nats
CRITERIA = Criteria(threshold=1.0, diameter=2.0, release=3.0)


def measurements(rng, num_steps):
    """The place of each agent, its frame, and what it measures at each step, in that frame."""
    place = rng.permutation(np.arange(NUM_AGENTS) % len(PLACES))
    phi = jnp.asarray(0.8 * rng.standard_normal((NUM_AGENTS, 3)), float)
    noise = NOISE * rng.standard_normal((NUM_AGENTS, NUM_MEASUREMENTS, 3))
    common = np.repeat((PLACES[place][:, None] + noise)[None], num_steps, axis=0)
    common[num_steps // 2 :, PULLED] += SHIFT
    values = np.einsum("nij,tnmj->tnmi", np.asarray(frames(phi, GROUP)), common)
    return place, phi, jnp.asarray(values, float)


@jax.jit
def run(values, phi):
    """The flow of agents that measure ``values[t]`` at step t.

    Returns what every step did, and the divergences of all pairs of rows after it.
    """
    mean = jnp.mean(values[0], axis=1)
    unit = jnp.broadcast_to(jnp.eye(3, dtype=mean.dtype), (NUM_AGENTS, 3, 3))
    belief = Gaussian(mean, NOISE / NUM_MEASUREMENTS**0.5 * unit)
    start, scales = initial_hierarchy(
        Population(belief, Gaussian(0 * mean, 10.0 * unit), phi), CAPACITIES
    )

    def flow_of(values):
        energy_fn = partial(
            energy_terms,
            scales=scales,
            generators=GROUP,
            temperature=TEMPERATURE,
            # Who has nobody within about LIMIT listens to nobody.
            alignment_fn=partial(saturating, limit=LIMIT / TEMPERATURE),
            cross_scale=CrossScale(bottom_up=0.2),
            observations=identity_observations(values, NOISE),
        )
        return emergent_flow(energy_fn, scales, GROUP, 0.1, criteria=CRITERIA, detect_every=20)

    def step(state, values):
        # A change of the measurements shows in the gradient that the next step uses.
        state, info = flow_of(values).step(state)
        belief, _, phi = state.hierarchy.population
        return state, (info, pairwise_kl(belief, phi, GROUP))

    return jax.lax.scan(step, flow_of(values[0]).init(start), values)[1]


def story(info):
    """What happened, one line per event."""
    own = np.arange(info.parent.shape[1])
    for t, parent in enumerate(info.parent):
        for row in np.flatnonzero(info.condensed.formed[t]):
            members = np.flatnonzero((parent == row) & (own != row)).tolist()
            yield f"step {t + 1:3}: {members} form meta-agent {row}"
        for row in np.flatnonzero(info.condensed.adopted[t]):
            yield f"step {t + 1:3}: {row} joins meta-agent {parent[row]}"
        for row in np.flatnonzero(info.dissolved.left[t]):
            yield f"step {t + 1:3}: {row} leaves meta-agent {info.parent[t - 1][row]}"
        for row in np.flatnonzero(info.dissolved.dissolved[t]):
            yield f"step {t + 1:3}: meta-agent {row} dissolves"


def main(num_steps: int = 300, out: Path = Path("runs/examples")):
    """Run it, print what happened and how right the groups were, draw who joined whom.

    Returns what the steps did, and the adjusted Rand indices by name.
    """
    rng = np.random.default_rng(2)
    place, phi, values = measurements(rng, num_steps)
    info, divergences = jax.device_get(run(values, phi))
    print("\n".join(story(info)))

    half = num_steps // 2 - 1
    agents = slice(NUM_AGENTS)
    parent = info.parent[half]
    # Spectral clustering is told how many groups there are.
    spectral = {
        when: spectral_clustering(np.maximum(divergences[t, agents, agents], 0), len(PLACES), rng)
        for when, t in (("first", 0), ("same", half))
    }
    scores = {
        "groups against the truth": (parent[agents], place),
        "pairs against the truth": (parent[parent[agents]], place // 2),
        "spectral clustering of the first divergences": (spectral["first"], place),
        "spectral clustering of the same divergences": (spectral["same"], place),
        "groups against spectral clustering": (parent[agents], spectral["same"]),
    }
    scores = {name: adjusted_rand_index(*labels) for name, labels in scores.items()}
    print(f"adjusted Rand index after {half + 1} steps")
    for name, score in scores.items():
        print(f"  {name:<46}{score:.2f}")

    out.mkdir(parents=True, exist_ok=True)
    figure = memberships(
        np.arange(1, num_steps + 1), info.parent, info.active, num_agents=NUM_AGENTS
    )
    figure.savefig(out / "emergence.png")
    print(f"wrote {out / 'emergence.png'}")
    return info, scores


if __name__ == "__main__":
    main()
