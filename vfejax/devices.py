"""Tokens that lie on several devices: each device works on its own, with the weights in whole."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

from vfejax.types import PyTree

__all__ = ["by_device", "whole"]


def by_device(
    function: Callable[..., Any], num_tokens: int, *, shared: int = 0
) -> Callable[..., Any]:
    """The function, or one that each device computes for its own share of the tokens, where a mesh
    with one axis is in scope (:func:`vfejax.training.sharding.in_scope`) that divides them.

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
    mesh = jax.sharding.get_abstract_mesh()
    divides = len(mesh.axis_names) == 1 and mesh.size > 1 and num_tokens % mesh.size == 0
    if not divides or AxisType.Manual in mesh.axis_types:
        return function
    tokens, whole = PartitionSpec(mesh.axis_names[0]), PartitionSpec()

    def shares(*arrays: Any) -> Any:
        specs = (tokens,) * (len(arrays) - shared) + (whole,) * shared
        # Kernels meet tokens in loops, whose carries would have to be marked as different on every
        # device one by one; sums of their gradients over devices are the same without the check.
        return jax.shard_map(function, in_specs=specs, out_specs=tokens, check_vma=False)(*arrays)

    return shares


def whole(tree: PyTree) -> PyTree:
    """The same arrays, all of each on every device, where a mesh with one axis is in scope
    (:func:`vfejax.training.sharding.in_scope`).

    For weights that devices share out, at the point where they are read. Left to itself, XLA may
    rather divide what they are multiplied with along their axes, tokens that are divided already.

    Args:
        tree: a pytree of arrays.

    >>> whole({"scale": 2.0})
    {'scale': 2.0}
    """
    mesh = jax.sharding.get_abstract_mesh()
    if len(mesh.axis_names) != 1 or mesh.size == 1 or AxisType.Manual in mesh.axis_types:
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec())
