"""ResNet-BK: a residual network whose tokens talk through the resolvent of a tridiagonal operator,
in O(n), with constant memory per new token.

A pre-norm block is a mixture of experts, then a mixer (:mod:`vfejax.models.resnet_bk.mixers`) with
a learnable scale:

    x <- x + experts(norm(x)),    x <- x + s mixer(norm(x)).

The mixer is the left-connected resolvent's diagonal as features, or the resolvent as an operator on
vectors (stronger). Both are causal.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax import routing
from vfejax.models.blocks import Stack, check_tokens, dropout, normal, pure
from vfejax.models.resnet_bk.experts import MixtureOfExperts
from vfejax.models.resnet_bk.mixers import LeftFeatures, ResolventOperator
from vfejax.numerics import at_least_float32
from vfejax.types import Array, Prediction, PyTree, SequenceModel

__all__ = ["Memory", "ResNetBKConfig", "build"]

_MIXERS = {"operator": ResolventOperator, "features": LeftFeatures}
_ROUTERS = {"top-k": routing.top_k, "gumbel": routing.gumbel_top_k}


@dataclass(frozen=True)
class ResNetBKConfig:
    """Resolvent (BK) recursions with a mixture of experts."""

    layers: int = 4
    """Number of blocks."""
    dim: int = 128
    """Width of the residual stream."""
    heads: int = 8
    """Resolvents per block, each with its own z, hopping and offset."""
    mixer: Literal["operator", "features"] = "operator"
    """What the resolvent does: acts on vectors, or hands its diagonal over as features."""
    experts: int = 4
    """Feed-forward experts per block."""
    top_k: int = 1
    """Experts that read a token."""
    hidden: int = 128
    """Width of each expert's hidden layer."""
    router: Literal["top-k", "gumbel"] = "top-k"
    """How experts are chosen: the most probable ones, or straight-through Gumbel noise in
    training.
    """
    v_max: float = 3.0
    """Bound of the potential, in units of energy (hoppings start at 1)."""
    feature_clamp: float = 10.0
    """Bound of the features of the features mixer, in inverse energy."""
    z_floor: float = 0.01
    """Smallest Im z, in units of energy; the reach is about hopping / Im z tokens."""
    positions: bool = False
    """Whether to add learned positions, which limit a sequence to --length tokens."""
    tied: bool = True
    """Whether the output shares the token embedding."""
    dropout: float = 0.0
    """Share of activations that training leaves out."""
    balance_weight: float = 0.01
    """Weight of the load-balance loss (1 when experts are used evenly)."""
    router_z_weight: float = 0.001
    """Weight of the router-z loss, which keeps routing logits small."""


class Memory(NamedTuple):
    """What decoding remembers: the mixers' states, stacked by layer, and the number of tokens
    read.
    """

    mixers: PyTree
    position: Array


