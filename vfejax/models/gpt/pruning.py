"""What can be taken out of a GPT."""

from vfejax.compression.prune import Cut, Part
from vfejax.models.gpt.config import TransformerConfig
from vfejax.models.units import BLOCK, blocks, hidden, stream

__all__ = ["structure"]


def structure(config: TransformerConfig) -> dict[str, Part]:
    """Where heads, channels, hidden units and layers are in the weights.

    >>> structure(TransformerConfig())["heads"].channels
    32
    """
    channels = config.dim // config.heads
    reader = Cut(f"{BLOCK}attention_out/kernel", -2, size=channels)
    writers = ["tokens/embedding", "positions/embedding"]
    writers += [f"{BLOCK}{name}/kernel" for name in ("attention_out", "mlp_out")]
    norms = ["norm/scale", *(f"{BLOCK}{name}/scale" for name in ("attention_norm", "mlp_norm"))]
    return {
        "layers": blocks(config.layers),
        "dim": stream(
            config.dim,
            writers=writers,
            readers=[f"{BLOCK}qkv/kernel", f"{BLOCK}mlp_in/kernel"],
            norms=norms,
        ),
        "heads": Part(
            config.heads,
            (Cut(f"{BLOCK}qkv/kernel", -1, copies=3, size=channels), reader),
            reader=reader,
            channels=channels,
        ),
        "hidden": hidden(config.hidden, "mlp_in/kernel", "mlp_out/kernel"),
    }
