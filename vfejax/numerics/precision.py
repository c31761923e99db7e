"""Dtypes: arguments as real floating-point arrays, and the precision of sums."""

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.types import Array, PyTree

__all__ = [
    "as_floating",
    "at_least_float32",
    "cast_like",
    "common_dtype",
    "floating_tree",
]


def as_floating(x: jax.typing.ArrayLike, name: str) -> Array:
    """``x`` as a real floating array: integers and booleans become the default float.

    Raises:
        ValueError: for complex numbers, naming the argument.

    >>> as_floating(jnp.array([1, 2]), "phi").dtype.kind
    'f'
    """
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError(f"{name} must be real, got {x.dtype}")
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))


def floating_tree(tree: PyTree, name: str) -> PyTree:
    """``tree`` with every leaf a real floating array; integers become the default float.

    Raises:
        ValueError: for a complex leaf, naming it by ``name`` and its place in the tree.

    >>> floating_tree({"a": 1}, "position")["a"].dtype.kind
    'f'
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, x: as_floating(x, name + jax.tree_util.keystr(path)), tree
    )


def cast_like(value: jax.typing.ArrayLike, like: Array) -> Array:
    """A real number or array of any dtype in the dtype of ``like``.

    >>> cast_like(2, jnp.ones(3, jnp.bfloat16)).dtype.name
    'bfloat16'
    """
    return as_floating(value, "value").astype(like.dtype)


def at_least_float32(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """float32 for half precision, else ``dtype`` itself: what sums and weights are kept in.

    >>> at_least_float32(jnp.bfloat16).name
    'float32'
    """
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)


def common_dtype(*arrays: Array | np.ndarray) -> jnp.dtype:
    """The widest dtype of floating arrays; float32 for two different half precisions.

    >>> common_dtype(jnp.ones(1, jnp.bfloat16), jnp.ones(1, jnp.float32)).name
    'float32'
    """
    dtypes = {jnp.dtype(x.dtype) for x in arrays}
    widest = max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)
    return widest if len(dtypes) == 1 else at_least_float32(widest)
