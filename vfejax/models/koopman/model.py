"""ResNet-BK, some of whose blocks are linear operators on delayed streams (Koopman blocks).

Depth is time: a block takes the stream of a token to the next layer. A Koopman block does so by a
linear operator of low rank on delay coordinates,

    x_t <- x_t + b + B A [x_t, x_{t-1}, ..., x_{t-delays+1}],

with zeros before the first token: causal, with a memory of ``delays - 1`` tokens. The defaults cost
a fifth of a block's products. :mod:`vfejax.models.koopman.conversion` makes such blocks from those
of a trained model.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.models import resnet_bk
from vfejax.models.blocks import OptionError, Stack, check_options, normal
from vfejax.models.intermediates import WatchFn
from vfejax.models.koopman.config import KoopmanConfig, check_operators
from vfejax.models.protocol import positions_of, pure
from vfejax.models.resnet_bk.model import Memory, ResNetBK, summary
from vfejax.models.spans import delayed
from vfejax.numerics import at_least_float32
from vfejax.types import Array, Batch, Prediction, PyTree, SequenceModel

__all__ = ["KoopmanConfig", "Remembered", "Segment", "build", "segments"]


class Segment(NamedTuple):
    """Neighbouring layers of one kind: ``first`` to before ``stop`` in the stack of their kind."""

    linear: bool
    first: int
    stop: int


def segments(layers: int, operators: tuple[int, ...]) -> list[Segment]:
    """The layers in order, neighbours of one kind together.

    >>> segments(4, (1, 2))
    [Segment(linear=False, first=0, stop=1), Segment(linear=True, first=0, stop=2), \
Segment(linear=False, first=1, stop=2)]
    """
    found: list[Segment] = []
    seen = {True: 0, False: 0}
    for layer in range(layers):
        linear = layer in operators
        place, seen[linear] = seen[linear], seen[linear] + 1
        if found and found[-1].linear == linear:
            found[-1] = found[-1]._replace(stop=place + 1)
        else:
            found.append(Segment(linear, place, place + 1))
    return found


class Remembered(NamedTuple):
    """What layers remember, stacked by layer: the states of mixers, and the last streams that
    operators read, ``[operators, b, delays - 1, dim]``; None without operators.
    """

    mixers: PyTree
    recent: Array | None


class _Operator(nnx.Module):
    def __init__(self, config: KoopmanConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        weights, self.delays = at_least_float32(dtype), config.delays
        linear = partial(nnx.Linear, dtype=dtype, param_dtype=weights, rngs=rngs)
        width, scale = config.delays * config.dim, 0.02 / (2 * config.layers) ** 0.5
        self.read = linear(width, config.rank, use_bias=False, kernel_init=normal(0.02))
        self.write = linear(config.rank, config.dim, kernel_init=normal(scale))

    def __call__(self, x: Array) -> Array:
        return x + self.write(self.read(delayed(x, self.delays)))

    def decode(self, x: Array, recent: Array) -> tuple[Array, Array]:
        window = jnp.concatenate([recent, x[:, None]], axis=1)
        return x + self.write(self.read(delayed(window, self.delays)[:, -1])), window[:, 1:]


def _join(parts: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


class KoopmanResNetBK(ResNetBK):
    """The weights of the model, and what it computes with them; :func:`build` checks the options.

    Args:
        config: the model's options.
        vocab_size: number of tokens.
        length: the most tokens of a sequence, if ``config.positions``; without effect otherwise.
        dtype: that of the arithmetic: float32, float64 or bfloat16.
        rngs: where first weights come from.
    """

    residual = False

    def __init__(
        self,
        config: KoopmanConfig,
        vocab_size: int,
        length: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        others = config.layers - len(config.operators)
        plain = dataclasses.replace(config, layers=others, operators=())
        super().__init__(plain, vocab_size, length, dtype=dtype, rngs=rngs)
        self.segments = tuple(segments(config.layers, config.operators))
        self.delays = config.delays
        if config.operators:
            self.operators = Stack(
                lambda rngs: _Operator(config, dtype=dtype, rngs=rngs),
                len(config.operators),
                rngs=rngs,
            )

    def _through(
        self, x: Array, run: Callable[[Segment, Array], tuple[Array, Any]]
    ) -> tuple[Array, list[Any]]:
        """The stream after all segments, and what ``run(segment, x)`` says of each."""
        found = []
        for segment in self.segments:
            x, said = run(segment, x)
            found.append(said)
        return x, found

    def _forward(
        self, batch: Batch, key: Array | None, watch_fn: WatchFn
    ) -> tuple[Prediction, Any]:
        keys = None if key is None else jax.random.split(key, self.config.layers)

        def hidden_only(hidden: Array, resolvent: Array | None = None) -> Any:
            del resolvent  # operators have none
            return watch_fn(hidden)

        def run(segment: Segment, x: Array) -> tuple[Array, Any]:
            span = slice(segment.first, segment.stop)
            if segment.linear:
                x, seen = self.operators.scan(_watched_operator(watch_fn), x, None, span)
                return x, (None, seen)
            return self.blocks.scan(
                lambda block, x, key: block(x, key, batch.mask, hidden_only),
                x,
                None if keys is None else keys[span],
                span,
            )

        x, found = self._through(self.embed(batch.tokens, positions_of(batch)), run)
        statistics = _join([said for said, _ in found if said is not None])
        seen = _join([shown for _, shown in found])
        return Prediction(self.logits(x), {}, {}, statistics), seen

    def init_decode(self, batch_size: int) -> Memory:
        memory, recent = super().init_decode(batch_size), None
        if any(segment.linear for segment in self.segments):
            shape = (self.operators.num_layers, batch_size, self.delays - 1, self.tokens.features)
            recent = jnp.zeros(shape, self.tokens.dtype)
        return memory._replace(mixers=Remembered(memory.mixers, recent))

    def decode(self, state: Memory, tokens: Array) -> tuple[Array, Memory]:
        mixers, recent = state.mixers

        def run(segment: Segment, x: Array) -> tuple[Array, Any]:
            span = slice(segment.first, segment.stop)
            if segment.linear:
                return self.operators.scan(
                    lambda block, x, recent: block.decode(x, recent), x, recent[span], span
                )
            memory = jax.tree.map(lambda m: m[span], mixers)
            return self.blocks.scan(lambda block, x, m: block.decode(x, m), x, memory, span)

        x = self.embed(tokens, jnp.broadcast_to(state.position, tokens.shape))
        x, found = self._through(x, run)
        kinds = list(zip(self.segments, found, strict=True))
        now = _join([after for segment, after in kinds if not segment.linear])
        streams = [after for segment, after in kinds if segment.linear]
        remembered = Remembered(now, _join(streams) if streams else None)
        return self.logits(x), Memory(remembered, state.position + 1)


def _watched_operator(watch_fn: WatchFn) -> Callable[[Any, Array, None], tuple[Array, Any]]:
    def step(block: Any, x: Array, none: None) -> tuple[Array, Any]:
        x = block(x)
        return x, watch_fn(x)

    return step


def build(
    config: KoopmanConfig, vocab_size: int, length: int, dtype: jnp.dtype = jnp.float32
) -> SequenceModel:
    """ResNet-BK with Koopman blocks over ``vocab_size`` tokens.

    Args:
        config: see :class:`vfejax.models.koopman.config.KoopmanConfig`.
        vocab_size: number of tokens.
        length: how many tokens a sequence has, if ``config.positions``; else any number is fine.
        dtype: float32, float64 or bfloat16.

    Raises:
        ValueError: for numbers that do not fit together, naming the option.
    """
    check_options(config, layers=1, delays=1, rank=1)
    check_operators(config.operators, config.layers)
    resnet_bk.model.build(config, vocab_size, length, dtype)  # checks the other options
    if config.rank > config.dim:
        raise OptionError("rank", config.rank, f"at most dim {config.dim}")
    model = pure(
        lambda rngs: KoopmanResNetBK(config, vocab_size, length, dtype=dtype, rngs=rngs),
        summarize=lambda statistics: summary(config, statistics),
    )
    return model._replace(activations=None)  # blocks run in several scans
