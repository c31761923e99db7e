"""Attention on a ring by the fast Fourier transform, where that is exact: weights that position
alone decides, and weights that a positive feature map makes of queries and keys.

The weight of offset o = (i - j) mod N is ``w(o)``, that of platters k and l is ``p(k, l)``, and
every head of a platter may have its own. A matrix ``w((i - j) mod N)`` is circulant, so that the
discrete Fourier transform F diagonalises it: its product with a vector is ``F^-1 (F w * F x)``, in
O(N log N).

Softmax attention with content has no such form. Its weights ``exp(<q_i, k_j>) w(i - j)`` are
circulant only where ``<q_i, k_j>`` depends on i - j alone. A feature map, ``exp(<q, k>) = <f(q),
f(k)>``, would help if it were finite. But the exponential kernel is strictly positive definite: on
N distinct vectors its matrix has rank N, so that an exact map has N features, and the cost is N^2
again. What a finite map computes is another attention, not an approximation of this one that gets
better with N.

Rounding. A transform sums every token of a sequence, so that an entry's error is machine epsilon
times the size of the whole sequence, also behind a window. Behind a mask the sum is divided by the
weight that a row still reaches. Its relative error is epsilon times ``sum_o w(o)`` divided by that
weight: large where a steep ``w`` leaves only distant tokens. A row whose weight is below epsilon
times the sum has lost every digit and is NaN. For the same reason a NaN makes its whole sequence
NaN, though never another one.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from vfejax.attention._arguments import check_heads
from vfejax.attention.softmax import softmax
from vfejax.numerics import at_least_float32
from vfejax.types import Array

__all__ = ["kernel_attention", "position_attention", "positive_features"]


class _Torus(NamedTuple):
    """A pattern that position alone decides, for g = h/D heads of a platter.

    Attributes:
        weights: of the offsets along the ring, normalised, ``[g, N]``.
        support: True where an offset counts, ``[g, N]``.
        mixing: weights of the platters, normalised, ``[g, D, D]``.
        present: True at the tokens that are there, ``[b or 1, N]``.
    """

    weights: Array
    support: Array
    mixing: Array
    present: Array


def _per_head(name: str, logits: Array, core: int, num_heads: int, dtype: jnp.dtype) -> Array:
    """Logits by head of a platter, ``[g, ...]``, from ``[...]`` with ``core`` axes or ``[g,
    ...]``.
    """
    if logits.shape[: logits.ndim - core] not in ((), (num_heads,)):
        raise ValueError(
            f"{name} must have {core} axes, or {core + 1} with the {num_heads} heads of a platter "
            f"first, got {logits.shape}"
        )
    return jnp.broadcast_to(logits.astype(dtype), (num_heads, *logits.shape[-core:]))


def _torus(value: Array, ring: Array, platters: Array, mask: Array | None) -> _Torus:
    """Weights for values ``[b, n, h, c]``, in at least float32; every argument is checked."""
    if platters.ndim < 2 or platters.shape[-1] != platters.shape[-2]:
        raise ValueError(f"platters must be [D, D] or [h/D, D, D], got {platters.shape}")
    check_heads("value", value, platters.shape[-1])
    batch, length, num_heads, _ = value.shape
    if ring.ndim == 0 or ring.shape[-1] < max(1, length):
        raise ValueError(f"ring must have an entry for each of {length} tokens, got {ring.shape}")
    if mask is None:
        mask = jnp.ones((1, length), bool)
    elif mask.dtype != bool or mask.shape != (batch, length):
        raise ValueError(
            f"mask must be bool [{batch}, {length}], got {mask.dtype} {list(mask.shape)}"
        )
    real, group = at_least_float32(value.dtype), num_heads // platters.shape[-1]
    ring = _per_head("ring", ring, 1, group, real)
    return _Torus(
        softmax(ring),
        ring != -jnp.inf,
        softmax(_per_head("platters", platters, 2, group, real)),
        jnp.pad(mask, ((0, 0), (0, ring.shape[-1] - length))),
    )


def _by_platter(x: Array, depth: int) -> Array:
    """``[b, n, h, e]`` as ``[b, D, h/D, e, n]``: transforms are fastest along the last axis."""
    grouped = jnp.reshape(x, (*x.shape[:2], depth, x.shape[2] // depth, x.shape[3]))
    return jnp.moveaxis(grouped, 1, -1)


def _by_token(x: Array, dtype: jnp.dtype) -> Array:
    """``[b, D, h/D, e, n]`` as ``[b, n, h, e]``."""
    batch, depth, group, size, length = x.shape
    return jnp.reshape(jnp.moveaxis(x, -1, 1), (batch, length, depth * group, size)).astype(dtype)


def _convolve(weights: Array, x: Array) -> Array:
    """``sum_j w_g((i - j) mod N) x_j``: ``[g, N]`` with ``[b, D, g, e, N]``."""
    spectrum = jnp.fft.rfft(weights)[None, None, :, None, :]
    return jnp.fft.irfft(spectrum * jnp.fft.rfft(x), n=x.shape[-1])


def _gather(torus: _Torus, x: Array) -> Array:
    """``sum_jl w_g((i - j) mod N) p_g(k, l) x_jl`` over the tokens that are there, ``[b, D, g, e,
    n]``.
    """
    length, circumference = x.shape[-1], torus.present.shape[-1]
    x = jnp.pad(x, (*((0, 0),) * 4, (0, circumference - length)))
    x = jnp.where(torus.present[:, None, None, None], x, 0.0)
    x = jnp.einsum("gkl,blgen->bkgen", torus.mixing, x, precision="highest")
    return _convolve(torus.weights, x)[..., :length]


def _average(read: Array, total: Array | None, torus: _Torus) -> Array:
    """``read / total``; 0 in rows that reach nothing, NaN in rows that have lost every digit.

    Without a total it is the weight in reach. The number of tokens in reach is an integer, hence
    exact after rounding: a row that reaches nothing is told apart from one that reaches little.
    """
    batch, circumference = torus.present.shape
    there = jnp.broadcast_to(
        torus.present[:, None, None, None].astype(torus.weights.dtype),
        (batch, 1, torus.weights.shape[0], 1, circumference),
    )
    reach = _convolve(torus.weights, there)[..., : read.shape[-1]]
    count = _convolve(torus.support.astype(reach.dtype), there)[..., : read.shape[-1]]
    closed = jnp.all(torus.mixing == 0, axis=-1).T[None, :, :, None, None]
    empty = (count < 0.5) | closed
    lost = reach < jnp.finfo(reach.dtype).eps
    mean = read / jnp.where(empty | lost, 1.0, reach if total is None else total)
    return jnp.where(empty, 0.0, jnp.where(lost, jnp.nan, mean))


def position_attention(
    value: Array, ring: Array, platters: Array, *, mask: Array | None = None
) -> Array:
    """Attention whose scores are ``ring[(i - j) mod N] + platters[k, l]``, for all heads at once.

    The weights are the Kronecker product of a circulant and a D x D matrix, both normalised:

        y_ik = sum_jl w((i - j) mod N) p(k, l) v_jl / sum_j w((i - j) mod N),

    with w and p the softmax of ``ring`` and of the rows of ``platters``, and j over the tokens that
    are there. O(N (log N + D)) for each channel; a dense product takes O(N^2 D).

    Toroidal attention (:mod:`vfejax.attention.toroidal`) without content is ``ring = -slope
    circular_distance`` and ``platters = -slope platter_distance``. A window is ``-inf`` beyond it.
    Linear causal weights of n tokens are a ring of 2 n entries whose second half is ``-inf``.

    Args:
        value: floating, ``[b, n, h, c]``. Platter k owns the k-th group of h/D heads.
        ring: score of every offset, ``[N]`` or, by head of a platter, ``[h/D, N]``, with N >= n.
        platters: score between platters, ``[D, D]`` or ``[h/D, D, D]``.
        mask: bool ``[b, n]``, True at real tokens; all by default.

    Returns:
        Shape and dtype of ``value``. Rows that reach nothing are 0, with zero gradient. Sums are
        kept in at least float32; see the module for the rounding error behind a mask.

    Raises:
        ValueError: for shapes that do not fit, naming the argument.

    >>> import jax.numpy as jnp
    >>> value = jnp.array([6.0, 0.0, 0.0]).reshape(1, 3, 1, 1)
    >>> ring = jnp.log(jnp.array([1.0, 2.0, 3.0]))  # from itself, from 1 before, from 2 before
    >>> position_attention(value, ring, jnp.zeros((1, 1))).ravel().round(4).tolist()
    [1.0, 2.0, 3.0]
    """
    torus = _torus(value, ring, platters, mask)
    values = _by_platter(value.astype(torus.weights.dtype), platters.shape[-1])
    return _by_token(_average(_gather(torus, values), None, torus), value.dtype)


def positive_features(x: Array) -> Array:
    """``1 + x`` above 0 and ``exp(x)`` below: positive, smooth to first order.

    Source: Katharopoulos et al., Transformers are RNNs (2020), equation 7.

    >>> import jax.numpy as jnp
    >>> positive_features(jnp.array([0.0, 2.0])).tolist()
    [1.0, 3.0]
    """
    return jnp.where(x <= 0, jnp.exp(jnp.minimum(x, 0.0)), 1.0 + x)


def kernel_attention(
    query: Array,
    key: Array,
    value: Array,
    ring: Array,
    platters: Array,
    *,
    feature_fn: Callable[[Array], Array] = positive_features,
    mask: Array | None = None,
) -> Array:
    """Attention with weights ``<f(q_ik), f(k_jl)> w((i - j) mod N) p(k, l)``, divided by their sum.

    The query is the same for all keys, so it leaves the sum, which is a circular convolution:

        y_ik = f(q_ik)^T M_ik / f(q_ik)^T m_ik,
        M_ik = sum_jl w((i - j) mod N) p(k, l) f(k_jl) v_jl^T,  m_ik likewise without v,

    with w and p the exponentials of ``ring`` and ``platters``, each up to a factor that cancels.
    O(N f c (log N + D)) for each head with f features; a dense product takes O(N^2 D (f + c)). With
    f = c = 32 on a CPU that is two thirds of the dense time at N = 2048, and a fifth at 8192.

    Args:
        query: floating, ``[b, n, h, c]``. Platter k owns the k-th group of h/D heads.
        key: ``[b, n, h, c]``.
        value: ``[b, n, h, e]``.
        ring: log weight of every offset, ``[N]`` or, by head of a platter, ``[h/D, N]``, N >= n.
        platters: log weight between platters, ``[D, D]`` or ``[h/D, D, D]``.
        feature_fn: ``[..., c] -> [..., f]``, positive.
        mask: bool ``[b, n]``, True at real tokens; all by default.

    Returns:
        ``[b, n, h, e]`` in the dtype of ``value``. Rows that reach nothing are 0, with zero
        gradient. Sums are kept in at least float32; see the module for the rounding error.

    Raises:
        ValueError: for shapes that do not fit, naming the argument.

    Source: Luo et al., Stable, fast and accurate: Kernelized attention with relative positional
    encoding (2021), with a circulant in place of their Toeplitz matrix, and with platters.

    >>> import jax.numpy as jnp
    >>> tokens = jnp.arange(6.0).reshape(1, 3, 1, 2)
    >>> even = jnp.zeros(3), jnp.zeros((1, 1))
    >>> equal = kernel_attention(tokens, jnp.zeros((1, 3, 1, 2)), tokens, *even)  # equal keys
    >>> equal[0, :, 0].round(4).tolist()
    [[2.0, 3.0], [2.0, 3.0], [2.0, 3.0]]
    """
    torus = _torus(value, ring, platters, mask)
    depth, real, dtype = platters.shape[-1], torus.weights.dtype, value.dtype
    for name, x in (("query", query), ("key", key)):
        check_heads(name, x, depth)
        if x.shape[:3] != value.shape[:3] or x.shape != query.shape:
            raise ValueError(
                f"query and key must be {(*value.shape[:3], query.shape[-1])} to fit value "
                f"{value.shape}, got {query.shape} and {key.shape}"
            )
    # Before they are multiplied, so that a NaN behind the mask reaches no gradient.
    there = torus.present[:, : value.shape[1], None, None]
    key, value = (jnp.where(there, x.astype(real), 0.0) for x in (key, value))
    parts = feature_fn(query.astype(real)), feature_fn(key), value
    readers, features, values = (_by_platter(x, depth) for x in parts)
    counted = jnp.concatenate([values, jnp.ones_like(values[..., :1, :])], axis=-2)
    pairs = features[..., :, None, :] * counted[..., None, :, :]
    sums = _gather(torus, jnp.reshape(pairs, (*pairs.shape[:3], -1, pairs.shape[-1])))
    read = jnp.sum(readers[..., :, None, :] * jnp.reshape(sums, pairs.shape), axis=-3)
    return _by_token(_average(read[..., :-1, :], read[..., -1:, :], torus), dtype)
