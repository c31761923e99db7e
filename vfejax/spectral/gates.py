"""Causal sweeps through tridiagonal systems whose off-diagonal entries are given for every site.

Site i writes its diagonal d_i and the two numbers that couple it to the site before: c_i below the
diagonal and b_i above it. Elimination from the first site on gives

    gL_i = 1 / (d_i - k_i gL_{i-1}),   y_i = gL_i (x_i - c_i y_{i-1}),   k_i = b_i c_i,

the causal half of ``T^{-1} x``. With ``b = 0``, ``d = 1`` and ``c = -a`` this is the plain gate
``y_i = a_i y_{i-1} + x_i``. The fraction converges where couplings are small beside the diagonal:

    ``|d| >= 1`` and ``|k| < 1/4`` give ``|gL| < 2``: ``|gL_0| <= 1``, and ``|gL_{i-1}| < 2`` makes
    the next denominator larger than ``1 - 2/4``;
    ``|d| >= 1 + |k|`` gives ``|gL| <= 1``: ``|gL_{i-1}| <= 1`` makes the next denominator at least
    ``1 + |k| - |k|``.

Under the second bound the gate that acts, ``-gL_i c_i``, is never longer than c_i, so that with
``|c| <= 1`` nothing grows along a sequence of any length.

Source: Worpitzky's theorem (1865) for the first bound, in Lorentzen and Waadeland, Continued
fractions: convergence theory (2008); Orvieto et al., Resurrecting recurrent neural networks for
long sequences (2023), and De et al., Griffin: mixing gated linear recurrences with local attention
for efficient language models (2024), for the gate and its weight. The tridiagonal system that
contains it is ours.
"""

import jax
import jax.numpy as jnp

from vfejax.spectral.recurrence import PLATFORM, Scans, fraction_scan, linear_recurrence
from vfejax.spectral.resolvent import complex_dtype
from vfejax.spectral.streaming import StreamingState
from vfejax.spectral.tridiagonal import resolvent_matvec
from vfejax.types import Array

__all__ = [
    "bounded_coupling",
    "dominant_diagonal",
    "gate_weight",
    "polar_gate",
    "tridiagonal_solve",
    "tridiagonal_sweep",
]


def polar_gate(decay: Array, phase: Array) -> Array:
    """``exp(-decay + i phase)``, a complex gate of modulus at most 1 for ``decay >= 0``.

    >>> a = polar_gate(jnp.asarray(0.0), jnp.asarray(jnp.pi))
    >>> round(a.item().real, 3)
    -1.0
    """
    size = jnp.exp(-decay)
    return jax.lax.complex(size * jnp.cos(phase), size * jnp.sin(phase))


def gate_weight(decay: Array) -> Array:
    """``sqrt(1 - |a|^2)`` of a gate with ``|a| = exp(-decay)``: what keeps the variance of ``y_i =
    a_i y_{i-1} + sqrt(1 - |a_i|^2) u_i`` at that of white inputs u, whatever the gates.

    0 with gradient 0 at ``decay <= 0``; exact to rounding at small decays.

    >>> round(gate_weight(jnp.log(2.0)).item(), 3)
    0.866
    """
    closed = decay <= 0
    square = -jnp.expm1(-2.0 * jnp.where(closed, 1.0, decay))
    return jnp.where(closed, 0.0, jnp.sqrt(square))


def bounded_coupling(real: Array, imag: Array, bound: float = 0.25) -> Array:
    """``bound w / sqrt(1 + |w|^2)`` of ``w = real + i imag``: complex numbers within ``bound``, for
    w of any size.

    Args:
        real: floating ``[...]``.
        imag: same shape and dtype.
        bound: largest modulus.

    Returns:
        Complex ``[...]``.

    >>> bool(jnp.abs(bounded_coupling(jnp.asarray(1e30), jnp.asarray(-1e30))) <= 0.2500001)
    True
    >>> bounded_coupling(jnp.asarray(0.0), jnp.asarray(0.0)).item()
    0j
    """
    # Scaled so that squares do not overflow; the value does not depend on the scale.
    scale = jax.lax.stop_gradient(jnp.maximum(1.0, jnp.maximum(jnp.abs(real), jnp.abs(imag))))
    real, imag = real / scale, imag / scale
    shrink = bound * jax.lax.rsqrt(scale**-2 + real * real + imag * imag)
    return jax.lax.complex(real * shrink, imag * shrink)


