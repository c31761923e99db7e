"""Spans of blocks replaced by linear maps of the stream that enters them: what a block adds that no
linear map, and no skipping, would.

The map of a span adds to the stream h of every token

    u_t = b + sum_j W_j h_{t-j},    j = 0 ... delays - 1,

a linear operator on delay coordinates, which reads no later token, with h = 0 before the first.
Least squares on a text give it (:mod:`vfejax.models.span_fit`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.models.block_hooks import silent
from vfejax.types import Array, Batch, Prediction, PyTree, SequenceModel

__all__ = ["MAP", "RUN", "SKIP", "DelayMap", "Route", "delayed", "mapped", "replaced", "route"]

RUN, SKIP, MAP = 0, 1, 2
"""What happens in place of a block: itself, nothing, or a linear map."""


class DelayMap(NamedTuple):
    """A linear map of delayed streams: ``kernel [delays d, d]``, whose first rows read the token
    itself, and ``bias [d]``.
    """

    kernel: Array
    bias: Array


class Route(NamedTuple):
    """For each block ``kind [layers]``, one of ``RUN``, ``SKIP`` and ``MAP``, and maps stacked by
    layer, read where the kind is ``MAP``.
    """

    kind: Array
    maps: DelayMap


def delayed(hidden: Array, delays: int) -> Array:
    """Streams of a token and of those before it, ``[h_t, h_{t-1}, ...]``, with zeros before the
    first token.

    Args:
        hidden: ``[..., n, d]``.
        delays: how many tokens, at least 1.

    Returns:
        ``[..., n, delays d]``.

    >>> delayed(jnp.asarray([[1.0], [2.0], [3.0]]), 2).tolist()
    [[1.0, 0.0], [2.0, 1.0], [3.0, 2.0]]
    """
    length = hidden.shape[-2]
    before = [(0, 0)] * (hidden.ndim - 2) + [(delays - 1, 0), (0, 0)]
    padded = jnp.pad(hidden, before)
    first = delays - 1
    shifted = [
        jax.lax.slice_in_dim(padded, first - j, first - j + length, axis=-2) for j in range(delays)
    ]
    return jnp.concatenate(shifted, axis=-1)


def mapped(maps: DelayMap, hidden: Array) -> Array:
    """The stream ``[..., n, d]`` with what a map adds to it.

    >>> double = DelayMap(jnp.ones((1, 1)), jnp.zeros(1))
    >>> mapped(double, jnp.asarray([[1.0], [2.0]])).tolist()
    [[2.0], [4.0]]
    """
    delays = maps.kernel.shape[0] // hidden.shape[-1]
    update = delayed(hidden.astype(maps.kernel.dtype), delays) @ maps.kernel + maps.bias
    return hidden + update.astype(hidden.dtype)


def replaced(model: SequenceModel) -> SequenceModel:
    """The model with blocks replaced as a route says, which is part of its weights:
    ``{"model": params, "route": Route}``. One compiled program serves every route.

    These are the weights of ``apply`` alone. The other functions are those of the model that was
    given, of which no block is replaced, and take ``params``.

    Raises:
        ValueError: for a model whose blocks cannot be visited.

    >>> from vfejax.models import table
    >>> small = table.build("transformer", table.MODELS["transformer"].tiny, 11, length=8)
    >>> params = small.init(jax.random.key(0))
    >>> nothing = route(2, 16, [])
    >>> found = replaced(small).apply({"model": params, "route": nothing}, jnp.ones((1, 8), int))
    >>> bool((found.logits == small.apply(params, jnp.ones((1, 8), int)).logits).all())
    True
    """
    visit = model.visit
    if visit is None:
        raise ValueError("model must have blocks that hand on one stream, got one without visit")

    def apply(params: PyTree, batch: Batch | Array, key: Array | None = None) -> Prediction:
        kind, maps = params["route"]

        def instead(number: Array, block_fn: Any, hidden: Array) -> tuple[Array, PyTree, None]:
            said = silent(block_fn, hidden)
            here = jax.tree.map(lambda x: x[number], maps)
            branches = [
                block_fn,
                lambda h: (h, said),
                lambda h: (mapped(here, h), said),
            ]
            return *jax.lax.switch(kind[number], branches, hidden), None

        return visit(params["model"], batch, instead, key)[0]

    return model._replace(apply=apply)


def route(
    num_layers: int, dim: int, span: Sequence[int], maps: DelayMap | None = None, delays: int = 1
) -> Route:
    """The route on which a span of blocks is skipped, or replaced by a map.

    Args:
        num_layers: number of blocks.
        dim: width of the stream.
        span: numbers of the blocks, in order.
        maps: what stands in their place; None to skip them.
        delays: how many tokens the maps of the route read, at least as many as ``maps``.

    Raises:
        ValueError: for numbers that are no blocks, a map in place of none, and a map of another
            size.

    >>> route(3, 4, [1, 2]).kind.tolist()
    [0, 1, 1]
    """
    _check_route(num_layers, dim, span, maps, delays)
    kind = np.zeros(num_layers, np.int32)
    kind[list(span)] = SKIP
    dtype = jnp.float32 if maps is None else maps.kernel.dtype
    kernel = jnp.zeros((num_layers, delays * dim, dim), dtype)
    bias = jnp.zeros((num_layers, dim), dtype)
    if maps is not None:
        first = span[0]
        kind[first] = MAP
        kernel = kernel.at[first, : len(maps.kernel)].set(maps.kernel)
        bias = bias.at[first].set(maps.bias)
    return Route(jnp.asarray(kind), DelayMap(kernel, bias))


def _check_route(
    num_layers: int, dim: int, span: Sequence[int], maps: DelayMap | None, delays: int
) -> None:
    if not all(0 <= block < num_layers for block in span):
        raise ValueError(f"span must hold numbers of blocks below {num_layers}, got {list(span)}")
    if maps is None:
        return
    if not len(span):
        raise ValueError("span must name the blocks that maps replace, got none")
    rows, columns = maps.kernel.shape
    if columns != dim or rows % dim or rows > delays * dim:
        raise ValueError(
            f"maps must have a kernel [delays {dim}, {dim}] of at most {delays} delays, got "
            f"{maps.kernel.shape}"
        )
