"""The bank of priors: one Gaussian per token, which is an embedding and an output in one.

The logit of a token is how little the belief diverges from its Gaussian, ``-KL(q || pi_v) /
temperature``. The divergence is a product of one feature row per belief with one per token, so no
array with two axes of channels per pair is formed.
"""

import jax.numpy as jnp

from vfejax.agents.packing import pack
from vfejax.beliefs import gaussian
from vfejax.beliefs.gaussian import Gaussian
from vfejax.models import blocks
from vfejax.models.pure_fep.gaussians import (
    IrrepGaussian,
    Irreps,
    receiver_rows,
    sender_rows,
)
from vfejax.numerics import identity_like, log_det_cholesky
from vfejax.types import Array

__all__ = ["bank_logits", "prior_bank_logits"]


def prior_bank_logits(belief: Gaussian, bank: Gaussian, temperature: float | Array) -> Array:
    """``-KL(q || pi_v) / temperature`` of every token v.

    ``2 KL = <P_v, S + mu mu^T> - 2 mu . P_v m_v + m_v . P_v m_v + log|S_v| - log|S| - k`` with
    ``P_v = S_v^{-1}``: with symmetric packing, a product of rows of length ``k (k + 1) / 2 + k +
    2``.

    Args:
        belief: mean ``[..., k]``, chol ``[..., k, k]``.
        bank: mean ``[v, k]``, chol ``[v, k, k]``.
        temperature: in nats, positive.

    Returns:
        ``[..., v]``.

    Raises:
        ValueError: when belief and bank differ in k, or the bank is not a list of Gaussians.

    >>> bank = Gaussian(jnp.eye(2), jnp.stack([jnp.eye(2)] * 2))
    >>> belief = Gaussian(jnp.array([1.0, 0.0]), jnp.eye(2))
    >>> (prior_bank_logits(belief, bank, 0.5) + 0.0).tolist()  # no negative zeros
    [0.0, -2.0]
    """
    k = belief.mean.shape[-1]
    if bank.mean.ndim != 2 or bank.mean.shape[-1] != k:
        raise ValueError(
            f"bank must be Gaussians [v, k = {k}] to fit the belief, got means {bank.mean.shape}"
        )
    mean, cov = belief.mean, gaussian.covariance(belief)
    second = pack(cov + mean[..., :, None] * mean[..., None, :])
    volume = log_det_cholesky(jnp.tril(belief.chol))[..., None] + k
    rows = jnp.concatenate([second, mean, jnp.ones_like(volume), -volume], axis=-1)

    information, precision = gaussian.natural_parameters(bank)
    twice = pack(precision * (2.0 - identity_like(precision)))
    constant = jnp.sum(bank.mean * information, axis=-1) + log_det_cholesky(jnp.tril(bank.chol))
    constant = constant[:, None]
    columns = jnp.concatenate(
        [twice, -2.0 * information, constant, jnp.ones_like(constant)], axis=-1
    )
    return blocks.bank_logits(0.5 * rows[..., None, :], columns[:, None], temperature)


def bank_logits(
    belief: IrrepGaussian, bank: IrrepGaussian, kind: Irreps, temperature: float | Array
) -> Array:
    """The same for covariances that are constant on irreps.

    Args:
        belief: means ``[..., h, c]``.
        bank: means ``[v, h, c]``.
        kind: their irreps.
        temperature: in nats, positive.

    Returns:
        ``[..., v]``.

    >>> from vfejax.models.pure_fep.gaussians import irreps
    >>> bank = IrrepGaussian(jnp.eye(3)[:, None], jnp.zeros((3, 1, 1)))
    >>> belief = IrrepGaussian(bank.mean[0], bank.log_variance[0])
    >>> (bank_logits(belief, bank, irreps((1,)), 1.0) + 0.0).round(3).tolist()
    [0.0, -1.0, -1.0]
    """
    return blocks.bank_logits(receiver_rows(belief, kind), sender_rows(bank, kind), temperature)
