"""Layers of the VFE transformer: their priors, and the use of their posteriors.

A *projected* layer reads the residual stream x as a transformer's block does. Linear maps of the
normalised stream are means, covariances and frame coordinates of the priors, and what inference
makes of the means is added to it,

    x <- x + W_o (posterior mean - prior mean),    x <- x + W_2 (silu(W_g x) * W_1 x).

A *carried* layer takes the posteriors of the layer before for its priors, frames and covariances
included, and its feed-forward layer acts on the means. The first priors are a table of tokens.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.models import kernel_products
from vfejax.models.blocks import dropout, normal
from vfejax.models.gpt_modern.block import EPSILON
from vfejax.models.vfe.beliefs import Belief, Transport
from vfejax.models.vfe.channels import frame_of, joined, make_norm, per_head, split
from vfejax.models.vfe.config import VFEConfig
from vfejax.models.vfe.inference import Rule, Strength
from vfejax.models.vfe.irreps import Phases, turn_matrices
from vfejax.models.vfe.options import rule_of
from vfejax.numerics import at_least_float32
from vfejax.types import Array

__all__ = ["LAYERS", "CarriedLayer", "ProjectedLayer"]


def _normed(norm: Any, x: Array) -> Array:
    return x if norm is None else norm(x)


def _first_spread(config: VFEConfig, dtype: jnp.dtype) -> Array:
    """What is added to the numbers that covariances are made of, ``[heads, numbers]``."""
    rule, layout = rule_of(config), rule_of(config).layout
    count = len(layout.sizes) * layout.copies
    logs = jnp.linspace(-config.spread_range, config.spread_range, count, dtype=dtype)
    raw = rule.family.raw(logs.reshape(layout.copies, -1).T, layout)
    return jnp.broadcast_to(raw, (layout.heads, raw.size))


def _first_link(config: VFEConfig, dtype: jnp.dtype) -> Array:
    """V of each head, ``[heads, C, C]``: a turn by so many tokens."""
    back = jnp.zeros(config.heads, jnp.int32)
    if config.link_start == "offsets" and config.position == "frame":
        back = jnp.arange(config.heads, dtype=jnp.int32) + (1 if config.mask_self else 0)
    return turn_matrices(rule_of(config).layout, back, dtype)


class _Layer(nnx.Module):
    """What a layer learns about its inference, and its feed-forward layer.

    Args:
        config: the model's options.
        dtype: that of the stream.
        rngs: where first weights come from.
    """

    def __init__(self, config: VFEConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        real, heads, dim = at_least_float32(dtype), config.heads, config.dim
        linear = partial(
            kernel_products.linear, use_bias=False, dtype=dtype, param_dtype=real, rngs=rngs
        )
        self.config, self.dtype = config, dtype
        self.log_coupling = nnx.Param(jnp.full((heads,), math.log(config.coupling), real))
        self.log_temperature = nnx.Param(jnp.full((heads,), math.log(config.temperature), real))
        self.log_step = nnx.Param(jnp.full((), math.log(config.step_size), real))
        self.log_decay = nnx.Param(jnp.full((), math.log(config.decay), real))
        if config.link:
            self.link = nnx.Param(_first_link(config, real))
        if config.hidden:
            out_scale = 0.02 / (2 * config.layers) ** 0.5
            self.mlp_norm = make_norm(config, dtype, rngs)
            self.mlp_in = linear(dim, 2 * config.hidden, kernel_init=normal(0.02))
            self.mlp_out = linear(config.hidden, dim, kernel_init=normal(out_scale))

    @property
    def rule(self) -> Rule:
        """What is the same for all layers."""
        return rule_of(self.config)

    def strength(self) -> Strength:
        """Weights, temperatures and step sizes, all positive."""
        return Strength(
            jnp.exp(self.log_coupling[...]),
            jnp.exp(self.log_temperature[...]),
            jnp.exp(self.log_step[...]),
            jnp.exp(self.log_decay[...]),
        )

    def transport(self, turn: Phases | None) -> Transport:
        """Positions as given, and the layer's link."""
        return Transport(turn, self.link[...] if self.config.link else None)

    def feed_forward(self, x: Array, key: Array | None) -> Array:
        """What the feed-forward layer adds to ``x [b, n, dim]``; x itself without one."""
        if not self.config.hidden:
            return x
        gate, value = jnp.split(self.mlp_in(_normed(self.mlp_norm, x)), 2, axis=-1)
        return x + dropout(self.mlp_out(nnx.silu(gate) * value), self.config.dropout, key)


