"""Where a state lives on a mesh of devices: batches are divided among them, and a rule says which
leaves of the state are divided too and which are copied to all. XLA adds the collectives.

A rule looks at shapes alone, so that it works on ``jax.eval_shape`` of any state: one of training,
statistics, messages, a population. Stages 1 and 3 of ZeRO are two such rules, and nothing else.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vfejax.types import Array, PyTree, TrainState

__all__ = [
    "RULES",
    "Footprint",
    "Rule",
    "data_mesh",
    "footprint",
    "in_scope",
    "place",
    "replicate",
    "replicated",
    "split_batches",
    "zero1",
    "zero3",
]

Rule: TypeAlias = Callable[[Mesh, PyTree], PyTree]
"""``rule(mesh, template) -> shardings``, a tree like the template."""


def data_mesh(batch_size: int, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh with the one axis ``data`` over as many devices as can have equal shares of a batch;
    all devices of all processes by default.

    Args:
        batch_size: sequences in a batch, over all processes.
        devices: those to use.

    Raises:
        ValueError: across processes, when not all devices can be used.

    >>> data_mesh(12, jax.devices()[:1]).shape["data"]
    1
    """
    devices = jax.devices() if devices is None else devices
    count = max(n for n in range(1, len(devices) + 1) if batch_size % n == 0)
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


def replicated(mesh: Mesh, template: PyTree) -> PyTree:
    """Every leaf is copied to all devices.

    Args:
        mesh: the devices.
        template: a state, or its shapes.

    >>> mesh = data_mesh(4, jax.devices()[:1])
    >>> tuple(replicated(mesh, {"weight": np.ones(2)})["weight"].spec)
    ()
    """
    return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), template)


def zero1(mesh: Mesh, template: PyTree) -> PyTree:
    """The weights of a :class:`vfejax.types.TrainState` are copied to all devices, and all else is
    divided as by :func:`zero3`: the optimiser's state, or a state without weights.

    Args:
        mesh: the devices.
        template: a state, or its shapes.

    Source: Rajbhandari et al., ZeRO (2020), stage 1.

    >>> mesh = data_mesh(4, jax.devices()[:1])
    >>> found = zero1(mesh, TrainState(np.ones(()), {"w": np.ones(8)}, {"m": np.ones(8)}))
    >>> tuple(found.params["w"].spec), tuple(found.optimizer_state["m"].spec)
    ((), ('data',))
    """

    def divided(part: PyTree) -> PyTree:
        shardings = zero3(mesh, part)
        if isinstance(part, TrainState):
            shardings = shardings._replace(params=replicated(mesh, part.params))
        return shardings

    return jax.tree.map(divided, template, is_leaf=lambda x: isinstance(x, TrainState))


def zero3(mesh: Mesh, template: PyTree) -> PyTree:
    """Every leaf is divided along its longest axis that the number of devices divides, and copied
    to all where there is none.

    Args:
        mesh: the devices.
        template: a state, or its shapes.

    Source: Rajbhandari et al., ZeRO (2020), stage 3.

    >>> mesh = data_mesh(4, jax.devices()[:1])
    >>> tuple(zero3(mesh, {"w": np.ones((3, 8))})["w"].spec)
    (None, 'data')
    """

    def divided(leaf: Array) -> NamedSharding:
        axes = [i for i, size in enumerate(leaf.shape) if size and size % mesh.size == 0]
        if not axes:
            return NamedSharding(mesh, PartitionSpec())
        longest = max(axes, key=lambda i: leaf.shape[i])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, mesh.axis_names[0]))

    if len(mesh.axis_names) != 1:
        raise ValueError(f"mesh must have one axis, got {mesh.axis_names}")
    return jax.tree.map(divided, template)


RULES: dict[str, Rule] = {"replicated": replicated, "zero1": zero1, "zero3": zero3}
"""The rules by name."""


class Footprint(NamedTuple):
    """Bytes of a state on a mesh.

    Attributes:
        total: of the state itself.
        per_device: of what one device holds of it.
        whole: of each leaf, by name, that every device holds all of.
    """

    total: int
    per_device: int
    whole: dict[str, int]


def footprint(template: PyTree, shardings: PyTree) -> Footprint:
    """What a state takes on each device.

    Args:
        template: the state, or its shapes.
        shardings: where it is, a tree like the template.

    >>> state = {"mean": np.ones((4, 2)), "count": np.ones(())}
    >>> footprint(state, replicated(data_mesh(4, jax.devices()[:1]), state))
    Footprint(total=72, per_device=72, whole={'count': 8, 'mean': 64})
    """
    leaves = jax.tree.leaves_with_path(template)
    total, held, whole = 0, 0, {}
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        size = leaf.dtype.itemsize
        total += size * math.prod(leaf.shape)
        held += size * math.prod(sharding.shard_shape(leaf.shape))
        if sharding.is_fully_replicated:
            whole[jax.tree_util.keystr(path, simple=True, separator="/")] = size * leaf.size
    return Footprint(total, held, whole)


def place(state: PyTree, shardings: PyTree) -> PyTree:
    """The state on the devices that its shardings name.

    Args:
        state: arrays; across processes, every process gives the same whole values, or arrays that
            are on devices of all of them already.
        shardings: where to, a tree like the state.

    >>> state = {"w": np.ones((3, 8))}
    >>> placed = place(state, zero3(data_mesh(4, jax.devices()[:1]), state))
    >>> placed["w"].addressable_shards[0].data.shape
    (3, 8)
    """
    return jax.tree.map(_put, state, shardings)


def _put(leaf: Array | np.ndarray, sharding: NamedSharding) -> Array:
    everywhere = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if everywhere or sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        words = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
    value = np.asarray(leaf)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def in_scope(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, traced with the mesh in scope, so that what sorts tokens by expert does so on
    each device by itself (:mod:`vfejax.devices`). Its results are the same. Of its arguments at
    least one lies on the mesh.

    >>> mesh = data_mesh(4, jax.devices()[:1])
    >>> jax.jit(in_scope(mesh, lambda x: 2 * x))(np.ones(2)).tolist()
    [2.0, 2.0]
    """

    @functools.wraps(function)
    def scoped(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return scoped


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """Copy every leaf to all devices of the mesh.

    >>> mesh = data_mesh(4, jax.devices()[:1])
    >>> replicate(mesh, {"weight": np.ones(2)})["weight"].sharding.is_fully_replicated
    True
    """
    return place(tree, replicated(mesh, tree))
