"""Gaussians whose covariance is a multiple of the identity on every irrep of a rotation group.

A belief has h heads, each a direct sum of r so(3) irreps of width c in all. Its covariance is
``exp(log_variance)`` times the identity on each irrep. Rotations act within irreps, so such a
covariance is exactly the same after every transport: the family is closed, and a transport moves
means alone. (Diagonal covariances are not closed: a rotation mixes their entries.)
"""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vfejax.beliefs.gaussian import Gaussian
from vfejax.geometry import irreps as so3_irreps
from vfejax.geometry.groups import Group
from vfejax.types import Array

__all__ = [
    "IrrepGaussian",
    "Irreps",
    "dense",
    "from_natural",
    "irreps",
    "kl_divergence",
    "moments",
    "natural_parameters",
    "pairwise_kl",
    "receiver_rows",
    "sender_rows",
]

_einsum = partial(jnp.einsum, precision="highest")


class IrrepGaussian(NamedTuple):
    """Means ``[..., h, c]`` and log variances ``[..., h, r]``, one for each irrep."""

    mean: Array
    log_variance: Array


class Irreps(NamedTuple):
    """The irreps of one head.

    Attributes:
        group: rotations of a head, ``[c, c]``.
        member: 1 where a channel belongs to an irrep, ``[r, c]``.
        turns: how often a channel turns while the frame turns once about z, ``[c]``.
        quarter: a quarter turn of the channels that turn, ``[c, c]``.
    """

    group: Group
    member: np.ndarray
    turns: np.ndarray
    quarter: np.ndarray

    def to_channels(self, x: Array) -> Array:
        """A number per irrep ``[..., r]`` given to each of its channels, ``[..., c]``."""
        return jnp.matmul(x, jnp.asarray(self.member, x.dtype), precision="highest")

    def to_irreps(self, x: Array) -> Array:
        """Sums over the channels of each irrep: ``[..., c]`` to ``[..., r]``."""
        return jnp.matmul(x, jnp.asarray(self.member.T, x.dtype), precision="highest")

    def sizes(self, dtype: jnp.dtype) -> Array:
        """Channels of each irrep, ``[r]``."""
        return jnp.asarray(self.member.sum(axis=1), dtype)

    def runs(self) -> list[tuple[int, int]]:
        """Spin and number of the irreps of one spin that stand side by side, in their order.

        >>> irreps((0, 0, 1, 0)).runs()
        [(0, 2), (1, 1), (0, 1)]
        """
        spins = (self.member.sum(axis=1).astype(int) - 1) // 2
        return [(int(spin), len(list(run))) for spin, run in itertools.groupby(spins)]


def irreps(spins: Sequence[int]) -> Irreps:
    """The direct sum of so(3) irreps of these spins.

    Args:
        spins: integers of at least 0.

    Raises:
        ValueError: for an empty list or a negative spin.

    >>> irreps((0, 1)).member.tolist()
    [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0]]
    """
    group = so3_irreps.so3(tuple(spins))
    about_z = np.asarray(group.generators)[2]
    turns = np.abs(about_z).max(axis=1)
    quarter = np.where(turns[:, None] > 0, about_z / np.maximum(turns, 1.0)[:, None], 0.0)
    widths = [2 * spin + 1 for spin in spins]
    member = np.repeat(np.eye(len(widths)), widths, axis=1)
    return Irreps(group, member, turns, quarter)


def dense(q: IrrepGaussian, kind: Irreps) -> Gaussian:
    """The same distribution over all channels of all heads, ``[..., h c]``.

    >>> kind = irreps((1,))
    >>> dense(IrrepGaussian(jnp.zeros((2, 3)), jnp.zeros((2, 1))), kind).chol.shape
    (6, 6)
    """
    deviation = kind.to_channels(jnp.exp(0.5 * q.log_variance))
    deviation = deviation.reshape(*deviation.shape[:-2], -1)
    chol = deviation[..., None] * jnp.eye(deviation.shape[-1], dtype=deviation.dtype)
    return Gaussian(q.mean.reshape(deviation.shape), chol)


def natural_parameters(q: IrrepGaussian, kind: Irreps) -> IrrepGaussian:
    """Information ``mean / variance`` and precision, in the places of mean and log variance.

    Args:
        q: the Gaussians.
        kind: their irreps.

    >>> q = IrrepGaussian(jnp.ones((1, 3)), jnp.log(jnp.full((1, 1), 2.0)))
    >>> natural_parameters(q, irreps((1,))).mean.round(3).tolist()
    [[0.5, 0.5, 0.5]]
    """
    precision = jnp.exp(-q.log_variance)
    return IrrepGaussian(q.mean * kind.to_channels(precision), precision)