class _Block(nnx.Module):
    def __init__(self, config: ResNetBKConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        kinds = {
            "use_bias": False,
            "dtype": dtype,
            "param_dtype": at_least_float32(dtype),
            "rngs": rngs,
        }
        self.rate = config.dropout
        self.expert_norm = nnx.LayerNorm(config.dim, **kinds)
        self.experts = MixtureOfExperts(
            config.dim,
            config.hidden,
            config.experts,
            config.top_k,
            router_fn=_ROUTERS[config.router],
            out_scale=0.02 / (2 * config.layers) ** 0.5,
            dtype=dtype,
            rngs=rngs,
        )
        self.mixer_norm = nnx.LayerNorm(config.dim, **kinds)
        self.mixer = _MIXERS[config.mixer](config.dim, config.heads, config, dtype, rngs)
        self.scale = nnx.Param(jnp.ones((), kinds["param_dtype"]))

    def think(self, x: Array, key: Array | None) -> tuple[Array, Any]:
        """After the experts, and their statistics."""
        keys = (None, None) if key is None else jax.random.split(key)
        thought, statistics = self.experts(self.expert_norm(x), keys[0])
        return x + dropout(thought, self.rate, keys[1]), statistics

    def __call__(self, x: Array, key: Array | None) -> tuple[Array, dict[str, Array]]:
        keys = (None, None) if key is None else jax.random.split(key)
        x, statistics = self.think(x, keys[0])
        mixed, left = self.mixer(self.mixer_norm(x))
        found = {"load_balance": statistics.load_balance, "router_z": statistics.router_z}
        found |= {"usage": statistics.usage, "reach": self.reach(left)}
        return x + dropout(self.scale[...].astype(x.dtype) * mixed, self.rate, keys[1]), found

    def reach(self, left: Array) -> Array:
        """Tokens after which a signal has fallen to 1/e in every head: ``-1 / mean log |t gL|``,
        ``[heads]``.
        """
        hopping = self.mixer.potential.hopping()
        decay = -jnp.mean(jnp.log(jnp.abs(left)), axis=(0, 2)) - jnp.log(hopping)
        return 1.0 / jax.lax.stop_gradient(decay)

    def decode(self, x: Array, state: PyTree) -> tuple[Array, PyTree]:
        x, _ = self.think(x, None)
        mixed, state = self.mixer.decode(state, self.mixer_norm(x))
        return x + self.scale[...].astype(x.dtype) * mixed, state


class ResNetBK(nnx.Module):
    """See :func:`build`."""

    def __init__(
        self, config: ResNetBKConfig, vocab_size: int, length: int, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        kinds = {"dtype": dtype, "param_dtype": at_least_float32(dtype), "rngs": rngs}
        self.config, self.max_length = config, length if config.positions else None
        self.tokens = nnx.Embed(vocab_size, config.dim, embedding_init=normal(0.02), **kinds)
        if config.positions:
            self.positions = nnx.Embed(length, config.dim, embedding_init=normal(0.02), **kinds)
        self.blocks = Stack(lambda r: _Block(config, dtype, r), config.layers, rngs=rngs)
        self.norm = nnx.LayerNorm(config.dim, use_bias=False, **kinds)
        if not config.tied:
            self.output = nnx.Linear(
                config.dim, vocab_size, use_bias=False, kernel_init=normal(0.02), **kinds
            )

    def embed(self, tokens: Array, positions: Array) -> Array:
        x = self.tokens(tokens)
        return x + self.positions(positions) if self.config.positions else x

    def logits(self, x: Array) -> Array:
        x = self.norm(x)
        return self.tokens.attend(x) if self.config.tied else self.output(x)

    def __call__(self, tokens: Array, key: Array | None = None) -> Prediction:
        check_tokens(tokens, self.max_length)
        keys = None if key is None else jax.random.split(key, self.config.layers)
        x = self.embed(tokens, jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape))
        x, found = self.blocks.scan(lambda block, x, key: block(x, key), x, keys)
        return Prediction(self.logits(x), *self._report(found))

    def _report(self, found: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Weighted loss terms and diagnostics from what the blocks found, stacked by layer."""
        diagnostics = {
            "longest_reach_tokens": jnp.max(found["reach"]),
            "median_reach_tokens": jnp.median(found["reach"]),
        }
        if self.config.experts == 1:
            return {}, diagnostics
        losses = {
            "load_balance": self.config.balance_weight * jnp.mean(found["load_balance"]),
            "router_z": self.config.router_z_weight * jnp.mean(found["router_z"]),
        }
        return losses, diagnostics | {"busiest_expert_share": jnp.max(found["usage"])}

    def init_decode(self, batch: int) -> Memory:
        return Memory(
            self.blocks.repeat(lambda block: block.mixer.init_decode(batch)),
            jnp.zeros((), jnp.int32),
        )

    def decode(self, state: Memory, tokens: Array) -> tuple[Array, Memory]:
        x = self.embed(tokens, jnp.broadcast_to(state.position, tokens.shape))
        x, mixers = self.blocks.scan(
            lambda block, x, memory: block.decode(x, memory), x, state.mixers
        )
        return self.logits(x), Memory(mixers, state.position + 1)


def build(
    config: ResNetBKConfig, vocab_size: int, length: int, dtype: jnp.dtype = jnp.float32
) -> SequenceModel:
    """ResNet-BK over ``vocab_size`` tokens; ``dtype`` is that of its arithmetic (the resolvents' is
    at least single precision).

    Args:
        config: see :class:`ResNetBKConfig`.
        vocab_size: number of tokens.
        length: how many tokens a sequence has, if ``config.positions``; else any number is fine.
        dtype: float32, float64 or bfloat16.

    Raises:
        ValueError: for numbers that do not fit together, naming them.
    """
    if not 1 <= config.top_k <= config.experts:
        raise ValueError(
            f"top_k must lie between 1 and experts {config.experts}, got {config.top_k}"
        )
    for name in ("v_max", "feature_clamp", "z_floor"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}")
    return pure(lambda rngs: ResNetBK(config, vocab_size, length, dtype, rngs))
