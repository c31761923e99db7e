"""Which leaf of a model is quantised, how, and how many bytes that takes."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import jax

from vfejax.compression.packing import packed_length
from vfejax.compression.quantize import Scheme, check_scheme, fake_quantize
from vfejax.types import Array, PyTree

__all__ = ["EMBEDDING", "EXACT", "Leaf", "leaf_bytes", "packed_bytes", "rounded", "rule"]

KERNELS = ("*kernel", "*kernel_in", "*kernel_out", "layers/expand", "layers/contract")
"""Weights of products, which sum over their last axis but one."""

TABLES = {
    "*embedding": -1,
    "tokens/angles": -2,
    "table/*": -3,
    "readout/bank/*": -3,
    "layers/frames": -3,
    "*/levels/kernel": -2,
    "*/couplings/kernel": -2,
    "*/fusion/*": -2,
    "*/link": -2,
}
"""What a model knows of each token, and the products that write its recurrences, which are more
sensitive than others. With the axis along which neighbours are alike: the channels of a token where
it has many, else the same channel of many tokens.
"""

EMBEDDING = Scheme(bits=8, group=64)
"""The scheme of tables."""

EXACT = ("*router*",)
"""Leaves that stay as they are whatever else they look like: another choice of experts is a jump.
"""


class Leaf(NamedTuple):
    """How one leaf is stored.

    Attributes:
        scheme: of its codes; None for a leaf that is kept as it is.
        axis: that along which neighbours share a scale.
    """

    scheme: Scheme | None
    axis: int = -2


def _named(params: PyTree) -> dict[str, Array]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def rule(
    params: PyTree,
    scheme: Scheme,
    *,
    embedding: Scheme = EMBEDDING,
    exact: Sequence[str] = EXACT,
) -> dict[str, Leaf]:
    """How each leaf of a model is stored: products in ``scheme``, what it knows of each token in
    ``embedding``, everything else as it is.

    Routers, norms, biases, parameters of recurrences and leaves that would not become half as
    large stay exact: together they are few bytes, and they do harm.

    Args:
        params: weights of a model of ``vfejax.models``, arrays or their shapes and dtypes.
        scheme: of kernels.
        embedding: of embeddings, and of other tables and products that need more bits.
        exact: patterns (``*`` for any characters) of names of leaves that stay as they are.

    Returns:
        One entry for each leaf, by its name: its path with "/".

    Raises:
        ValueError: for a scheme that is not possible.

    >>> import jax.numpy as jnp
    >>> params = {"mlp": {"kernel": jnp.ones((128, 64)), "bias": jnp.ones(64)}}
    >>> for name, leaf in rule(params, Scheme(bits=4)).items():
    ...     print(name, leaf.scheme)
    mlp/bias None
    mlp/kernel Scheme(bits=4, group=64, symmetric=True)
    """
    check_scheme(scheme)
    check_scheme(embedding)
    return {name: _leaf(name, x, scheme, embedding, exact) for name, x in _named(params).items()}


def _leaf(name: str, x: Array, scheme: Scheme, embedding: Scheme, exact: Sequence[str]) -> Leaf:
    name = name.removesuffix("/value")  # of the variables of a flax state that is no plain dict
    if _matches(name, exact):
        return Leaf(None)
    axes = [axis for pattern, axis in TABLES.items() if fnmatchcase(name, pattern)]
    if axes:
        leaf = Leaf(embedding, axes[0])
    elif _matches(name, KERNELS):
        leaf = Leaf(scheme)
    else:
        return Leaf(None)
    fits = x.ndim >= -leaf.axis
    return leaf if fits and 2 * leaf_bytes(x, leaf) <= leaf_bytes(x, Leaf(None)) else Leaf(None)


def leaf_bytes(x: Array, leaf: Leaf) -> int:
    """Bytes of one stored leaf: packed codes, two for each scale, packed zeros.

    >>> import jax.numpy as jnp
    >>> leaf_bytes(jnp.ones((128, 64)), Leaf(Scheme(bits=4, group=64)))
    4352
    """
    if leaf.scheme is None:
        return x.size * x.dtype.itemsize
    length = x.shape[leaf.axis]
    size = max(1, min(leaf.scheme.group or length, length))
    groups = -(-length // size) * (x.size // max(1, length))
    zeros = 0 if leaf.scheme.symmetric else packed_length(groups, leaf.scheme.bits)
    return packed_length(x.size, leaf.scheme.bits) + 2 * groups + zeros


def packed_bytes(params: PyTree, leaves: Mapping[str, Leaf]) -> int:
    """Bytes that the weights of a model take in a file, without its header.

    Args:
        params: weights, arrays or their shapes and dtypes.
        leaves: how each is stored, from :func:`rule`.

    Returns:
        Packed codes, scales and zeros, and the leaves that are kept as they are.

    Raises:
        ValueError: when leaves and params do not have the same names.

    >>> import jax.numpy as jnp
    >>> params = {"mlp": {"kernel": jnp.ones((128, 64)), "bias": jnp.ones(64)}}
    >>> packed_bytes(params, rule(params, Scheme(bits=4)))
    4608
    """
    named = _named(params)
    _check_names(named, leaves)
    return sum(leaf_bytes(x, leaves[name]) for name, x in named.items())


def rounded(params: PyTree, leaves: Mapping[str, Leaf]) -> PyTree:
    """The weights that a model has after it was quantised and read back, with straight-through
    gradients.

    Args:
        params: weights.
        leaves: how each is stored, from :func:`rule`.

    Returns:
        Weights of the same shapes and dtypes.

    Raises:
        ValueError: when leaves and params do not have the same names.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.asarray([[0.75], [-1.0], [0.0], [0.3]])}
    >>> rounded(params, {"kernel": Leaf(Scheme(bits=3))})["kernel"][:, 0].tolist()
    [0.75, -1.0, 0.0, 0.25]
    """
    _check_names(_named(params), leaves)

    def read(path: tuple, x: Array) -> Array:
        leaf = leaves[jax.tree_util.keystr(path, simple=True, separator="/")]
        return x if leaf.scheme is None else fake_quantize(x, leaf.scheme, leaf.axis)

    return jax.tree_util.tree_map_with_path(read, params)


def _check_names(named: Mapping[str, Array], leaves: Mapping[str, Leaf]) -> None:
    strange = sorted(named.keys() ^ leaves.keys())
    if strange:
        raise ValueError(f"leaves must name each leaf of params once; only one has {strange[0]}")
