"""Message passing partitioned by graph: each device has members of the large plates, and all share
the rest.

Members of a plate meet only in the messages to the nodes they share, and those are sums over the
plate. So the algorithm needs no change: where beliefs and data lie decides what a device computes.
With members dealt out by :func:`shardings`, a compiled sweep updates each where it lies. Over the
devices it adds up the messages to shared nodes, which have the size of their natural parameters,
and the ELBO, and nothing else is exchanged. The ELBO never falls, as on one device.
"""

from typing import TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vfejax.inference.message_passing.beliefs import Beliefs, Weights
from vfejax.inference.message_passing.graph import Model

__all__ = ["shardings"]

Placed = TypeVar("Placed", Beliefs, Weights)


def shardings(
    model: Model, template: Placed, local: tuple[str, ...], mesh: Mesh, axis: str
) -> Placed:
    """Where beliefs, data or weights lie when devices share the members of plates.

    Args:
        model: from :func:`vfejax.inference.message_passing.graph.graph`.
        template: beliefs, or data or weights by name; arrays or what ``jax.eval_shape`` gives.
        local: names of the nodes, observed ones too, whose members are dealt out along their first
            plate. All other nodes are on every device.
        mesh: its axes are of type Auto.
        axis: axis of the mesh along the plates; its size divides theirs.

    Returns:
        A ``NamedSharding`` in the place of every array, for ``jax.device_put`` or the
        ``out_shardings`` of ``jax.jit``.

    Raises:
        ValueError: for a local name that is no node or has no plates, and for plates that the
            devices do not divide.

    >>> from vfejax.inference.message_passing import graph, nodes
    >>> model = graph.graph(
    ...     mean=nodes.gaussian(0.0, 1.0), x=nodes.gaussian("mean", 1.0, plates=(4,))
    ... )
    >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> list(shardings(model, {"x": jax.numpy.ones(4)}, ("x",), mesh, "data")["x"].spec)
    ['data']
    """
    if axis not in mesh.shape:
        raise ValueError(f"axis must be one of the mesh's {tuple(mesh.shape)}, got {axis!r}")
    for name in local:
        if name not in model.nodes:
            raise ValueError(f"local: no node {name!r}, there are {', '.join(model.nodes)}")
        plates = model.plates[name]
        if not plates or plates[0] % mesh.shape[axis]:
            raise ValueError(
                f"the first plate of {name} must be a multiple of the {mesh.shape[axis]} devices "
                f"of {axis!r}, got plates {plates}"
            )

    def place(path: tuple, leaf: jax.Array) -> NamedSharding:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        plates = model.plates[names[0]] if names and names[0] in local else ()
        # Weights may have fewer axes than plates, or axes of size 1.
        dealt = plates and leaf.ndim >= len(plates) and leaf.shape[0] == plates[0]
        return NamedSharding(mesh, PartitionSpec(axis) if dealt else PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, template)
