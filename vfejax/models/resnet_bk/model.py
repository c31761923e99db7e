"""ResNet-BK: a residual network that mixes its tokens by the inverse of a tridiagonal operator,
whose entries they determine, in O(n), with constant memory per new token.

A pre-norm block is a mixture of experts, then a mixer (:mod:`vfejax.models.resnet_bk.mixers`) with
a learnable scale:

    x <- x + experts(norm(x)),    x <- x + s mixer(norm(x)).

The tokens write the subdiagonal alone, which makes a complex gate and is the default
(:mod:`vfejax.models.resnet_bk.gates`); both off-diagonals; or the diagonal of a resolvent, which
acts on vectors or is read as features. All are causal. The published code that the name comes from
does not spell out BK; its texts refer to scattering theory, to the Birman-Krein identity and the
Birman-Schwinger operator.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax import routing
from vfejax.models import kernel_products
from vfejax.models.blocks import (
    OptionError,
    Stack,
    check_choice,
    check_dropout,
    check_options,
    check_positive,
    dropout,
    embedding,
    normal,
)
from vfejax.models.intermediates import Watched, WatchFn
from vfejax.models.protocol import positions_of, pure
from vfejax.models.resnet_bk.config import ResNetBKConfig
from vfejax.models.resnet_bk.experts import ROUTERS, MixtureOfExperts
from vfejax.models.resnet_bk.gates import GateOperator, RealGateOperator
from vfejax.models.resnet_bk.heads import heads_first
from vfejax.models.resnet_bk.mixers import Mixer
from vfejax.models.resnet_bk.resolvents import LeftFeatures, ResolventOperator
from vfejax.models.resnet_bk.tridiagonal import TridiagonalOperator
from vfejax.numerics import at_least_float32
from vfejax.types import Array, Batch, Prediction, PyTree, SequenceModel

__all__ = ["MIXERS", "Memory", "ResNetBK", "ResNetBKConfig", "Statistics", "build", "summary"]


def _operator(config: ResNetBKConfig, dtype: jnp.dtype, rngs: nnx.Rngs) -> Mixer:
    return ResolventOperator(
        config.dim,
        config.heads,
        v_max=config.v_max,
        z_floor=config.z_floor,
        out_scale=_out_scale(config),
        dtype=dtype,
        rngs=rngs,
    )


def _features(config: ResNetBKConfig, dtype: jnp.dtype, rngs: nnx.Rngs) -> Mixer:
    return LeftFeatures(
        config.dim,
        config.heads,
        v_max=config.v_max,
        z_floor=config.z_floor,
        clamp=config.feature_clamp,
        dtype=dtype,
        rngs=rngs,
    )


def _tridiagonal(config: ResNetBKConfig, dtype: jnp.dtype, rngs: nnx.Rngs) -> Mixer:
    return TridiagonalOperator(
        config.dim,
        config.heads,
        coupling=config.coupling,
        convolution=config.convolution,
        out_scale=_out_scale(config),
        dtype=dtype,
        rngs=rngs,
    )


def _gated(
    mixer: type[GateOperator | RealGateOperator],
) -> Callable[[ResNetBKConfig, jnp.dtype, nnx.Rngs], Mixer]:
    def make(config: ResNetBKConfig, dtype: jnp.dtype, rngs: nnx.Rngs) -> Mixer:
        return mixer(
            config.dim,
            config.heads,
            convolution=config.convolution,
            out_scale=_out_scale(config),
            dtype=dtype,
            rngs=rngs,
        )

    return make


MIXERS: dict[str, Callable[[ResNetBKConfig, jnp.dtype, nnx.Rngs], Mixer]] = {
    "gate": _gated(GateOperator),
    "tridiagonal": _tridiagonal,
    "operator": _operator,
    "features": _features,
    "rg-lru": _gated(RealGateOperator),
}
"""How each mixer is made; one line here, and its name in the option, for a new one."""


def _out_scale(config: ResNetBKConfig) -> float:
    """Standard deviation of first weights that write to the residual stream, which 2 per layer
    do.
    """
    return 0.02 / (2 * config.layers) ** 0.5


class Memory(NamedTuple):
    """What decoding remembers: the mixers' states, stacked by layer, and the number of tokens
    read.
    """

    mixers: PyTree
    position: Array


class Statistics(NamedTuple):
    """Sums over real tokens, by layer: of the router (None for one expert), of the logarithms of
    each head's gate ``[heads]``, and the number of tokens.
    """

    router: routing.RouterSums | None
    log_gates: Array
    tokens: Array


class _Block(nnx.Module):
    def __init__(self, config: ResNetBKConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        weights = at_least_float32(dtype)
        norm = partial(nnx.LayerNorm, use_bias=False, dtype=dtype, param_dtype=weights, rngs=rngs)
        self.rate = config.dropout
        self.expert_norm = norm(config.dim)
        self.experts = MixtureOfExperts(
            config.dim,
            config.hidden,
            config.experts,
            config.top_k,
            router_fn=ROUTERS[config.router],
            out_scale=_out_scale(config),
            dtype=dtype,
            rngs=rngs,
        )
        self.mixer_norm = norm(config.dim)
        self.mixer = MIXERS[config.mixer](config, dtype, rngs)
        self.scale = nnx.Param(jnp.ones((), weights))

    def feed_forward(
        self, x: Array, key: Array | None, mask: Array | None = None
    ) -> tuple[Array, routing.RouterSums | None]:
        """The stream after the experts, and what their router did."""
        keys = (None, None) if key is None else jax.random.split(key)
        update, sums = self.experts(self.expert_norm(x), keys[0], mask)
        return x + dropout(update, self.rate, keys[1]), sums

    def __call__(
        self, x: Array, key: Array | None, mask: Array | None, watch_fn: WatchFn
    ) -> tuple[Array, tuple[Statistics, Any]]:
        keys = (None, None) if key is None else jax.random.split(key)
        x, router = self.feed_forward(x, keys[0], mask)
        # Padding stands behind the tokens, where a causal mixer need not know of it.
        mixed, info = self.mixer(self.mixer_norm(x))
        x = x + dropout(self.scale[...].astype(x.dtype) * mixed, self.rate, keys[1])
        seen = watch_fn(x, jnp.exp(heads_first(info.log_gates)))
        return x, (Statistics(router, *_gate_sums(info.log_gates, mask)), seen)

    def decode(self, x: Array, state: PyTree) -> tuple[Array, PyTree]:
        x, _ = self.feed_forward(x, None)
        mixed, state = self.mixer.decode(state, self.mixer_norm(x))
        return x + self.scale[...].astype(x.dtype) * mixed, state


def _gate_sums(log_gates: Array, mask: Array | None) -> tuple[Array, Array]:
    """``log_gates [b, heads, n]`` added up over the real tokens, ``[heads]``, and how many there
    are; no gradient.
    """
    log_gates = jax.lax.stop_gradient(log_gates)
    if mask is None:
        tokens = jnp.asarray(log_gates.shape[0] * log_gates.shape[2], log_gates.dtype)
    else:
        log_gates = jnp.where(mask[:, None], log_gates, jnp.zeros((), log_gates.dtype))
        tokens = jnp.sum(mask, dtype=log_gates.dtype)
    return jnp.sum(log_gates, axis=(0, 2)), tokens


class ResNetBK(Watched):
    """The weights of ResNet-BK, and what it computes with them; :func:`build` checks the options.

    Args:
        config: the model's options.
        vocab_size: number of tokens.
        length: the most tokens that a sequence may have, if ``config.positions``; without effect
            otherwise.
        dtype: that of the arithmetic: float32, float64 or bfloat16; resolvents are at least single
            precision.
        rngs: where first weights come from.
    """

    residual = True

    def __init__(
        self,
        config: ResNetBKConfig,
        vocab_size: int,
        length: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        weights = at_least_float32(dtype)
        embed = partial(embedding, dim=config.dim, dtype=dtype, rngs=rngs)
        self.config, self.max_length = config, length if config.positions else None
        self.tokens = embed(vocab_size)
        if config.positions:
            self.positions = embed(length)
        self.blocks = Stack(
            lambda rngs: _Block(config, dtype=dtype, rngs=rngs), config.layers, rngs=rngs
        )
        self.norm = nnx.LayerNorm(
            config.dim, use_bias=False, dtype=dtype, param_dtype=weights, rngs=rngs
        )
        if not config.tied:
            self.output = kernel_products.linear(
                config.dim,
                vocab_size,
                use_bias=False,
                kernel_init=normal(0.02),
                dtype=dtype,
                param_dtype=weights,
                rngs=rngs,
            )

    def embed(self, tokens: Array, positions: Array) -> Array:
        x = self.tokens(tokens)
        return x + self.positions(positions) if self.config.positions else x

    def logits(self, x: Array) -> Array:
        x = self.norm(x)
        return self.tokens.attend(x) if self.config.tied else self.output(x)

    def _forward(
        self, batch: Batch, key: Array | None, watch_fn: WatchFn
    ) -> tuple[Prediction, Any]:
        keys = None if key is None else jax.random.split(key, self.config.layers)
        x = self.embed(batch.tokens, positions_of(batch))
        x, (statistics, seen) = self.blocks.scan(
            lambda block, x, key: block(x, key, batch.mask, watch_fn), x, keys
        )
        return Prediction(self.logits(x), {}, {}, statistics), seen

    def init_decode(self, batch_size: int) -> Memory:
        return Memory(
            self.blocks.repeat(lambda block: block.mixer.init_decode(batch_size)),
            jnp.zeros((), jnp.int32),
        )

    def decode(self, state: Memory, tokens: Array) -> tuple[Array, Memory]:
        x = self.embed(tokens, jnp.broadcast_to(state.position, tokens.shape))
        x, mixers = self.blocks.scan(
            lambda block, x, memory: block.decode(x, memory), x, state.mixers
        )
        return self.logits(x), Memory(mixers, state.position + 1)


def summary(
    config: ResNetBKConfig, statistics: Statistics
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Weighted loss terms, and diagnostics: the reach of a head is the number of tokens after which
    its memory has fallen to 1/e.
    """
    reach = -jnp.maximum(statistics.tokens, 1)[:, None] / statistics.log_gates
    diagnostics = {
        "longest_reach_tokens": jnp.max(reach),
        "median_reach_tokens": jnp.median(reach),
    }
    if statistics.router is None:
        return {}, diagnostics
    router = routing.router_losses(statistics.router)
    losses = {
        "load_balance": config.balance_weight * jnp.mean(router.load_balance),
        "router_z": config.router_z_weight * jnp.mean(router.router_z),
    }
    return losses, diagnostics | {"busiest_expert_share": jnp.max(router.usage)}


