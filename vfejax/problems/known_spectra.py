"""Systems whose Koopman eigenvalues are known, as data for spectral methods.

The noisy logistic map has an operator of finite rank, the slow manifold an invariant dictionary,
and the rotating system an eigenvalue that moves.
"""

from math import comb

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from vfejax.types import Array

__all__ = [
    "logistic_map",
    "logistic_pairs",
    "logistic_spectrum",
    "rotating_system",
    "slow_manifold",
    "slow_manifold_spectrum",
]


def logistic_map(key: Array, num: int, order: int = 10, *, dtype: DTypeLike = jnp.float32) -> Array:
    """A trajectory of ``x' = 4 x (1 - x) + u mod 1``, where u has the density ``~ cos(pi u)^(2
    order)``.

    Args:
        key: of ``jax.random``.
        num: states.
        order: M >= 1; the larger, the less noise.
        dtype: floating.

    Returns:
        ``[num, 1]``, in [0, 1), from a uniform start.

    Raises:
        ValueError: for an order below 1.

    Source: Ostruszka et al., Dynamical entropy for systems with stochastic perturbation (2000).

    >>> logistic_map(jax.random.key(0), 5).shape
    (5, 1)
    """
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
    start_key, noise_key = jax.random.split(key)
    # The tangent of pi u is a ratio as in Student's t with 2 M + 1 degrees of freedom.
    normal = jax.random.normal(noise_key, (num, 2 * order + 2), dtype)
    noise = jnp.arctan2(normal[:, 0], jnp.linalg.norm(normal[:, 1:], axis=1)) / np.pi

    def step(x: Array, u: Array) -> tuple[Array, Array]:
        return jnp.mod(4.0 * x * (1.0 - x) + u, 1.0), x

    return jax.lax.scan(step, jax.random.uniform(start_key, (), dtype), noise)[1][:, None]


def logistic_pairs(num: int, order: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """States spread evenly over [0, 1] and what follows each in :func:`logistic_map`, with noise
    spread evenly over its distribution.

    The leading eigenvalues are ill-conditioned: from 10,000 states of a trajectory the second is
    known to about 0.1, from as many such pairs, a rank-one lattice, to 0.01.

    Args:
        num: pairs.
        order: M >= 1 of the noise.

    Returns:
        ``now [num, 1]`` and ``following [num, 1]``, float64.

    >>> now, following = logistic_pairs(4)
    >>> now[:, 0].tolist()
    [0.125, 0.375, 0.625, 0.875]
    """
    now = (np.arange(num) + 0.5) / num
    grid = np.linspace(-0.5, 0.5, 4001)
    share = np.concatenate(
        [[0.0], np.cumsum(np.cos(np.pi * (grid[1:] + grid[:-1]) / 2) ** (2 * order))]
    )
    golden = (np.sqrt(5.0) - 1.0) / 2.0
    noise = np.interp((np.arange(num) + 0.5) * golden % 1.0, share / share[-1], grid)
    following = (4.0 * now * (1.0 - now) + noise) % 1.0
    return now[:, None], following[:, None]


def logistic_spectrum(order: int = 10) -> np.ndarray:
    """The ``2 order + 1`` eigenvalues of :func:`logistic_map` that are not zero, largest first.

    The noise maps every function to a trigonometric polynomial of degree M of ``F(x) = 4 x (1 -
    x)``, so the eigenvalues are those of the matrix ``c_k <e_k, e_l o F>``, with ``e_k = exp(2 pi i
    k x)`` and c_k the characteristic function of the noise; by Gauss-Legendre quadrature.

    >>> logistic_spectrum(10)[:2].round(4).tolist()
    [(1+0j), (-0.1933+0.1909j)]
    """
    nodes, weights = np.polynomial.legendre.leggauss(40 * order)
    x, weights = 0.5 * (nodes + 1.0), 0.5 * weights
    k = np.arange(-order, order + 1)
    noise = np.array([comb(2 * order, order + i) / comb(2 * order, order) for i in k])
    waves = np.exp(-2j * np.pi * k[:, None] * x)
    mapped = np.exp(2j * np.pi * k[None, :] * (4.0 * x * (1.0 - x))[:, None])
    values = np.linalg.eigvals(noise[:, None] * ((waves * weights) @ mapped))
    return values[np.lexsort((-values.imag, -np.abs(values).round(12)))]


def slow_manifold(x: Array, slow: float = 0.9, fast: float = 0.5, curvature: float = 0.2) -> Array:
    """One step of ``x' = slow x, y' = fast y + curvature x^2`` for states ``[..., 2]``.

    ``x, y, x^2`` are mapped to combinations of themselves.

    Args:
        x: states (x, y) ``[..., 2]``.
        slow: eigenvalue of x.
        fast: eigenvalue of y beside its manifold.
        curvature: of the manifold, up to a factor.

    Returns:
        States ``[..., 2]``.

    Source: Brunton et al., Koopman invariant subspaces (2016), with a map in place of a flow.

    >>> slow_manifold(jnp.array([2.0, 3.0]), 0.5, 0.5, 0.25).tolist()
    [1.0, 2.5]
    """
    return jnp.stack([slow * x[..., 0], fast * x[..., 1] + curvature * x[..., 0] ** 2], axis=-1)


def slow_manifold_spectrum(degree: int, slow: float = 0.9, fast: float = 0.5) -> np.ndarray:
    """Eigenvalues ``slow^i fast^j`` of :func:`slow_manifold` with ``1 <= i + j <= degree``, largest
    first.

    Args:
        degree: largest ``i + j``, at least 1.
        slow: eigenvalue of x.
        fast: eigenvalue of y beside its manifold.

    >>> slow_manifold_spectrum(2).round(4).tolist()
    [0.9, 0.81, 0.5, 0.45, 0.25]
    """
    found = [
        slow**i * fast ** (total - i) for total in range(1, degree + 1) for i in range(total + 1)
    ]
    return np.sort(np.array(found))[::-1]


def rotating_system(num: int, dt: float = 0.1, drift: ArrayLike = 0.1) -> tuple[Array, Array]:
    """A vector that turns ever faster: by ``(1 + drift t) dt`` radians in the step at time t.

    Args:
        num: states.
        dt: time between states.
        drift: of the frequency, per unit of time.

    Returns:
        States ``[num, 2]`` of unit length and the eigenvalue's angle at each step ``[num - 1]``, in
        the default float.

    Source: Zhang, Rowley, Deem and Cattafesta, Online dynamic mode decomposition (2019), section 5.

    >>> states, angle = rotating_system(3)
    >>> [f"{a:.3f}" for a in angle]
    ['0.100', '0.101']
    """
    time = dt * jnp.arange(num - 1).astype(jnp.result_type(float))
    angle = (1.0 + jnp.asarray(drift, time.dtype) * time) * dt
    turned = jnp.concatenate([jnp.zeros((1,), time.dtype), jnp.cumsum(angle)])
    return jnp.stack([jnp.cos(turned), -jnp.sin(turned)], axis=-1), angle
