"""Frames and the transport between them: ``Omega_ij = U_i U_j^{-1}``."""

from collections.abc import Sequence
from functools import reduce

from vfejax.geometry import groups
from vfejax.geometry.groups import Generators
from vfejax.numerics import matmul
from vfejax.types import Array

__all__ = ["frames", "holonomy", "transport_operator"]


def frames(phi: Array, generators: Generators) -> Array:
    """Gauge frames ``U = exp(sum_a phi^a J_a)``.

    Args:
        phi: frame coordinates ``[..., a]`` (radians for rotations).
        generators: Lie-algebra basis ``[a, k, k]``, which means the general exponential, or a
            :class:`vfejax.geometry.groups.Group` with an exponential of its own.

    Returns:
        ``[..., k, k]``.

    >>> import jax.numpy as jnp
    >>> from vfejax.geometry import irreps
    >>> frames(jnp.zeros(3), irreps.so3((1,))).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    group = groups.as_group(generators)
    return group.exponential(phi, group.generators)


def transport_operator(phi_i: Array, phi_j: Array, generators: Generators) -> Array:
    """Transport ``Omega_ij = U_i U_j^{-1}`` from the frame of j to the frame of i.

    It acts on a belief as ``(Omega mu, Omega Sigma Omega^T)``. The inverse is ``exp(-phi_j)``,
    exact for every group.

    Args:
        phi_i: coordinates of the receiving frame ``[..., a]``.
        phi_j: coordinates of the sending frame ``[..., a]``.
        generators: Lie-algebra basis ``[a, k, k]``, or a :class:`vfejax.geometry.groups.Group`.

    Returns:
        ``[..., k, k]``.

    >>> import jax.numpy as jnp
    >>> from vfejax.geometry import irreps
    >>> here, there = jnp.array([0.0, 0.0, 1.5]), jnp.array([0.0, 0.0, 0.5])
    >>> omega = transport_operator(here, there, irreps.so3((1,)))
    >>> bool(jnp.allclose(omega, frames(here - there, irreps.so3((1,))), atol=1e-6))
    True
    """
    return matmul(frames(phi_i, generators), frames(-phi_j, generators))


def holonomy(operators: Sequence[Array]) -> Array:
    """Ordered product ``Omega_1 Omega_2 ... Omega_n`` of the transports around a loop.

    It is the identity whenever ``Omega_ij = U_i U_j^{-1}``: such a connection is flat. A departure
    measures curvature (or rounding).

    Args:
        operators: transports ``[..., k, k]`` in the order of the product.

    Returns:
        ``[..., k, k]``.

    >>> import jax.numpy as jnp
    >>> quarter = jnp.array([[0.0, -1.0], [1.0, 0.0]])
    >>> holonomy([quarter] * 4).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    return reduce(matmul, operators)
