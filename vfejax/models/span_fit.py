"""Linear maps in place of spans of blocks, by least squares on a text that is read once.

Of the stream that enters a span, delay coordinates ``[1, z_t, ..., z_{t-3}]`` in units of its
standard deviations predict what the span adds. A triangular factor (:mod:`vfejax.koopman`) for each
span holds all that is needed; its leading columns are the factor of fewer delays. One operator of
all layers predicts each stream from the one before, in units that all of them share.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from vfejax.koopman import streaming
from vfejax.koopman.streaming import Factor
from vfejax.models.spans import DelayMap, delayed
from vfejax.numerics import at_least_float32
from vfejax.types import Array, PyTree, SequenceModel

__all__ = [
    "Fit",
    "LowRank",
    "Units",
    "delay_map",
    "explained",
    "fitted",
    "low_rank_map",
    "one_map",
    "streams",
]

Span = tuple[int, int]


class Units(NamedTuple):
    """Mean and standard deviation of channels."""

    centre: Array
    scale: Array


class Fit(NamedTuple):
    """What a text says about the streams of a model.

    Attributes:
        units: of each stream, ``[layers + 1, d]``.
        factors: by span (first block, block after the last), of ``[1, z_t, z_{t-1}, ...]`` and the
            change of the stream.
        common: the units that all streams share, ``[d]``.
        one: of ``[1, z]`` and the next ``[1, z]`` in those, of all blocks.
    """

    units: Units
    factors: dict[Span, Factor]
    common: Units
    one: Factor


class LowRank(NamedTuple):
    """A map whose kernel is ``left [delays d, rank] right [rank, d]``, and ``bias [d]``."""

    left: Array
    right: Array
    bias: Array


def streams(model: SequenceModel, params: PyTree, tokens: Array) -> Array:
    """The streams that enter the blocks and the one that leaves the last, ``[layers + 1, b, n,
    d]``.

    Args:
        model: whose blocks can be visited.
        params: its weights.
        tokens: integers ``[b, n]``.

    Raises:
        ValueError: for a model whose blocks cannot be visited.
    """
    if model.visit is None:
        raise ValueError("model must have blocks that hand on one stream, got one without visit")

    def look(number: Array, block_fn: Any, hidden: Array) -> tuple[Array, PyTree, Any]:
        del number
        after, said = block_fn(hidden)
        return after, said, (hidden, after)

    before, after = model.visit(params, tokens, look)[1]
    return jnp.concatenate([before, after[-1:]])


def _units(hidden: Array, axis: tuple[int, ...]) -> Units:
    scale = jnp.std(hidden, axis=axis)
    return Units(jnp.mean(hidden, axis=axis), jnp.where(scale <= 0, 1, scale))


def _repeated(units: Units, delays: int) -> Units:
    return Units(*(jnp.tile(x, delays) for x in units))


def _coordinates(units: Units, hidden: Array, delays: int) -> Array:
    """``[1, z_t, z_{t-1}, ...]`` as rows; the stream is 0 before the first token."""
    centre, scale = _repeated(units, delays)
    z = ((delayed(hidden, delays) - centre) / scale).reshape(-1, len(scale))
    return jnp.concatenate([jnp.ones_like(z[:, :1]), z], axis=1)


def _of(units: Units, layer: int) -> Units:
    return Units(units.centre[layer], units.scale[layer])


def _empty(size: int, following: int, ridge: float, dtype: jnp.dtype) -> Factor:
    """A factor whose samples are those of a ridge."""
    rows = jnp.sqrt(jnp.asarray(ridge, dtype)) * jnp.eye(size, dtype=dtype)
    none = jnp.zeros((size, following), dtype)
    return streaming.update(streaming.init(size, following, dtype=dtype), rows, none)


def fitted(
    model: SequenceModel,
    params: PyTree,
    tokens: Array,
    spans: Iterable[Span],
    *,
    delays: int = 4,
    ridge: float = 1e-2,
) -> Fit:
    """Statistics of a text, one batch at a time.

    Args:
        model: whose blocks can be visited.
        params: its weights.
        tokens: integers ``[batches, b, n]``. The first batch gives the units.
        spans: (first block, block after the last) of each.
        delays: how many tokens the largest maps read.
        ridge: what is added to the sum of squares of every coordinate, in units of one sample.

    Raises:
        ValueError: for a model whose blocks cannot be visited.
    """
    spans = list(spans)
    seen = streams(model, params, tokens[0])
    dim, dtype = seen.shape[-1], at_least_float32(seen.dtype)
    seen = seen.astype(dtype)
    units, common = _units(seen, (1, 2)), _units(seen, (0, 1, 2))
    factors = {span: _empty(1 + delays * dim, dim, ridge, dtype) for span in spans}
    start = Fit(units, factors, common, _empty(1 + dim, 1 + dim, ridge, dtype))

    def further(fit: Fit, batch: Array) -> tuple[Fit, None]:
        seen = streams(model, params, batch).astype(dtype)
        factors = {}
        for first, stop in spans:
            now = _coordinates(_of(units, first), seen[first], delays)
            change = (seen[stop] - seen[first]).reshape(-1, dim)
            factors[first, stop] = streaming.update(fit.factors[first, stop], now, change)
        now, following = (_coordinates(common, x, 1) for x in (seen[:-1], seen[1:]))
        return fit._replace(factors=factors, one=streaming.update(fit.one, now, following)), None

    return jax.lax.scan(further, start, tokens)[0]


def _size(fit: Fit, delays: int) -> int:
    return 1 + delays * len(fit.common.centre)


def _in_units(units: Units, found: Array) -> DelayMap:
    """A map of ``[1, z_t, ...]`` as one of the stream itself."""
    centre, scale = _repeated(units, (len(found) - 1) // len(units.centre))
    kernel = found[1:] / scale[:, None]
    return DelayMap(kernel, found[0] - centre @ kernel)


def delay_map(fit: Fit, span: Span, delays: int) -> DelayMap:
    """The least-squares map in place of a span.

    Args:
        fit: of a text.
        span: one of its spans.
        delays: how many tokens the map reads, at most those of the fit.
    """
    factor, size = fit.factors[span], _size(fit, delays)
    found = solve_triangular(factor.now[:size, :size], factor.cross[:size])
    return _in_units(_of(fit.units, span[0]), found)


def explained(fit: Fit, span: Span, delays: int) -> Array:
    """Share of the variance of the change that the map of :func:`delay_map` explains (R^2).

    Args:
        fit: of a text.
        span: one of its spans.
        delays: how many tokens the map reads, at most those of the fit.
    """
    factor, size = fit.factors[span], _size(fit, delays)
    left = jnp.sum(factor.residual**2)
    rest = left + jnp.sum(factor.cross[size:] ** 2)
    return 1 - rest / (left + jnp.sum(factor.cross[1:] ** 2))


def low_rank_map(fit: Fit, span: Span, delays: int, rank: int) -> LowRank:
    """The best map of a rank: reduced-rank regression.

    The factor holds what is predicted in an orthonormal basis of the samples, whose largest
    singular vectors keep the most. The mean is kept as it is, and costs no rank.

    Args:
        fit: of a text.
        span: one of its spans.
        delays: how many tokens the map reads, at most those of the fit.
        rank: at most the width of the stream.
    """
    factor, size = fit.factors[span], _size(fit, delays)
    left, values, right = jnp.linalg.svd(factor.cross[1:size], full_matrices=False)
    sizes = jnp.sqrt(values[:rank])
    left, right = left[:, :rank] * sizes, sizes[:, None] * right[:rank]
    weights = solve_triangular(factor.now[1:size, 1:size], left)
    mean = (factor.cross[0] - factor.now[0, 1:size] @ weights @ right) / factor.now[0, 0]
    centre, scale = _repeated(_of(fit.units, span[0]), delays)
    weights = weights / scale[:, None]
    return LowRank(weights, right, mean - centre @ weights @ right)


def one_map(fit: Fit, power: int) -> DelayMap:
    """``K^power`` of the one operator K of all layers."""
    size = _size(fit, 1)
    step = solve_triangular(fit.one.now, fit.one.cross)
    change = (jnp.linalg.matrix_power(step, power) - jnp.eye(size, dtype=step.dtype))[:, 1:]
    return _in_units(fit.common, change * fit.common.scale)
