"""Problems with a known answer, which join agents and dynamics."""

from vfejax.problems import sensor_network

__all__ = ["sensor_network"]
