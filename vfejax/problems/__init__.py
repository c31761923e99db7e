"""Problems with a known answer, and the flows that join agents and dynamics."""

from vfejax.problems import (
    emergent_flow,
    inertial_flow,
    phase_sweep,
    population_flow,
    scenes,
    sensor_network,
)

__all__ = [
    "emergent_flow",
    "inertial_flow",
    "phase_sweep",
    "population_flow",
    "scenes",
    "sensor_network",
]
