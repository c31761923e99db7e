"""Outputs of the VFE transformer: from the last layer to logits."""

import math
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx

from vfejax.models import kernel_products
from vfejax.models.blocks import bank_logits, embedding, normal
from vfejax.models.vfe.beliefs import Belief, Transport
from vfejax.models.vfe.channels import make_norm, per_head, split
from vfejax.models.vfe.config import VFEConfig
from vfejax.models.vfe.inference import Rule
from vfejax.models.vfe.options import rule_of
from vfejax.numerics import at_least_float32
from vfejax.types import Array

__all__ = ["READOUTS", "BankReadout", "LinearReadout", "TiedReadout", "divergence_logits"]


def divergence_logits(belief: Belief, bank: Belief, temperature: Array, rule: Rule) -> Array:
    """``-KL(q || pi_v) / temperature`` of every agent from every Gaussian of a bank, all heads
    together, as one product of rows.

    Args:
        belief: of agents, ``[b, n, heads, ...]``, without frames.
        bank: one Gaussian for each token, ``[v, heads, ...]``.
        temperature: in nats, a scalar.
        rule: channels and family.

    Returns:
        ``[b, n, v]``.

    >>> from vfejax.models.vfe import energy
    >>> from vfejax.models.vfe.covariances import COVARIANCES
    >>> from vfejax.models.vfe.irreps import so3
    >>> layout = so3((1,), heads=1, copies=1)
    >>> rule = Rule(layout, COVARIANCES["irrep"], energy.reader("entropic"))
    >>> bank = Belief(jnp.arange(6.0).reshape(2, 1, 3, 1), jnp.zeros((2, 1, 1, 1)))
    >>> one = Belief(*(x[None, :1] for x in bank[:2]))
    >>> divergence_logits(one, bank, jnp.asarray(1.0), rule)  # at a distance of 3 on every axis
    Array([[[ -0. , -13.5]]], dtype=float32)
    """
    family, layout = rule.family, rule.layout
    own = family.receivers(belief, Transport(), layout)
    others = family.senders(bank, Transport(), layout)
    return bank_logits(own, others, temperature)


class TiedReadout(nnx.Module):
    """The token embedding, transposed.

    Args:
        config: the model's options.
        vocab_size: number of tokens.
        dtype: that of the stream.
        rngs: where first weights come from.
    """

    def __init__(self, config: VFEConfig, vocab_size: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm = make_norm(config, dtype, rngs)

    def normed(self, x: Array) -> Array:
        """The stream as the output reads it."""
        return x if self.norm is None else self.norm(x)

    def __call__(self, x: Array, embed: Any) -> Array:
        """Logits ``[b, n, v]`` from the stream ``[b, n, dim]`` and the embedding."""
        return embed.attend(self.normed(x))


class LinearReadout(TiedReadout):
    """A linear map of its own.

    Args:
        config: the model's options.
        vocab_size: number of tokens.
        dtype: that of the stream.
        rngs: where first weights come from.
    """

    def __init__(self, config: VFEConfig, vocab_size: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        super().__init__(config, vocab_size, dtype=dtype, rngs=rngs)
        self.output = kernel_products.linear(
            config.dim,
            vocab_size,
            use_bias=False,
            kernel_init=normal(0.02),
            dtype=dtype,
            param_dtype=at_least_float32(dtype),
            rngs=rngs,
        )

    def __call__(self, x: Array, embed: Any) -> Array:
        return self.output(self.normed(x))


class BankReadout(TiedReadout):
    """Divergences from a bank of Gaussians, one for each token.

    The stream is the mean of the belief that is compared, and a linear map of it its covariance.

    Args:
        config: the model's options.
        vocab_size: number of tokens.
        dtype: that of the stream.
        rngs: where first weights come from.
    """

    def __init__(self, config: VFEConfig, vocab_size: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        super().__init__(config, vocab_size, dtype=dtype, rngs=rngs)
        rule, real = rule_of(config), at_least_float32(dtype)
        numbers = config.heads * rule.family.num_raw(rule.layout)
        table = partial(embedding, vocab_size, dtype=real, rngs=rngs)
        self.config, self.dtype = config, dtype
        self.means, self.spreads = table(config.dim), table(numbers)
        self.spread = kernel_products.linear(
            config.dim,
            numbers,
            use_bias=False,
            kernel_init=normal(0.02),
            dtype=dtype,
            param_dtype=real,
            rngs=rngs,
        )
        self.log_temperature = nnx.Param(jnp.full((), math.log(1.0), real))

    def _belief(self, mean: Array, raw: Array) -> Belief:
        rule = rule_of(self.config)
        return Belief(split(mean, rule), rule.family.spread(per_head(raw, rule), rule.layout))

    def __call__(self, x: Array, embed: Any) -> Array:
        mean = self.normed(x)
        belief = self._belief(mean, self.spread(mean))
        bank = self._belief(self.means.embedding[...], self.spreads.embedding[...])
        temperature = jnp.exp(self.log_temperature[...])
        return divergence_logits(belief, bank, temperature, rule_of(self.config)).astype(self.dtype)


READOUTS: dict[str, type[TiedReadout]] = {
    "tied": TiedReadout,
    "linear": LinearReadout,
    "kl": BankReadout,
}
"""Outputs by name."""