def build(
    config: ResNetBKConfig, vocab_size: int, length: int, dtype: jnp.dtype = jnp.float32
) -> SequenceModel:
    """ResNet-BK over ``vocab_size`` tokens; ``dtype`` is that of its arithmetic (the resolvents' is
    at least single precision).

    With several experts in bfloat16, decoding and reading at once may differ by far more than
    rounding at a token whose two best experts are nearly equal: the rounding of what the router
    reads can then choose another one. With one expert, or in float32, they agree to rounding.

    Args:
        config: see :class:`vfejax.models.resnet_bk.config.ResNetBKConfig`.
        vocab_size: number of tokens.
        length: how many tokens a sequence has, if ``config.positions``; else any number is fine.
        dtype: float32, float64 or bfloat16.

    Raises:
        ValueError: for numbers that do not fit together, naming the option.
    """
    check_options(config, layers=1, dim=1, heads=1, experts=1, hidden=1, convolution=1)
    check_options(config, balance_weight=0, router_z_weight=0)
    check_dropout(config.dropout)
    check_positive(config, "v_max", "feature_clamp", "z_floor")
    if not 0.0 <= config.coupling <= 1.0:
        raise OptionError("coupling", config.coupling, "between 0 and 1")
    check_choice(config, "mixer", MIXERS)
    check_choice(config, "router", ROUTERS)
    if not 1 <= config.top_k <= config.experts:
        raise ValueError(
            f"top_k must lie between 1 and experts {config.experts}, got {config.top_k}"
        )
    return pure(
        lambda rngs: ResNetBK(config, vocab_size, length, dtype=dtype, rngs=rngs),
        summarize=lambda statistics: summary(config, statistics),
    )