def dominant_diagonal(coupling: Array) -> Array:
    """``1 + |k|`` of complex couplings, with gradient 0 at ``k = 0``: the smallest diagonal under
    which ``|gL| <= 1`` whatever came before.

    >>> dominant_diagonal(jnp.asarray([0j, 3 + 4j])).tolist()
    [1.0, 6.0]
    """
    square = coupling.real * coupling.real + coupling.imag * coupling.imag
    zero = square <= 0
    return 1.0 + jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def _checked(
    diagonal: Array, superdiagonal: Array, subdiagonal: Array, x: Array, mask: Array | None
) -> tuple[Array, Array, Array, Array]:
    """The four arrays, complex, and broadcast to the same leading axes."""
    n = x.shape[-2] if x.ndim > 1 else 0
    if n == 0:
        raise ValueError(f"x must be [..., n, c] with n >= 1, got {x.shape}")
    rows = {"diagonal": diagonal, "superdiagonal": superdiagonal, "subdiagonal": subdiagonal}
    for name, row in {**rows, **({} if mask is None else {"mask": mask})}.items():
        if row.ndim == 0 or row.shape[-1] != n:
            raise ValueError(f"{name} must be [..., {n}] for x {x.shape}, got {row.shape}")
    if mask is not None and mask.dtype != jnp.bool_:
        raise ValueError(f"mask must be boolean, got {mask.dtype}")
    dtype = complex_dtype(**rows, x=x)
    leading = [row.shape[:-1] for row in rows.values()] + [x.shape[:-2]]
    try:
        batch = jnp.broadcast_shapes(*leading, () if mask is None else mask.shape[:-1])
    except ValueError as error:
        shapes = ", ".join(f"{name} {row.shape}" for name, row in rows.items())
        raise ValueError(f"leading axes must broadcast, got {shapes}, x {x.shape}") from error
    d, b, c = (jnp.broadcast_to(row.astype(dtype), (*batch, n)) for row in rows.values())
    return d, b, c, jnp.broadcast_to(x.astype(dtype), (*batch, *x.shape[-2:]))


def _real_first(mask: Array, rows: tuple[Array, ...], x: Array) -> tuple[list[Array], Array, Array]:
    """Rows and x with the sites of the mask first and neutral sites behind them, and the order
    ``[..., n]`` that does it.
    """
    mask = jnp.broadcast_to(mask, rows[0].shape)
    order = jnp.argsort(~mask, axis=-1, stable=True)
    mask = jnp.take_along_axis(mask, order, axis=-1)

    def front(row: Array, neutral: float) -> Array:
        taken = jnp.take_along_axis(row, order, axis=-1)
        return jnp.where(mask, taken, jnp.asarray(neutral, row.dtype))

    moved = [front(row, neutral) for row, neutral in zip(rows, (1.0, 0.0, 0.0), strict=True)]
    taken = jnp.take_along_axis(x, order[..., None], axis=-2)
    return moved, jnp.where(mask[..., None], taken, jnp.zeros((), x.dtype)), order


