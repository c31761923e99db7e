"""The prunable units of a quantum transformer: channels of its stream, and hidden units.

The levels of its states are no units, since a Hamiltonian means nothing without some of them. A
block is none either: it hands evolved states on, and how much they lose depends on how many blocks
there are.
"""

from vfejax.compression.prune import Part
from vfejax.models.prunable_units import BLOCK, hidden, stream
from vfejax.models.quantum.config import QuantumTransformerConfig

__all__ = ["structure"]


def structure(config: QuantumTransformerConfig) -> dict[str, Part]:
    """Where the units are in the weights.

    >>> list(structure(QuantumTransformerConfig()))
    ['width', 'hidden']
    """
    return {
        "width": stream(
            config.width,
            writers=["values/kernel", f"{BLOCK}values/kernel", f"{BLOCK}mlp_out/kernel"],
            readers=["output/kernel", f"{BLOCK}mlp_in/kernel"],
            norms=["norm/scale", f"{BLOCK}norm/scale"],
        ),
        "hidden": hidden(config.hidden, "mlp_in/kernel", "mlp_out/kernel"),
    }
