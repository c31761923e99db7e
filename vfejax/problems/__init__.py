"""Problems with a known answer, and the flow that joins agents and dynamics."""

from vfejax.problems import population_flow, sensor_network

__all__ = ["population_flow", "sensor_network"]
