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

    Args:
        batch_size: sequences in a batch, over all processes.
        devices: those to use.

    Raises:
        ValueError: across processes, when not all devices can be used.

    >>> data_mesh(12, jax.devices()[:1]).shape["data"]
    1
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

    >>> mesh = data_mesh(4, jax.devices()[:1])
    >>> split_batches(mesh, np.zeros((3, 4, 9), np.int32)).shape
    (3, 4, 9)
    """
    sharding = NamedSharding(mesh, PartitionSpec(None, "data"))
    return jax.make_array_from_process_local_data(sharding, windows)


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """Copy every leaf to all devices of the mesh.

    >>> mesh = data_mesh(4, jax.devices()[:1])
    >>> replicate(mesh, {"weight": np.ones(2)})["weight"].sharding.is_fully_replicated
    True
    """
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