def from_natural(information: Array, precision: Array, kind: Irreps) -> IrrepGaussian:
    """The Gaussian with these natural parameters.

    Args:
        information: ``[..., h, c]``.
        precision: ``[..., h, r]``, positive.
        kind: the irreps.

    >>> from_natural(jnp.ones((1, 3)), jnp.full((1, 1), 2.0), irreps((1,))).mean.tolist()
    [[0.5, 0.5, 0.5]]
    """
    return IrrepGaussian(information / kind.to_channels(precision), -jnp.log(precision))


def kl_divergence(q: IrrepGaussian, p: IrrepGaussian, kind: Irreps) -> Array:
    """``KL(q || p)`` in nats, ``[...]``, by differences: no cancellation between large means.

    Args:
        q: means ``[..., h, c]``.
        p: the same shapes.
        kind: their irreps.

    >>> one = IrrepGaussian(jnp.ones((1, 3)), jnp.zeros((1, 1)))
    >>> float(kl_divergence(one, one._replace(mean=jnp.zeros((1, 3))), irreps((1,))))
    1.5
    """
    sizes = kind.sizes(q.mean.dtype)
    ratio = q.log_variance - p.log_variance
    distance = kind.to_irreps(jnp.square(q.mean - p.mean)) * jnp.exp(-p.log_variance)
    return 0.5 * jnp.sum(distance + sizes * (jnp.exp(ratio) - 1.0 - ratio), axis=(-2, -1))


def receiver_rows(q: IrrepGaussian, kind: Irreps) -> Array:
    """Feature rows of beliefs, ``[..., h, c + r + 2]``; see :func:`pairwise_kl`."""
    sizes = kind.sizes(q.mean.dtype)
    second = kind.to_irreps(jnp.square(q.mean)) + sizes * jnp.exp(q.log_variance)
    volume = jnp.sum(sizes * (q.log_variance + 1.0), axis=-1, keepdims=True)
    return 0.5 * jnp.concatenate([q.mean, second, jnp.ones_like(volume), -volume], axis=-1)


def sender_rows(p: IrrepGaussian, kind: Irreps) -> Array:
    """Feature rows of what beliefs are compared with, ``[..., h, c + r + 2]``."""
    information, precision = natural_parameters(p, kind)
    constant = kind.to_irreps(p.mean * information)
    constant = constant + kind.sizes(p.mean.dtype) * p.log_variance
    constant = jnp.sum(constant, axis=-1, keepdims=True)
    rows = [-2.0 * information, precision, constant, jnp.ones_like(constant)]
    return jnp.concatenate(rows, axis=-1)


def pairwise_kl(receivers: IrrepGaussian, senders: IrrepGaussian, kind: Irreps) -> Array:
    """All divergences ``KL(q_i || q_j)`` of every head, as one product of feature rows.

    ``2 KL = sum_r (|mu_i|^2 + k_r s_i) / s_j - 2 mu_i . mu_j / s_j + |mu_j|^2 / s_j + k_r log s_j -
    k_r (log s_i + 1)``.

    Args:
        receivers: means ``[b, n, h, c]``.
        senders: means ``[b, m, h, c]``.
        kind: their irreps.

    Returns:
        ``[b, h, n, m]``, in nats.

    >>> q = IrrepGaussian(jnp.eye(3)[None, :, None], jnp.zeros((1, 3, 1, 1)))
    >>> pairwise_kl(q, q, irreps((1,)))[0, 0].round(3).tolist()
    [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    """
    rows, columns = receiver_rows(receivers, kind), sender_rows(senders, kind)
    return _einsum("bnhf,bmhf->bhnm", rows, columns)


def moments(
    beliefs: IrrepGaussian, ids: Array, counts: Array, vocab_size: int, kind: Irreps
) -> tuple[IrrepGaussian, Array]:
    """The Gaussian of each token that beliefs about it diverge from least: their joint moments.

    ``argmin_pi sum_i KL(q_i || pi)`` has the mean of the means, and the mean variance with the
    spread of the means added.

    Args:
        beliefs: means ``[b, n, h, c]``.
        ids: which token each belief is about, ``[b, n]``.
        counts: 1 where a belief counts, ``[b, n]``.
        vocab_size: number of tokens v.
        kind: the irreps of a head.

    Returns:
        Gaussians ``[v, h, c]``, standard ones where there is no belief, and how many there are
        ``[v]``.
    """
    weight = counts[..., None, None]

    def sums(x: Array) -> Array:
        return jnp.zeros((vocab_size, *x.shape[2:]), x.dtype).at[ids].add(weight * x)

    number = jnp.zeros(vocab_size, counts.dtype).at[ids].add(counts)
    share = jnp.maximum(number, 1.0)[:, None, None]
    mean = sums(beliefs.mean) / share
    sizes = kind.sizes(mean.dtype)
    apart = beliefs.mean - mean[ids]
    second = kind.to_irreps(jnp.square(apart)) / sizes + jnp.exp(beliefs.log_variance)
    variance = sums(second) / share
    there = number[:, None, None] > 0
    log_variance = jnp.log(jnp.where(there, variance, 1.0))
    return IrrepGaussian(mean, log_variance), number
