"""Slow oracles for tridiagonal matrices: dense inverses in NumPy, 40-digit recursions in mpmath,
random chains.
"""

import mpmath
import numpy as np


def chain(rng, n, *, batch=(), hermitian=False, dtype="complex128"):
    """Random ``(a, b, c, z)`` with Im z = 0.5: a non-symmetric complex chain, or a Hermitian one
    with a shared coupling.
    """
    real = np.finfo(dtype).dtype

    def draw(*shape):
        x = rng.standard_normal(shape)
        return (x if hermitian else x + 0.3j * rng.standard_normal(shape)).astype(
            real if hermitian else dtype
        )

    a, b = draw(*batch, n), draw(*batch, n - 1)
    c = b if hermitian else draw(*batch, n - 1)
    z = (rng.standard_normal(batch) + (0.5j if hermitian else 4j)).astype(dtype)
    return a, b, c, z


def matrix(a, b, c, z):
    """``T - z`` in complex128, ``[..., n, n]``, leading axes broadcast."""
    n = a.shape[-1]
    batch = np.broadcast_shapes(a.shape[:-1], b.shape[:-1], c.shape[:-1], np.shape(z))
    out, i = np.zeros((*batch, n, n), np.complex128), np.arange(n)
    out[..., i, i] = np.asarray(a) - np.asarray(z)[..., None]
    out[..., i[:-1], i[1:]] = b
    out[..., i[1:], i[:-1]] = c
    return out


def resolvent(a, b, c, z):
    return np.linalg.inv(matrix(a, b, c, z))


def diagonal(x):
    return np.diagonal(x, axis1=-2, axis2=-1)


def left(a, b, c, z):
    """``gL_i`` by one dense inverse for every leading block."""
    t = matrix(a, b, c, z)
    return np.stack(
        [np.linalg.inv(t[..., : i + 1, : i + 1])[..., i, i] for i in range(t.shape[-1])], -1
    )


def adjoint(a, b, c, z, w):
    """Cotangents of (a, b, c, z) for the cotangent ``w`` of ``diag G`` (one chain): ``dF/dT = -(G
    diag(w) G)^T``.
    """
    g = resolvent(a, b, c, z)
    slope = -(g @ (w[:, None] * g)).T
    return np.diag(slope), np.diag(slope, 1), np.diag(slope, -1), -np.trace(slope)


def theta_phi(a, b, c, z, digits=40):
    """``theta_i phi_i / theta_n`` of one chain with mpmath: the textbook determinants, which need
    its exponent range.
    """
    with mpmath.workdps(digits):
        a, b, c = ([mpmath.mpmathify(complex(x)) for x in values] for values in (a, b, c))
        d = [x - mpmath.mpmathify(complex(z)) for x in a]
        k = [x * y for x, y in zip(b, c, strict=True)]
        n = len(d)
        theta, phi = [mpmath.mpf(1), d[0]], [mpmath.mpf(1), d[-1]]
        for i in range(1, n):
            theta.append(d[i] * theta[-1] - k[i - 1] * theta[-2])
            phi.append(d[n - 1 - i] * phi[-1] - k[n - 1 - i] * phi[-2])
        return np.array([complex(theta[i] * phi[n - 1 - i] / theta[n]) for i in range(n)])