class ProjectedLayer(_Layer):
    """A layer whose priors are linear maps of the residual stream.

    Args:
        config: the model's options.
        dtype: that of the stream.
        rngs: where first weights come from.
    """

    def __init__(self, config: VFEConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        dim, heads, rule = config.dim, config.heads, self.rule
        real = at_least_float32(dtype)
        linear = partial(
            kernel_products.linear,
            dim,
            use_bias=False,
            dtype=dtype,
            param_dtype=real,
            rngs=rngs,
        )
        out_scale = 0.02 / (2 * config.layers) ** 0.5
        self.norm = make_norm(config, dtype, rngs)
        self.mean = linear(dim, kernel_init=normal(0.02))
        self.spread = linear(heads * rule.family.num_raw(rule.layout), kernel_init=normal(0.02))
        self.spread_bias = nnx.Param(_first_spread(config, real))
        shape = rule.layout.rates.shape
        if config.mean_bias:
            self.mean_bias = nnx.Param(normal(config.mean_bias)(rngs.params(), shape, real))
        if config.mean_norm:
            self.mean_scale = nnx.Param(jnp.ones(shape, real))
        if config.frames != "identity":
            coordinates = rule.layout.group.generators.shape[0]
            self.phi = linear(heads * coordinates, kernel_init=normal(0.02))
        self.out = linear(dim, kernel_init=normal(out_scale))

    def prior(self, x: Array) -> Belief:
        """Priors of the agents from the stream ``[b, n, dim]``."""
        rule = self.rule
        read = _normed(self.norm, x)
        raw = per_head(self.spread(read), rule) + self.spread_bias[...]
        frame = None if self.config.frames == "identity" else frame_of(self.phi(read), rule)
        return Belief(self._mean(read), rule.family.spread(raw, rule.layout), frame)

    def _mean(self, read: Array) -> Array:
        mean = split(self.mean(read), self.rule)
        if self.config.mean_bias:
            mean = mean + self.mean_bias[...]
        if not self.config.mean_norm:
            return mean
        square = jnp.mean(mean * mean, axis=(-2, -1), keepdims=True)
        return mean * jax.lax.rsqrt(square + EPSILON) * self.mean_scale[...]

    def finish(self, x: Array, prior: Belief, posterior: Belief, key: Array | None) -> Array:
        """The stream after the layer.

        Args:
            x: the stream before it, ``[b, n, dim]``.
            prior: of the agents.
            posterior: of the agents.
            key: source of dropout; None outside training.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        found = posterior.mean
        if self.config.adds == "change":
            found = found - prior.mean
        update = self.out(joined(found, self.dtype))
        return self.feed_forward(x + dropout(update, self.config.dropout, keys[0]), keys[1])

    @staticmethod
    def stream(x: Array, dtype: jnp.dtype) -> Array:
        """What the output reads."""
        return x


class CarriedLayer(_Layer):
    """A layer whose priors are the posteriors of the layer before; built as any layer."""

    def prior(self, belief: Belief) -> Belief:
        """The belief itself."""
        return belief

    def finish(self, belief: Belief, prior: Belief, posterior: Belief, key: Array | None) -> Belief:
        """The posterior, with the feed-forward layer's change of its mean.

        Args:
            belief: what the layer was given.
            prior: the same.
            posterior: of the agents.
            key: source of dropout; None outside training.
        """
        if not self.config.hidden:
            return posterior
        x = self.feed_forward(joined(posterior.mean, self.dtype), key)
        return posterior._replace(mean=split(x, self.rule))

    @staticmethod
    def stream(belief: Belief, dtype: jnp.dtype) -> Array:
        """The means."""
        return joined(belief.mean, dtype)


LAYERS: dict[str, Any] = {"projected": ProjectedLayer, "carried": CarriedLayer}
"""Layers by where their priors come from."""
