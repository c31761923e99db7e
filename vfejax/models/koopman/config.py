"""Options of ResNet-BK with Koopman blocks."""

from dataclasses import dataclass

from vfejax.models.blocks import OptionError
from vfejax.models.resnet_bk.config import ResNetBKConfig

__all__ = ["KoopmanConfig", "check_operators"]


@dataclass(frozen=True)
class KoopmanConfig(ResNetBKConfig):
    """ResNet-BK, some of whose blocks are linear operators on delay coordinates of the stream."""

    operators: tuple[int, ...] = (1,)
    """Numbers of the blocks, from 0, that are linear operators."""
    delays: int = 4
    """Tokens that an operator reads: each one and those before it."""
    rank: int = 32
    """Rank of an operator, which decides what it costs: (delays + 1) dim rank multiplications a
    token.
    """


def check_operators(operators: tuple[int, ...], layers: int) -> None:
    """Refuse numbers of operators that are no blocks, or all of them.

    Args:
        operators: numbers of blocks.
        layers: how many there are.

    Raises:
        OptionError: naming option and numbers.

    >>> check_operators((0, 2), 3)
    """
    if sorted(set(operators)) != list(operators) or not all(0 <= n < layers for n in operators):
        raise OptionError("operators", operators, f"numbers of blocks below {layers}, rising")
    if len(operators) == layers:
        raise OptionError("operators", operators, f"fewer than all {layers} blocks")
