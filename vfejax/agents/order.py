"""Order parameters: a few numbers that say how a population's attention is organised.

Pure functions of attention weights ``[n, n]`` (rows are receivers, as
:func:`vfejax.agents.pairwise.attention_weights` gives them). Agents that are not ``active`` play no
part, whatever their entries hold: neither as receivers nor as senders. For a scale of a hierarchy,
``active`` is the mask of that scale.
"""

import jax
import jax.numpy as jnp

from vfejax.numerics import as_floating, matmul, transpose
from vfejax.types import Array

__all__ = ["attention_entropy", "effective_rank", "mean_attention_entropy", "modularity"]


def _active(attention: Array, active: Array | None) -> tuple[Array, Array]:
    """Attention with zeros where an agent is not active, and the mask ``[n]``."""
    attention = as_floating(attention, "attention")
    shape = attention.shape
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"attention must have shape [n, n], got {shape}")
    if active is None:
        return attention, jnp.ones(shape[:1], bool)
    active = jnp.asarray(active)
    if active.shape != shape[:1] or active.dtype != bool:
        raise ValueError(f"active must be booleans {shape[:1]}, got {active.dtype} {active.shape}")
    return jnp.where(active[:, None] & active[None, :], attention, 0.0), active


def attention_entropy(attention: Array, active: Array | None = None) -> Array:
    """Entropy of each agent's attention, ``H_i = -sum_j beta_ij log beta_ij``, in nats.

    ``exp(H_i)`` is the number of neighbours that an agent effectively listens to.

    Args:
        attention: beta ``[n, n]``, not negative; each row is divided by its sum.
        active: booleans ``[n]``; all agents by default.

    Returns:
        ``[n]``; 0 for an agent that listens to nobody or is not active.

    Raises:
        ValueError: when the shapes do not fit, or ``active`` is not boolean.

    >>> beta = jnp.array([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    >>> jnp.exp(attention_entropy(beta)).round(3).tolist()
    [2.0, 1.0, 1.0]
    """
    weights, _ = _active(attention, active)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    share = weights / jnp.where(total == 0, 1.0, total)
    return -jnp.sum(share * jnp.log(jnp.where(share == 0, 1.0, share)), axis=-1)


def mean_attention_entropy(attention: Array, active: Array | None = None) -> Array:
    """Mean of :func:`attention_entropy` over the active agents that listen to anyone, in nats.

    Args:
        attention: beta ``[n, n]``, not negative; each row is divided by its sum.
        active: booleans ``[n]``; all agents by default.

    Returns:
        A scalar from 0 to log of the number of neighbours; 0 when nobody listens.

    Raises:
        ValueError: when the shapes do not fit, or ``active`` is not boolean.

    >>> uniform = (1.0 - jnp.eye(4)) / 3.0
    >>> round(float(jnp.exp(mean_attention_entropy(uniform))), 3)  # each listens to three
    3.0
    """
    weights, _ = _active(attention, active)
    entropy = attention_entropy(attention, active)
    counted = jnp.sum(weights, axis=-1) != 0
    return jnp.sum(entropy) / jnp.maximum(jnp.sum(counted.astype(entropy.dtype)), 1.0)


def effective_rank(attention: Array, active: Array | None = None) -> Array:
    """Number of directions in which agents listen: the participation ratio of the squared singular
    values of the attention.

        r = (sum_k s_k^2)^2 / sum_k s_k^4 = tr(A^T A)^2 / tr((A^T A)^2)

    It is the exponential of an entropy of the shares ``s_k^2 / sum s^2``, Renyi's of order 2, and
    close to the number of groups that attend among themselves: about 1 for uniform attention, g for
    g large groups of one size, n for a permutation. The usual effective rank takes Shannon's
    entropy of the shares ``s_k / sum s``. It needs the singular values, whose batched computation
    in compiled code is what :mod:`vfejax.numerics` avoids, and its derivative is infinite at
    singular value 0. It also counts the many small singular values that the empty diagonal brings:
    16 for uniform attention among 64 agents, which is one group. This ratio is two traces, exact
    and smooth.

    Args:
        attention: A ``[n, n]``, any real numbers.
        active: booleans ``[n]``; all agents by default.

    Returns:
        A scalar from 1 to n; 0 when nobody listens. Time O(n^3).

    Raises:
        ValueError: when the shapes do not fit, or ``active`` is not boolean.

    Source: Roy and Vetterli, European Signal Processing Conference (2007) 606, on the effective
    rank by Shannon's entropy.

    >>> pairs = jnp.array([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
    >>> float(effective_rank(pairs)), round(float(effective_rank(jnp.ones((4, 4)))), 3)
    (4.0, 1.0)
    """
    weights, _ = _active(attention, active)
    # The ratio has no unit, but its fourth powers leave the range of float32.
    largest = jnp.max(jnp.abs(weights), initial=0.0)
    weights = weights / jax.lax.stop_gradient(jnp.where(largest == 0, 1.0, largest))
    gram = matmul(transpose(weights), weights)
    squares = jnp.sum(gram * gram)
    return jnp.trace(gram) ** 2 / jnp.where(squares == 0, 1.0, squares)


def modularity(attention: Array, labels: Array, active: Array | None = None) -> Array:
    """Newman's modularity of a partition, in the graph whose weights are the symmetrised attention.

        Q = sum_ij (W_ij / 2m - k_i k_j / (2m)^2) [c_i = c_j]

    with ``W = (beta + beta^T) / 2``, ``k_i = sum_j W_ij`` and ``2m = sum_ij W_ij``: the share of
    the attention that stays within the groups, less what it would be if agents of these degrees met
    by chance.

    Args:
        attention: beta ``[n, n]``, not negative.
        labels: the group of each agent ``[n]``, any integers. The row number of an agent's
            meta-agent serves, and an agent's own row number for one that has none.
        active: booleans ``[n]``; all agents by default.

    Returns:
        A scalar from -1/2 to 1; 0 for a single group, and when nobody listens. O(n^2).

    Raises:
        ValueError: when the shapes do not fit, labels are not integers, or ``active`` is not
            boolean.

    Source: Newman, Physical Review E 70 (2004) 056131 (weighted networks).

    >>> pairs = jnp.array([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
    >>> float(modularity(pairs, jnp.array([7, 7, 9, 9])))
    0.5
    """
    weights, _ = _active(attention, active)
    labels = jnp.asarray(labels)
    if labels.shape != weights.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels must be integers {weights.shape[:1]}, got {labels.dtype} {labels.shape}"
        )
    total = jnp.sum(weights)
    share = 0.5 * (weights + weights.T) / jnp.where(total == 0, 1.0, total)
    degree = jnp.sum(share, axis=1)
    together = labels[:, None] == labels[None, :]
    return jnp.sum(jnp.where(together, share - degree[:, None] * degree[None, :], 0.0))
