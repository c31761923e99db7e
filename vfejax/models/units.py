"""Units that can be taken out of a model: what most structures of models have in common
(:mod:`vfejax.compression.prune`).
"""

from collections.abc import Iterable

from vfejax.compression.prune import Cut, Part, Scaling

__all__ = ["BLOCK", "blocks", "hidden", "stream"]

BLOCK = "blocks/block/"
"""Where the leaves of a stack's blocks are."""


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
