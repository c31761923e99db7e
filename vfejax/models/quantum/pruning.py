"""What can be taken out of a quantum transformer: blocks, channels of its stream, hidden units. The
levels of its states are no units: states and Hamiltonians have no meaning without some of them.
"""

from vfejax.compression.prune import Part
from vfejax.models.quantum.config import QuantumTransformerConfig
from vfejax.models.units import BLOCK, blocks, hidden, stream

__all__ = ["structure"]


def structure(config: QuantumTransformerConfig) -> dict[str, Part]:
    """Where the units are in the weights.

    >>> list(structure(QuantumTransformerConfig()))
    ['blocks', 'width', 'hidden']
    """
    return {
        "blocks": blocks(config.blocks),
        "width": stream(
            config.width,
            writers=["values/kernel", f"{BLOCK}values/kernel", f"{BLOCK}mlp_out/kernel"],
            readers=["output/kernel", f"{BLOCK}mlp_in/kernel"],
            norms=["norm/scale", f"{BLOCK}norm/scale"],
        ),
        "hidden": hidden(config.hidden, "mlp_in/kernel", "mlp_out/kernel"),
    }
