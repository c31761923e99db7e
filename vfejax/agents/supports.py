"""Where agents are: weights of their terms on a base manifold, and how far they have neighbours.

An agent's support chi_i is a number in [0, 1] at each point of the base manifold. It weighs all
terms of agent i and, as a sender, the attention that others pay to it.
"""

import jax
import jax.numpy as jnp

from vfejax.agents.population import Population, check_array
from vfejax.types import Array

__all__ = ["log_support", "measure", "neighbours_present"]


def measure(
    population: Population, supports: Array | None, quadrature: Array | None
) -> Array | None:
    """Weight chi_i(c) w(c) of agent i at point c, ``[n, *grid]``: support times quadrature weight.

    Args:
        population: gives the shape ``[n, *grid]`` and the precision.
        supports: chi ``[n, *grid]``, 1 by default.
        quadrature: w ``[*grid]``, 1 by default.

    Returns:
        ``[n, *grid]``, or None when every weight is 1.

    Raises:
        ValueError: when a shape or dtype does not fit, naming the array.

    >>> from vfejax.beliefs.gaussian import Gaussian
    >>> belief = Gaussian(jnp.zeros((2, 4, 1)), jnp.ones((2, 4, 1, 1)))  # two agents, four points
    >>> agents = Population(belief, belief, jnp.zeros((2, 4, 3)))
    >>> measure(agents, None, jnp.full(4, 0.25)).sum(axis=1)
    Array([1., 1.], dtype=float32)
    """
    shape, dtype = population.phi.shape[:-1], population.belief.mean.dtype
    for name, array, want in (("supports", supports, shape), ("quadrature", quadrature, shape[1:])):
        if array is not None:
            check_array(name, array, want, dtype)
    if supports is None:
        if quadrature is None:
            return None
        return jnp.broadcast_to(quadrature[None], shape)
    return supports if quadrature is None else supports * quadrature[None]


def log_support(chi: Array) -> Array:
    """``log chi``, ``-inf`` outside the support, where the gradient is 0 (that of a bare logarithm
    is NaN).

    >>> log_support(jnp.array([0.0, 1.0]))
    Array([-inf,   0.], dtype=float32)
    """
    outside = chi <= 0
    return jnp.where(outside, -jnp.inf, jnp.log(jnp.where(outside, 1.0, chi)))


def _either(left: Array, right: Array) -> Array:
    """``1 - (1 - a) (1 - b)`` as a sum of terms that are not negative: nothing cancels, however
    small a and b are.
    """
    return left + (1.0 - left) * right


def neighbours_present(
    chi: Array, receivers: Array | None = None, senders: Array | None = None
) -> Array:
    """How far agent i has neighbours at a point, ``c_i = 1 - prod_{j != i} (1 - chi_j)``.

    Args:
        chi: supports ``[n]``.
        receivers: integers ``[e]`` of a neighbour list; by default all others are neighbours.
        senders: integers ``[e]``, one for each receiver; an edge from an agent to itself does not
            count.

    Returns:
        ``[n]``, with a relative error of a few eps; 0 for an agent without neighbours.

    >>> neighbours_present(jnp.array([1.0, 0.0, 0.25]))
    Array([0.25, 1.  , 1.  ], dtype=float32)
    """
    none = jnp.zeros_like(chi[:1])
    if receivers is None or senders is None:
        before = jax.lax.associative_scan(_either, chi)
        after = jax.lax.associative_scan(_either, chi, reverse=True)
        return _either(
            jnp.concatenate([none, before[:-1]])[: chi.size],
            jnp.concatenate([after[1:], none])[: chi.size],
        )
    order = jnp.argsort(receivers)
    # Ends of NumPy, which a compiled function may close over, take no traced order.
    receivers, senders = (jnp.asarray(ends, jnp.int32)[order] for ends in (receivers, senders))

    def join(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        return jnp.where(right[1], right[0], _either(left[0], right[0])), left[1] | right[1]

    # Runs of equal receivers, each joined on its own: a flag marks where a run begins.
    present = jnp.where(receivers == senders, 0.0, chi[senders])
    starts = jnp.diff(receivers, prepend=-1) != 0
    joined, _ = jax.lax.associative_scan(join, (present, starts))
    last = jnp.diff(receivers, append=chi.size) != 0
    return jax.ops.segment_sum(jnp.where(last, joined, 0.0), receivers, chi.size)
