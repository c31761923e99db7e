"""The modern GPT with attention on a torus: tokens on a ring, heads on platters, and a bias that
grows with the distance.

The block is that of :mod:`vfejax.models.gpt_modern`, and the first weights are the same for the
same key. Only the attention differs: in place of ``attend`` stands

    fuse(attend on the torus(norm(W_q x), norm(W_k x), W_v x; slopes)),

with rotary positions of the torus, a slope per head, ``softplus`` of a weight so that it stays
positive, and a depth fusion that starts as the identity. With one platter, standard positions, no
slopes, no fusion and a ring as long as the text, it is the modern GPT.

Texts longer than the ring. A head reads the last ``window`` tokens, at most a whole ring of them.
Token i stands at place i mod N and takes the place of token i - N, which nobody reads any more.
So texts may have any length, and decoding keeps ``window`` keys per head, however long the text is
(:mod:`vfejax.attention.streaming`). Distances and turns are per circumference: weights of one
circumference mean something else on another, so a longer context is a larger ``circumference``.

Source: Press, Smith and Lewis, Train short, test long (2022), for the first slopes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.attention import windows
from vfejax.attention.depth_fusion import FUSIONS
from vfejax.attention.windows import WindowState
from vfejax.models.blocks import Stack, dropout, embedding
from vfejax.models.gpt_modern.block import EPSILON, Block
from vfejax.models.intermediates import Watched, WatchFn
from vfejax.models.protocol import merging, positions_of, pure
from vfejax.models.toroidal.config import ToroidalConfig
from vfejax.models.toroidal.options import check, first_slopes, torus_of
from vfejax.models.toroidal.torus import Torus, attend, read_weights, stream, turned
from vfejax.models.toroidal.weights import TorusWeights
from vfejax.numerics import at_least_float32
from vfejax.types import Array, Batch, Maps, Prediction, PyTree, SequenceModel

__all__ = ["ToroidalConfig", "ToroidalGPT", "build", "maps"]


class _Block(Block):
    def __init__(
        self,
        config: ToroidalConfig,
        slopes: tuple[float, ...],
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.torus = TorusWeights(
            slopes,
            FUSIONS[config.fusion],
            learn_slopes=config.learn_slopes,
            depth=config.depth,
            dim=config.dim,
            rank=config.rank,
            param_dtype=at_least_float32(dtype),
            rngs=rngs,
        )


class ToroidalGPT(Watched):
    """The weights of a toroidal GPT, and what it computes with them; :func:`build` checks the
    options.

    Args:
        config: the model's options.
        torus: what its heads attend on.
        slopes: first slopes, of each head of a platter or of each head.
        vocab_size: number of tokens.
        dtype: that of the arithmetic: float32, float64 or bfloat16.
        rngs: where first weights come from.
    """

    residual = True

    def __init__(
        self,
        config: ToroidalConfig,
        torus: Torus,
        slopes: tuple[float, ...],
        vocab_size: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.config, self.torus = config, torus
        self.max_length: int | None = None
        self.tokens = embedding(vocab_size, config.dim, dtype=dtype, rngs=rngs)
        self.blocks = Stack(
            lambda rngs: _Block(config, slopes, dtype=dtype, rngs=rngs), config.layers, rngs=rngs
        )
        self.norm = nnx.RMSNorm(
            config.dim,
            epsilon=EPSILON,
            dtype=dtype,
            param_dtype=at_least_float32(dtype),
            rngs=rngs,
        )

    def _attended(self, block: _Block, x: Array, batch: Batch) -> Array:
        positions, mask = None, None
        if batch.positions is not None:
            # Places may go back: the order of the tokens says who may read whom.
            positions, n = positions_of(batch), batch.tokens.shape[1]
            mask = jnp.tril(jnp.ones((n, n), bool))[None, None]
        attended = attend(
            self.torus, *block.project(x), block.torus.slope(), mask=mask, positions=positions
        )
        return block.torus.fuse(attended)

    def _forward(
        self, batch: Batch, key: Array | None, watch_fn: WatchFn
    ) -> tuple[Prediction, Any]:
        keys = None if key is None else jax.random.split(key, self.config.layers + 1)
        x = self.tokens(batch.tokens)
        x = dropout(x, self.config.dropout, None if keys is None else keys[-1])

        def step(block: _Block, x: Array, key: Array | None) -> tuple[Array, Any]:
            x = block.finish(x, self._attended(block, x, batch), key)
            return x, watch_fn(x)

        x, seen = self.blocks.scan(step, x, None if keys is None else keys[:-1])
        return Prediction(self.tokens.attend(self.norm(x)), {}, {}), seen

    def init_decode(self, batch_size: int) -> WindowState:
        shape = (batch_size, 1, self.config.heads, self.config.dim // self.config.heads)
        token: Any = jax.ShapeDtypeStruct(shape, self.tokens.dtype)
        empty = stream(self.torus, None).init((token, token, token))
        return self.blocks.repeat(lambda block: empty)

    def decode(self, state: WindowState, tokens: Array) -> tuple[Array, WindowState]:
        x = self.tokens(tokens)[:, None]

        def step(block: _Block, x: Array, memory: WindowState) -> tuple[Array, WindowState]:
            query, key, value = block.project(x)
            here = windows.places(memory, 1)
            token = turned(self.torus, query, here), turned(self.torus, key, here), value
            memory, answer = stream(self.torus, block.torus.slope()).step(memory, token)
            return block.finish(x, block.torus.fuse(answer.values), None), memory

        x, state = self.blocks.scan(step, x, state)
        return self.tokens.attend(self.norm(x))[:, 0], state

    def last_reads(self, tokens: Array) -> Array:
        """The weight with which the last token reads every token, ``[layers, b, heads, P, n]``: all
        platters of a token in joint attention (P = D), the head's own in axial attention (P = 1).

        Args:
            tokens: integers ``[b, n]``, all of them real.
        """

        def step(block: _Block, x: Array, none: None) -> tuple[Array, Array]:
            query, key, _ = block.project(x)
            weights = read_weights(self.torus, query, key, block.torus.slope())
            return block.finish(x, self._attended(block, x, Batch(tokens)), None), weights[:, -1]

        return self.blocks.scan(step, self.tokens(tokens))[1]


def build(
    config: ToroidalConfig, vocab_size: int, length: int, dtype: jnp.dtype = jnp.float32
) -> SequenceModel:
    """A toroidal GPT over ``vocab_size`` tokens, for sequences of any length.

    Args:
        config: see :class:`vfejax.models.toroidal.config.ToroidalConfig`.
        vocab_size: number of tokens.
        length: tokens of a training sequence; the circumference, where the options leave it open.
        dtype: float32, float64 or bfloat16, that of the arithmetic.

    Raises:
        ValueError: for numbers that do not fit together, naming the option.

    >>> config = ToroidalConfig(layers=1, dim=16, heads=4, hidden=8, window=4)
    >>> model = build(config, vocab_size=5, length=12)
    >>> params = model.init(jax.random.key(0))
    >>> model.apply(params, jnp.zeros((2, 30), jnp.int32)).logits.shape
    (2, 30, 5)
    >>> model.init_decode(params, 2).ring[0].shape  # [layers, b, h / D, window, D, c]
    (1, 2, 2, 4, 2, 4)
    """
    return pure(_creator(config, vocab_size, length, dtype))


def _creator(
    config: ToroidalConfig, vocab_size: int, length: int, dtype: jnp.dtype
) -> Callable[[nnx.Rngs], ToroidalGPT]:
    check(config)
    torus = torus_of(config, length)
    slopes = first_slopes(config, torus.circumference)
    return lambda rngs: ToroidalGPT(config, torus, slopes, vocab_size, dtype=dtype, rngs=rngs)


def maps(
    config: ToroidalConfig, vocab_size: int, length: int, dtype: jnp.dtype = jnp.float32
) -> Maps:
    """Where the last token of a text looks: its attention over the torus, for every block and
    platter that reads.

    Args:
        config, vocab_size, length, dtype: as :func:`build` takes them.

    Returns:
        Panels ``[D, n]`` by name: platter that is read, and tokens back from the last one. Weights
        are means over texts and over the heads of a platter.
    """
    restored = merging(_creator(config, vocab_size, length, dtype))
    joint = torus_of(config, length).mode.meets

    def values(params: PyTree, tokens: Array) -> dict[str, Array]:
        # One text at a time: the weights of all queries take n^2 D numbers for each head.
        weights = jax.lax.map(lambda row: restored(params).last_reads(row[None])[:, 0], tokens)
        weights = weights.astype(at_least_float32(weights.dtype))
        shape = (*weights.shape[:2], config.depth, -1, *weights.shape[3:])
        mean = jnp.mean(weights.reshape(shape), axis=(0, 3))[..., ::-1]  # [layers, D, P, n]
        if not joint:
            return {f"block {i}": layer[:, 0] for i, layer in enumerate(mean)}
        return {
            f"block {i}, platter {k} reads": mean[i, k]
            for i in range(config.layers)
            for k in range(config.depth)
        }

    return Maps(
        values,
        name="attention",
        title="Attention over the torus",
        caption=(
            "Share of its attention that the last token of a window of the validation text gives "
            "to each token before it (tokens back along the ring) on each platter; mean over "
            "windows and over the heads of a platter. Grey: not read."
        ),
        xlabel="tokens back",
        ylabel="platter read",
        label="mean attention weight",
        columns=min(config.depth, 2) if joint else 1,
    )
