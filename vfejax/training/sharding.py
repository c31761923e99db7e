"""Data parallelism on a mesh: batches are split over devices, weights are copied to all, and XLA
adds the gradients up.
"""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vfejax.types import Array, PyTree

__all__ = ["data_mesh", "replicate", "split_batches"]


def data_mesh(batch_size: int, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh with the one axis ``data`` over as many devices as divide the batch; all devices of
    all processes by default.

    Raises:
        ValueError: across processes, when not all devices can be used.
    """
    devices = jax.devices() if devices is None else devices
    count = math.gcd(batch_size, len(devices))
    if jax.process_count() > 1 and count < len(devices):
        raise ValueError(
            f"batch_size must be a multiple of the {len(devices)} devices, got {batch_size}"
        )
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:count])


def split_batches(mesh: Mesh, windows: np.ndarray) -> Array:
    """Put ``windows [steps, b, n + 1]`` on the mesh, split over b; each process gives its own share
    of b.
    """
    sharding = NamedSharding(mesh, PartitionSpec(None, "data"))
    return jax.make_array_from_process_local_data(sharding, windows)


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """Copy every leaf to all devices of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
