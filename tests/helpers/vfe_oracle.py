"""Slow, plain reference for the VFE transformer's agents: every pair has its own transport matrix,
N x N x C x C numbers in all, every covariance is a full C x C matrix, and every formula is the
textbook one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from vfejax.beliefs.gaussian import Gaussian, kl_divergence
from vfejax.geometry.groups import matrix_exponential
from vfejax.models.vfe.beliefs import Belief
from vfejax.models.vfe.irreps import blocks
from vfejax.numerics import cholesky, triangular_inverse


def random_belief(rng, family, layout, n, frames=True):
    """Beliefs of n agents, ``[1, n, heads, ...]`` in float64."""
    heads, components, copies = layout.rates.shape
    raw = 0.5 * rng.standard_normal((1, n, heads, family.num_raw(layout)))
    phi = rng.standard_normal((1, n, heads, layout.group.generators.shape[0]))
    group = layout.group

    @jax.jit
    def made(raw, phi):
        return family.spread(raw, layout), group.exponential(phi, group.generators)

    spread, frame = jax.device_get(made(raw, phi))
    mean = rng.standard_normal((1, n, heads, components, copies))
    return Belief(mean, spread, frame if frames else None)


class Dense(NamedTuple):
    """Agents of one head: mean ``[n, C]``, covariance ``[n, C, C]``."""

    mean: jax.Array
    cov: jax.Array


def position_matrices(layout, head, positions):
    """R of every position by the exponential of one commuting direction, ``[n, C, C]``."""
    components, copies = layout.components, layout.copies
    total = np.zeros((len(positions), components, copies, components, copies))
    for copy in range(copies):
        direction = np.zeros((components, components))
        for block in blocks(layout.sizes):
            for x in range(block.start, block.stop - 1, 2):
                direction[x + 1, x] = layout.rates[head, x, copy]
                direction[x, x + 1] = -layout.rates[head, x, copy]
        for i, position in enumerate(positions):
            total[i, :, copy, :, copy] = scipy.linalg.expm(position * direction)
    return total.reshape(len(positions), layout.channels, layout.channels)


def dense(belief, family, layout, head):
    """One head of a belief ``[1, n, heads, ...]`` of a family, as known numbers."""
    mean = np.asarray(belief.mean)[0, :, head]
    n, components, copies = mean.shape
    cov = np.zeros((n, components, copies, components, copies))
    for r, block in enumerate(blocks(layout.sizes)):
        size = block.stop - block.start
        for k in range(copies):
            if family == "full":
                factor = np.tril(np.asarray(belief.spread[r])[0, :, head, k])
                part = np.einsum("nij,nkj->nik", factor, factor)
            else:
                log = np.asarray(belief.spread)[0, :, head, block if family == "diagonal" else r, k]
                part = np.exp(log).reshape(n, -1, 1) * np.eye(size)
            cov[:, block, k, block, k] = part
    channels = components * copies
    return Dense(mean.reshape(n, channels), cov.reshape(n, channels, channels))


def transports(layout, head, frames, link, positions):
    """``Omega_ij = A_i V^-1 R_i R_j^-1 A_j^-1`` of all pairs, ``[n, n, C, C]``; frames ``[n, K,
    K]``.
    """
    wide = np.stack([np.kron(frame, np.eye(layout.copies)) for frame in np.asarray(frames)])
    turns = position_matrices(layout, head, positions)
    outward = wide @ np.linalg.inv(np.asarray(link))[None] @ turns
    inward = np.swapaxes(turns, -1, -2) @ np.swapaxes(wide, -1, -2)
    return outward[:, None] @ inward[None]


def pairwise_kl(receivers, senders, omega):
    """``KL(q_i || Omega_ij q_j)``, ``[n, n]``."""
    n = receivers.mean.shape[0]

    def across(x):
        return jnp.broadcast_to(x[:, None], (n, *x.shape))

    mean = jnp.einsum("ijkl,jl->ijk", omega, senders.mean)
    cov = jnp.einsum("ijkl,jlm,ijpm->ijkp", omega, senders.cov, omega)
    own = Gaussian(across(receivers.mean), across(cholesky(receivers.cov)))
    return kl_divergence(own, Gaussian(mean, cholesky(cov)))


def known_kl(receivers, senders, omega):
    """The same by NumPy, for known numbers."""
    omega = np.asarray(omega)
    shift = receivers.mean[:, None] - np.einsum("ijkl,jl->ijk", omega, senders.mean)
    cov = omega @ senders.cov[None] @ np.swapaxes(omega, -1, -2)
    inverse = np.linalg.inv(cov)
    logs = np.linalg.slogdet(cov)[1] - np.linalg.slogdet(receivers.cov)[1][:, None]
    square = np.einsum("ijk,ijkl,ijl->ij", shift, inverse, shift)
    trace = np.einsum("ijkl,ilk->ij", inverse, receivers.cov)
    return (trace + square + logs - shift.shape[-1]) / 2


def alignment(name, divergence, tau, near):
    """Energy of each receiver from divergences ``[n, n]`` and who reads whom; 0 for nobody."""
    weight = jnp.where(near, jnp.exp(-divergence / tau), 0.0)
    total = jnp.sum(weight, axis=1)
    count = jnp.sum(near, axis=1).astype(divergence.dtype)
    empty = count == 0
    total = jnp.where(empty, 1.0, total)
    if name == "entropic":
        energy = -tau * jnp.log(total / jnp.where(empty, 1.0, count))
    else:
        energy = jnp.sum(weight * divergence, axis=1) / total
    return jnp.where(empty, 0.0, energy)


def free_energy(name, own, prior, senders, omega, coupling, tau, near):
    """What each agent pays in one head, ``[n]``."""
    self_coupling = kl_divergence(
        Gaussian(own.mean, cholesky(own.cov)), Gaussian(prior.mean, cholesky(prior.cov))
    )
    return self_coupling + coupling * alignment(name, pairwise_kl(own, senders, omega), tau, near)


def step(name, own, prior, omega, coupling, tau, near, eta, project, radius):
    """One step of natural-gradient descent with the senders held: the agents' own beliefs.

    ``project`` maps a symmetric slope in the covariance to the part that the family can follow.
    """

    def paid(mean, cov):
        receivers = Dense(mean, cov)
        return jnp.sum(free_energy(name, receivers, prior, own, omega, coupling, tau, near))

    slope, in_cov = jax.grad(paid, (0, 1))(own.mean, own.cov)
    in_cov = project((in_cov + jnp.swapaxes(in_cov, -1, -2)) / 2)
    change = -eta * jnp.einsum("nij,nj->ni", own.cov, slope)
    whole = -2 * eta * own.cov @ in_cov @ own.cov
    factor = triangular_inverse(cholesky(own.cov))
    inverse = jnp.einsum("nki,nkj->nij", factor, factor)
    relative = whole @ inverse
    square = jnp.einsum("ni,nij,nj->n", change, inverse, change)
    square = square + 0.5 * jnp.einsum("nij,nji->n", relative, relative)
    share = jnp.minimum(1.0, radius / jnp.sqrt(jnp.where(square == 0, 1.0, square)))
    moved = matrix_exponential(share[:, None, None] * relative) @ own.cov
    return Dense(own.mean + share[:, None] * change, (moved + jnp.swapaxes(moved, -1, -2)) / 2)
