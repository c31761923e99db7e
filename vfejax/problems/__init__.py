"""Problems with a known answer, worlds for agents that plan, and the flows that join agents and
dynamics.
"""

from vfejax.problems import (
    belief_graph,
    belief_mdp,
    clocks,
    emergent_flow,
    environments,
    episodes,
    grid_world,
    gymnasium_worlds,
    image_denoising,
    important_region,
    inertial_flow,
    linear_convolution,
    lorenz,
    moving_target,
    phase_sweep,
    population_flow,
    scenes,
    sensor_network,
    several_agents,
)

__all__ = [
    "belief_graph",
    "belief_mdp",
    "clocks",
    "emergent_flow",
    "environments",
    "episodes",
    "grid_world",
    "gymnasium_worlds",
    "image_denoising",
    "important_region",
    "inertial_flow",
    "linear_convolution",
    "lorenz",
    "moving_target",
    "phase_sweep",
    "population_flow",
    "scenes",
    "sensor_network",
    "several_agents",
]
