"""Prunable units of a model: what most structures of models have in common
(:mod:`vfejax.compression.prune`).
"""

from collections.abc import Iterable
from typing import Protocol

from vfejax.compression.prune import Cut, Part, Scaling

__all__ = ["BLOCK", "Sizes", "blocks", "hidden", "stream", "transformer"]

BLOCK = "blocks/block/"
"""Where the leaves of a stack's blocks are."""


class Sizes(Protocol):
    """Sizes of a transformer; :class:`vfejax.models.gpt.config.TransformerConfig` has them."""

    @property
    def layers(self) -> int: ...
    @property
    def dim(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def hidden(self) -> int: ...


def blocks(count: int) -> Part:
    """The blocks of a stack, which are worth how far they turn the stream.

    >>> blocks(4).cuts
    (Cut(leaf='blocks/*', axis=0, copies=1, size=1),)
    """
    return Part(count, (Cut("blocks/*", 0),), scored=("blocks/change",), shared=True)


def hidden(count: int, first: str, last: str, copies: int = 1) -> Part:
    """The hidden units of a feed-forward layer.

    Args:
        count: number of units.
        first: the kernel that writes them.
        last: the kernel that reads them.
        copies: how often they follow one another in what is written: twice for a gate and a value.

    >>> hidden(8, "mlp_in/kernel", "mlp_out/kernel", copies=2).reader.axis
    -2
    """
    reader = Cut(f"{BLOCK}{last}", -2)
    return Part(count, (Cut(f"{BLOCK}{first}", -1, copies), reader), reader=reader)


def stream(
    dim: int, *, writers: Iterable[str], readers: Iterable[str], norms: Iterable[str]
) -> Part:
    """The channels of the residual stream.

    A norm divides by the root mean square of its channels, which grows when channels that were
    small are gone; its scales grow by as much, so that what stays is read as large as before.

    Args:
        dim: number of channels.
        writers: leaves whose last axis are the channels.
        readers: kernels whose inputs are the channels.
        norms: scales of the norms that read the stream; channels are worth their share of what
            these read.

    >>> part = stream(8, writers=["tokens/embedding"], readers=[], norms=["norm/scale"])
    >>> part.scored, part.shared
    (('norm/scale',), True)
    """
    norms = tuple(norms)
    cuts = [Cut(leaf, -1) for leaf in (*writers, *norms)] + [Cut(leaf, -2) for leaf in readers]
    scalings = tuple(Scaling(norm, 0.5) for norm in norms)
    return Part(dim, tuple(cuts), scored=norms, shared=True, scalings=scalings)


def transformer(
    sizes: Sizes, *, embeddings: Iterable[str], gates: int = 0, depth: int = 1
) -> dict[str, Part]:
    """The heads, channels, hidden units and layers of a transformer.

    Args:
        sizes: of the model.
        embeddings: leaves that write the stream before the first block.
        gates: how many gates a hidden unit has.
        depth: platters that the heads are dealt out to. The heads at the same place of each
            platter are one unit, so that platters go on matching.

    >>> from vfejax.models.gpt.config import TransformerConfig
    >>> transformer(TransformerConfig(), embeddings=["tokens/embedding"])["heads"].channels
    32
    """
    channels = sizes.dim // sizes.heads
    reader = Cut(f"{BLOCK}attention_out/kernel", -2, copies=depth, size=channels)
    writers = (f"{BLOCK}{name}/kernel" for name in ("attention_out", "mlp_out"))
    norms = ["norm/scale", *(f"{BLOCK}{name}/scale" for name in ("attention_norm", "mlp_norm"))]
    return {
        "layers": blocks(sizes.layers),
        "dim": stream(
            sizes.dim,
            writers=[*embeddings, *writers],
            readers=[f"{BLOCK}qkv/kernel", f"{BLOCK}mlp_in/kernel"],
            norms=norms,
        ),
        "heads": Part(
            sizes.heads // depth,
            (Cut(f"{BLOCK}qkv/kernel", -1, copies=3 * depth, size=channels), reader),
            reader=reader,
            multiple=depth,
            channels=depth * channels,
        ),
        "hidden": hidden(sizes.hidden, "mlp_in/kernel", "mlp_out/kernel", copies=1 + gates),
    }
