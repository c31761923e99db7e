"""Spectra of linear maps of observables: eigenpairs, residuals that show which are spurious,
forecasts.

An eigenfunction of ``z' = K z`` is ``g(x) = w . phi(x)`` with ``K^T w = lambda w``: along a
trajectory it is multiplied by lambda at every step. A mode v with ``K v = lambda v`` says how much
of it there is in each observable, ``z = sum_i v_i g_i``.

A finite dictionary gives eigenpairs that the system does not have. Their residual

    res^2 = |Y w - lambda X w|^2 / |X w|^2

tells them, and it needs only the statistics of the data: take those of data that were held out, for
on fewer samples than observables every residual is 0. All but :func:`forecast` runs on the host, in
float64 and outside ``jit``.

Source: Colbrook, Ayton and Szoke, Residual dynamic mode decomposition (2023), with real data and
the factor in place of the three matrices of products.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from vfejax.koopman.streaming import Factor, check
from vfejax.numerics import as_floating, common_dtype, matvec
from vfejax.types import Array

__all__ = [
    "Spectrum",
    "TimeScales",
    "directed_hausdorff_distance",
    "eig",
    "forecast",
    "pseudospectrum",
    "residuals",
    "time_scales",
]


class Spectrum(NamedTuple):
    """Eigenpairs, those of largest modulus first.

    Attributes:
        values: lambda ``[d]``, complex.
        functions: left eigenvectors w as columns ``[d, d]``, of unit length: ``g = phi(x) @
            functions``.
        modes: right eigenvectors v as columns ``[d, d]``, with ``functions^T modes = 1``.
    """

    values: np.ndarray
    functions: np.ndarray
    modes: np.ndarray


class TimeScales(NamedTuple):
    """``decay [d]``, the time in which a mode falls by e (infinite at modulus 1, negative for one
    that grows), and ``frequency [d]`` in turns per unit of time.
    """

    decay: np.ndarray
    frequency: np.ndarray


def eig(operator: ArrayLike) -> Spectrum:
    """Eigenvalues, eigenfunctions and modes of ``operator [d, d]``.

    Of a defective matrix, whose eigenvectors do not span the space, the modes are the pseudoinverse
    of the functions.

    Raises:
        ValueError: for a matrix that is not square, not real or not finite.

    >>> eig([[0.5, 0.0], [1.0, 0.9]]).values.tolist()
    [(0.9+0j), (0.5+0j)]
    """
    if np.iscomplexobj(operator):
        raise ValueError("operator must be real, got complex numbers")
    matrix = np.asarray(operator, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"operator must be square [d, d], got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError("operator must be finite, got NaN or infinity")
    values, functions = np.linalg.eig(matrix.T)
    values, functions = values.astype(np.complex128), functions.astype(np.complex128)
    moduli = np.abs(values)
    unit = np.max(moduli, initial=0.0)
    order = np.lexsort((-values.imag, -values.real, -(moduli / (unit or 1.0)).round(12)))
    functions = functions[:, order]
    return Spectrum(values[order], functions, np.linalg.pinv(functions.T))


def time_scales(values: ArrayLike, dt: float = 1.0) -> TimeScales:
    """``-dt / log |lambda|`` and ``arg lambda / (2 pi dt)``.

    Raises:
        ValueError: for a dt that is not above 0.

    >>> scales = time_scales([np.exp(-0.5), 1j], dt=1.0)
    >>> scales.decay.round(4).tolist(), scales.frequency.round(4).tolist()
    ([2.0, inf], [0.0, 0.25])
    """
    if not dt > 0:
        raise ValueError(f"dt must be above 0, got {dt}")
    values = np.asarray(values, np.complex128)
    with np.errstate(divide="ignore"):
        rate = np.log(np.abs(values))
        decay = np.where(rate == 0, np.inf, -dt / np.where(rate == 0, 1.0, rate))
    return TimeScales(decay, np.angle(values) / (2.0 * np.pi * dt))


def _check_square(factor: Factor) -> None:
    if factor.cross.shape[0] != factor.cross.shape[1]:
        raise ValueError(
            "now and following must be lifted by one dictionary, got "
            f"{factor.cross.shape[0]} and {factor.cross.shape[1]} observables"
        )


def residuals(factor: Factor, values: ArrayLike, functions: ArrayLike) -> np.ndarray:
    """How far eigenpairs are from what the data of a factor do: 0 for exact, about 1 for none.

    Args:
        factor: statistics, best of data that were held out.
        values: lambda ``[p]``.
        functions: coefficients w of the eigenfunctions as columns ``[d, p]``.

    Returns:
        ``|Y w - lambda X w| / |X w|``, ``[p]``; NaN for a function that is 0 on the data.

    Raises:
        ValueError: for shapes that do not fit, or d other than e.

    >>> import jax.numpy as jnp
    >>> from vfejax.koopman import streaming
    >>> x = jnp.array([[1.0], [2.0]])
    >>> factor = streaming.update(streaming.init(1), x, 0.5 * x)
    >>> residuals(factor, [0.5, 0.7], [[1.0, 1.0]]).round(4).tolist()
    [0.0, 0.2]
    """
    _check_square(factor)
    now, cross, residual = (np.asarray(x, np.float64) for x in factor[:3])
    values, functions = np.asarray(values), np.asarray(functions)
    if values.ndim != 1 or functions.shape != (len(now), len(values)):
        raise ValueError(
            f"values [p] and functions [{len(now)}, p] must fit, got shapes {values.shape} and "
            f"{functions.shape}"
        )
    before, after = now @ functions, cross @ functions
    error = np.linalg.norm(after - values * before, axis=0)
    error = np.hypot(error, np.linalg.norm(residual @ functions, axis=0))
    size = np.linalg.norm(before, axis=0)
    return error / np.where(size == 0, np.nan, size)


def pseudospectrum(factor: Factor, points: ArrayLike) -> np.ndarray:
    """The least residual that any function of the dictionary has at each point of the plane: the
    smallest singular value of ``[cross - lambda now; residual] now^-1``.

    Where it is above epsilon there is no eigenvalue that the data know to epsilon. One singular
    value decomposition a point, O(d^3).

    Args:
        factor: statistics of at least d samples, with d = e.
        points: lambda, complex, any shape.

    Returns:
        Residuals, in the shape of the points.

    Raises:
        ValueError: for too few samples, observables that depend on one another, d other than e, or
            points that are not finite.

    >>> import jax.numpy as jnp
    >>> from vfejax.koopman import streaming
    >>> x = jnp.array([[1.0], [2.0]])
    >>> factor = streaming.update(streaming.init(1), x, 0.5 * x)
    >>> pseudospectrum(factor, [0.5, 0.5 + 0.3j]).round(4).tolist()
    [0.0, 0.3]
    """
    _check_square(factor)
    check(factor)
    now, cross, residual = (np.asarray(x, np.float64) for x in factor[:3])
    inverse = np.linalg.inv(now)
    moved, left = cross @ inverse, residual @ inverse
    points = np.asarray(points, np.complex128)
    if not np.isfinite(points).all():
        raise ValueError("points must be finite, got NaN or infinity")

    def least(point: complex) -> float:
        matrix = np.concatenate([moved - point * np.eye(len(now)), left])
        return float(np.linalg.svd(matrix, compute_uv=False)[-1])

    return np.array([least(point) for point in points.ravel()]).reshape(points.shape)


def forecast(
    operator: Array, state: Array, steps: int, lift_fn: Callable[[Array], Array] | None = None
) -> Array:
    """``K z, K^2 z, ..., K^steps z``: what follows, in lifted observables and linearly.

    Args:
        operator: K ``[d, d]``.
        state: z ``[..., d]``, lifted once.
        steps: how many to predict, at least 0.
        lift_fn: applied after every step where given, for instance to lift the predicted state
            again; a forecast is then no longer linear.

    Returns:
        ``[steps, ..., d]``, in the wider of the two dtypes.

    Raises:
        ValueError: for shapes that do not fit, a lift_fn that changes them, or a negative number of
            steps.

    >>> import jax.numpy as jnp
    >>> forecast(jnp.array([[0.5]]), jnp.array([8.0]), 3).tolist()
    [[4.0], [2.0], [1.0]]
    """
    operator, state = as_floating(operator, "operator"), as_floating(state, "state")
    dtype = common_dtype(operator, state)
    operator, state = operator.astype(dtype), state.astype(dtype)
    if state.ndim < 1 or operator.shape != (state.shape[-1],) * 2:
        raise ValueError(
            f"operator [d, d] and state [..., d] must fit, got shapes {operator.shape} and "
            f"{state.shape}"
        )
    if steps < 0:
        raise ValueError(f"steps must not be negative, got {steps}")

    def step(state: Array, _: None) -> tuple[Array, Array]:
        state = matvec(operator, state)
        lifted = state if lift_fn is None else lift_fn(state)
        if lifted.shape != state.shape:
            raise ValueError(
                f"lift_fn must return observables {state.shape}, as it got, got {lifted.shape}"
            )
        return lifted, lifted

    return jax.lax.scan(step, state, None, length=steps)[1]


def directed_hausdorff_distance(estimated: ArrayLike, true: ArrayLike) -> float:
    """The largest distance of an estimated eigenvalue from the true one nearest to it.

    Args:
        estimated: complex numbers ``[p]``, p >= 1.
        true: complex numbers ``[q]``, q >= 1.

    Raises:
        ValueError: for no numbers.

    >>> directed_hausdorff_distance([1.0, 0.5j], [1.0, 0.6j, -1.0])
    0.09999999999999998
    """
    estimated, true = np.ravel(estimated), np.ravel(true)
    if not (len(estimated) and len(true)):
        raise ValueError(f"need eigenvalues, got {len(estimated)} estimated and {len(true)} true")
    return float(np.max(np.min(np.abs(estimated[:, None] - true[None, :]), axis=1)))
