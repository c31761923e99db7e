"""The published shortcut gradients of the resolvent diagonal: wrong, kept to measure how wrong.

Both pretend that ``G_ii`` depends on ``a_i`` alone and forget the other sites, the couplings and,
for the second, the formula:

    dG_ii / da_i = -G_ii^2      (the diagonal of the exact Jacobian -G_ij G_ji, its off-diagonal part dropped)
    dG_ii / da_i = -1 / G_ii^2  (empirical)

On random chains of 512 sites the relative errors are 0.5 to 0.8 and 5 to 22, the cosines to the
gradient 0.9 to 0.6 and 0.07 to 0.00 (``benchmarks/resolvent_gradients.py``). Train with
:func:`vfejax.spectral.resolvent.resolvent_diagonal`.
"""

from functools import partial

import jax
import jax.numpy as jnp

from vfejax.spectral.resolvent import resolvent_diagonal
from vfejax.types import Array

__all__ = ["resolvent_diagonal_grad_blend"]


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _replace_gradient(exact: Array, shift: Array, grad_blend: float) -> Array:
    """``exact``, as if its derivative in ``shift``, which is a - z, were the shortcut's."""
    del shift, grad_blend  # the derivative rule reads them
    return exact


@_replace_gradient.defjvp
def _replace_gradient_jvp(grad_blend, primals, tangents):
    exact, _ = primals
    square = exact * exact
    return exact, -((1.0 - grad_blend) * square + grad_blend / square) * tangents[1]


def resolvent_diagonal_grad_blend(
    diagonal: Array,
    superdiagonal: Array,
    subdiagonal: Array,
    z: Array | complex,
    *,
    grad_blend: float,
) -> Array:
    """Exact resolvent diagonal with the blended shortcut ``-((1 - grad_blend) G^2 + grad_blend /
    G^2)`` as its gradient.

    Args:
        diagonal, superdiagonal, subdiagonal, z: as in
            :func:`vfejax.spectral.resolvent.resolvent_diagonal`.
        grad_blend: 0 for the ``G^2`` rule, 1 for the ``1 / G^2`` rule.

    Returns:
        Complex ``[..., n]``. The gradient reaches ``diagonal`` and ``z``, each entry through its
        own site; the couplings get 0.
    """
    exact = jax.lax.stop_gradient(resolvent_diagonal(diagonal, superdiagonal, subdiagonal, z))
    z = jnp.asarray(z, exact.dtype)
    shift = jnp.broadcast_to(diagonal.astype(exact.dtype), exact.shape) - jnp.broadcast_to(
        z[..., None], exact.shape
    )
    return _replace_gradient(exact, shift, grad_blend)
