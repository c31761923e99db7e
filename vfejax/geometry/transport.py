"""Frames and the transport between them: ``Omega_ij = U_i U_j^{-1}``."""

from collections.abc import Sequence
from functools import reduce

import jax.numpy as jnp

from vfejax.geometry import groups
from vfejax.types import Array, ExponentialFn

__all__ = ["frames", "holonomy", "transport_operator"]


def frames(phi: Array, generators: Array, exponential: ExponentialFn = groups.exponential) -> Array:
    """Gauge frames ``U = exp(sum_a phi^a J_a)``.

    Args:
        phi: frame coordinates ``[..., a]`` (radians for rotations).
        generators: Lie-algebra basis ``[a, k, k]``.
        exponential: how to exponentiate; :func:`vfejax.geometry.irreps.so3_exponential` gives the
            closed form.

    Returns:
        ``[..., k, k]``.
    """
    return exponential(phi, jnp.asarray(generators))


def transport_operator(
    phi_i: Array, phi_j: Array, generators: Array, exponential: ExponentialFn = groups.exponential
) -> Array:
    """Transport ``Omega_ij = U_i U_j^{-1}`` from the frame of j to the frame of i.

    It acts on a belief as ``(Omega mu, Omega Sigma Omega^T)``. The inverse is ``exp(-phi_j)``,
    exact for every group.

    Args:
        phi_i: coordinates of the receiving frame ``[..., a]``.
        phi_j: coordinates of the sending frame ``[..., a]``.
        generators: Lie-algebra basis ``[a, k, k]``.
        exponential: as in :func:`frames`.

    Returns:
        ``[..., k, k]``.
    """
    outward = frames(phi_i, generators, exponential)
    return jnp.matmul(outward, frames(-phi_j, generators, exponential), precision="highest")


def holonomy(operators: Sequence[Array]) -> Array:
    """Ordered product ``Omega_1 Omega_2 ... Omega_n`` of the transports around a loop.

    It is the identity whenever ``Omega_ij = U_i U_j^{-1}``: such a connection is flat. A departure
    measures curvature (or rounding).

    Args:
        operators: transports ``[..., k, k]`` in the order of the product.

    Returns:
        ``[..., k, k]``.
    """
    return reduce(lambda left, right: jnp.matmul(left, right, precision="highest"), operators)
