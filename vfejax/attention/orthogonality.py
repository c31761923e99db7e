"""How well an encoding distinguishes the positions of a torus, and its two axes.

The encoding of token i on platter k is the unit vector of the pairs' phases,

    E(i, k) = (exp(i (omega_m i + phi_m k)) / P^(1/2))_m,    m = 1 ... P,

with real and imaginary parts as coordinates. A step along the torus turns every phase, so distances
and angles between encodings depend on differences of positions alone. Everything here runs on the
host in float64.
"""

import numpy as np

from vfejax.attention.rope import Encoding

__all__ = ["collision_margin", "global_orthogonality", "local_orthogonality"]


def local_orthogonality(encoding: Encoding) -> float:
    """``|<omega, phi>| / (|omega| |phi|)``: the cosine of the angle between a small step along the
    ring and one across the platters.

    Returns:
        From 0 (the axes are orthogonal) to 1 (they are one); 0 where depth does not turn.

    >>> from vfejax.attention.encodings import geometric
    >>> local_orthogonality(geometric(8, 64, depth=2))
    0.0
    """
    omega, phi = encoding.sequence, encoding.depth
    size = float(np.linalg.norm(omega) * np.linalg.norm(phi))
    return abs(float(omega @ phi)) / size if size else 0.0


def _steps(rates: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """``E - E(0, 0)`` after these steps along one axis, complex ``[steps, pairs]``.

    By ``exp(i x) - 1 = 2 i sin(x/2) exp(i x/2)``, which keeps the digits of small steps.
    """
    half = 0.5 * offsets[:, None] * rates[None]
    return 2j * np.sin(half) * np.exp(1j * half) / rates.size**0.5


def global_orthogonality(encoding: Encoding, circumference: int, depth: int) -> float:
    """Greatest cosine between a step of any length along the ring and one across the platters,

        max over 0 < i < N, 0 < |k| < D of |<u_i, v_k>| / (|u_i| |v_k|),
        u_i = E(i, 0) - E(0, 0),  v_k = E(0, k) - E(0, 0).

    Its value for small steps is :func:`local_orthogonality`. A step of length 0, which two equal
    encodings make, does not count. O(N D P).

    Args:
        encoding: the encoding.
        circumference: N, tokens on the ring.
        depth: D, number of platters.

    Returns:
        From 0 (steps along different axes are always orthogonal) to 1; 0 for one platter.

    >>> from vfejax.attention.encodings import geometric, mixed
    >>> global_orthogonality(geometric(8, 64, depth=2), 64, 2)
    0.0
    >>> global_orthogonality(mixed(8, 64, depth=2), 64, 2) > 0.1
    True
    """
    across = np.concatenate([np.arange(1 - depth, 0), np.arange(1, depth)])
    u = _steps(encoding.sequence, np.arange(1, circumference))
    v = _steps(encoding.depth, across)
    sizes = np.linalg.norm(u, axis=-1)[:, None] * np.linalg.norm(v, axis=-1)[None]
    products = np.abs((u @ v.conj().T).real)
    cosines = np.divide(products, sizes, out=np.zeros_like(products), where=sizes > 0)
    return float(np.max(cosines, initial=0.0))


def collision_margin(encoding: Encoding, circumference: int, depth: int = 1) -> float:
    """Smallest distance of the encodings of two distinct positions of the torus,

        min over (i, k) != (j, l) of |E(i, k) - E(j, l)|
        = min over (o, p) != (0, 0), 0 <= o < N, |p| < D of
          (4/P sum_m sin^2((omega_m o + phi_m p) / 2))^(1/2).

    O(N D P).

    Args:
        encoding: the encoding.
        circumference: N, tokens on the ring.
        depth: D, number of platters.

    Returns:
        From 0, up to rounding, where two positions turn alike, to 2; 2 for a single position.

    >>> from vfejax.attention.encodings import geometric
    >>> round(collision_margin(geometric(8, 64, depth=2), 64, 2), 4)
    0.5102
    """
    along = np.arange(circumference)[:, None] * encoding.sequence[None]
    margins = [
        np.mean(4 * np.sin((along[int(p == 0) :] + p * encoding.depth[None]) / 2) ** 2, axis=-1)
        for p in range(1 - depth, depth)
    ]
    return float(np.sqrt(np.min(np.concatenate(margins), initial=4.0)))