def tridiagonal_sweep(
    diagonal: Array,
    superdiagonal: Array,
    subdiagonal: Array,
    x: Array,
    *,
    state: StreamingState | None = None,
    mask: Array | None = None,
    scans: Scans = PLATFORM,
) -> StreamingState:
    """``gL_i = 1 / (d_i - b_i c_i gL_{i-1})`` and ``y_i = gL_i (x_i - c_i y_{i-1})`` along a
    sequence.

    Units: any, also of sites of very different sizes in one sequence. A pivot ``d_i - b_i c_i
    gL_{i-1}`` counts as a pole by its size beside the two numbers that it is the difference of. The
    gates ``-gL_i c_i`` and, in the associative algorithm, their products must stay in range, and so
    must the size of a pole times 2^40 (2^100 in double precision) and over it, for y to pass it.

    Entry i of the off-diagonals couples site i to the site before it: ``c_i = T_{i,i-1}`` and ``b_i
    = T_{i-1,i}``. Those of the first site couple it to ``state``. Time and memory O(n c), forward
    and backward; gradients are exact in all arguments.

    Args:
        diagonal: d, that of ``T`` (of ``T - z`` if there is a z), real or complex, ``[..., n]``.
        superdiagonal: b, ``[..., n]``.
        subdiagonal: c, ``[..., n]``.
        x: ``[..., n, channels]``; gates are shared by the channels. Leading axes of all broadcast.
        state: where an earlier part of the sequence ended, ``left [...]`` and ``output [...,
            channels]`` of the broadcast shape; none by default.
        mask: booleans ``[..., n]``, False at padding, which leaves the state untouched: the entry
            of a padded site is the state before it. None when every site counts.
        scans: the algorithm.

    Returns:
        gL ``[..., n]`` and y ``[..., n, channels]``, complex. Entry i depends on sites 0..i alone,
        bit for bit, whatever follows. At a pole gL is large: 2^40 (2^100 in double precision) over
        a power of two of the size of that site, over 1 at a first site of 0, which has none. The
        last entries are the state to go on from, also by
        :func:`vfejax.spectral.streaming.streaming_step` with ``z = 0``.

    Raises:
        ValueError: when shapes do not fit or precisions differ.

    >>> a, ones = jnp.asarray([0.9, 0.5, 0.5]), jnp.ones(3)
    >>> sweep = tridiagonal_sweep(ones, 0 * ones, -a, jnp.ones((3, 1)))
    >>> sweep.output[:, 0].real.tolist()  # the plain gate: 1, 0.5 * 1 + 1, 0.5 * 1.5 + 1
    [1.0, 1.5, 1.75]
    """
    *rows, x = _checked(diagonal, superdiagonal, subdiagonal, x, mask)
    if state is None:
        state = StreamingState(jnp.zeros_like(rows[0][..., 0]), jnp.zeros_like(x[..., 0, :]))
    elif (state.left.shape, state.output.shape) != (rows[0].shape[:-1], x[..., 0, :].shape):
        raise ValueError(
            f"state must hold {rows[0].shape[:-1]} and {x[..., 0, :].shape}, got "
            f"{state.left.shape} and {state.output.shape}"
        )
    elif {state.left.dtype, state.output.dtype} != {x.dtype}:
        raise ValueError(
            f"state must be of {x.dtype}, as diagonal and x are, got {state.left.dtype} and "
            f"{state.output.dtype}"
        )
    if mask is not None:
        rows, x, _ = _real_first(mask, tuple(rows), x)
    c = rows[2]
    sites = [jnp.moveaxis(row, -1, 0) for row in rows]
    left = jnp.moveaxis(fraction_scan(sites[0], tuple(sites[1:]), state.left, scans), 0, -1)
    gates = -(left * c)[..., None]
    y = linear_recurrence(gates, left[..., None] * x, state.output, axis=-2, scans=scans)
    if mask is None:
        return StreamingState(left, y)
    # Site i sees as many sites as the mask has up to it: none is the state before the first.
    seen = jnp.broadcast_to(jnp.cumsum(mask, axis=-1), left.shape)
    left = jnp.concatenate([state.left[..., None], left], axis=-1)
    y = jnp.concatenate([state.output[..., None, :], y], axis=-2)
    return StreamingState(
        jnp.take_along_axis(left, seen, axis=-1),
        jnp.take_along_axis(y, seen[..., None], axis=-2),
    )


def tridiagonal_solve(
    diagonal: Array,
    superdiagonal: Array,
    subdiagonal: Array,
    x: Array,
    *,
    mask: Array | None = None,
    scans: Scans = PLATFORM,
) -> Array:
    """``T^{-1} x``: the two-sided twin of :func:`tridiagonal_sweep`, for encoders; every entry
    depends on the whole sequence.

    Args:
        diagonal: d, real or complex, ``[..., n]``.
        superdiagonal: b, ``[..., n]``: ``b_i = T_{i-1,i}``; the first entry is without effect.
        subdiagonal: c, ``[..., n]``: ``c_i = T_{i,i-1}``; likewise.
        x: ``[..., n, channels]``.
        mask: booleans ``[..., n]``, False at padding, which is cut out: its neighbours are joined,
            and its own entry is 0.
        scans: the algorithm.

    Returns:
        Complex ``[..., n, channels]``.

    Raises:
        ValueError: when shapes do not fit or precisions differ.

    >>> half, ones = jnp.full(2, 0.5), jnp.ones(2)
    >>> y = tridiagonal_solve(ones, half, half, jnp.ones((2, 1)))
    >>> bool(jnp.allclose(y[:, 0], 2 / 3))
    True
    """
    *rows, x = _checked(diagonal, superdiagonal, subdiagonal, x, mask)
    order = None
    if mask is not None:
        rows, x, order = _real_first(mask, tuple(rows), x)
    d, b, c = rows
    y = resolvent_matvec(d, b[..., 1:], c[..., 1:], 0.0, x, scans=scans)
    if order is None:
        return y
    return jnp.take_along_axis(y, jnp.argsort(order, axis=-1)[..., None], axis=-2)
