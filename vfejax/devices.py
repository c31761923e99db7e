"""Computations on tokens that are divided among devices: each device works on its own tokens, with
whole copies of the weights.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from vfejax.types import Array, PyTree

__all__ = ["alike", "by_device", "whole"]


def _mesh_in_scope() -> AbstractMesh | None:
    """The mesh, if XLA places arrays on it (Auto) along one axis of several devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.axis_types == (AxisType.Auto,) and mesh.size > 1 else None


def by_device(
    function: Callable[..., Any], num_tokens: int, *, shared: int = 0
) -> Callable[..., Any]:
    """The function, or one that each device computes for its own share of the tokens, where a mesh
    with one axis, of type Auto, is in scope (:func:`vfejax.training.sharding.in_scope`) that
    divides them.

    For what XLA would otherwise gather on every device, such as a sort. The result is the same when
    that of a token depends on no other token.

    Args:
        function: of arrays that begin with the tokens, followed by arrays that all tokens share; it
            returns arrays that begin with the tokens.
        num_tokens: size of the first axis.
        shared: how many arrays at the end the tokens share.

    >>> import jax.numpy as jnp
    >>> by_device(lambda x, scale: scale * x, 4, shared=1)(jnp.ones(4), 2.0).tolist()
    [2.0, 2.0, 2.0, 2.0]
    """
    mesh = _mesh_in_scope()
    if mesh is None or num_tokens % mesh.size:
        return function
    tokens, whole = PartitionSpec(mesh.axis_names[0]), PartitionSpec()

    def shares(*arrays: Any) -> Any:
        specs = (tokens,) * (len(arrays) - shared) + (whole,) * shared
        # Kernels meet tokens in loops, whose carries would have to be marked as different on every
        # device one by one; sums of their gradients over devices are the same without the check.
        return jax.shard_map(function, in_specs=specs, out_specs=tokens, check_vma=False)(*arrays)

    return shares


def whole(tree: PyTree) -> PyTree:
    """The same arrays, all of each on every device, where a mesh with one axis, of type Auto, is in
    scope (:func:`vfejax.training.sharding.in_scope`) and the program is compiled.

    For weights that devices share out, at the point where they are read. Left to itself, XLA may
    rather divide what they are multiplied with along their axes, tokens that are divided already.

    Args:
        tree: a pytree of arrays.

    >>> whole({"scale": 2.0})
    {'scale': 2.0}
    """
    if _mesh_in_scope() is None:
        return tree

    def placed(x: Any) -> Any:
        # Outside a program arrays lie where they lie, and nothing is divided for their sake.
        traced = isinstance(x, jax.core.Tracer)
        return jax.lax.with_sharding_constraint(x, PartitionSpec()) if traced else x

    return jax.tree.map(placed, tree)


def alike(*arrays: Array) -> tuple[Array, ...]:
    """The same arrays, where inside ``jax.shard_map`` one that devices share counts as each one's
    own as soon as another of them is.

    For functions with derivatives of their own: what they return for such an array is then summed
    over the devices, as JAX does for its own functions.

    Args:
        arrays: what one function is given together.

    >>> import jax.numpy as jnp
    >>> alike(jnp.ones(2), jnp.zeros(()))
    (Array([1., 1.], dtype=float32), Array(0., dtype=float32))
    """
    axes = [jax.typeof(x).manual_axis_type.varying for x in arrays]
    every = frozenset[Any]().union(*axes)
    missing = [tuple(sorted(every - own, key=str)) for own in axes]
    return tuple(
        jax.lax.pcast(x, names, to="varying") if names else x
        for x, names in zip(arrays, missing, strict=True)
    )
