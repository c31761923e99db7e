"""What can be taken out of a modern GPT, and of models that share its block."""

from vfejax.compression.prune import Cut, Part
from vfejax.models.gpt_modern.block import BlockConfig
from vfejax.models.units import BLOCK, blocks, hidden, stream

__all__ = ["structure"]


def structure(config: BlockConfig, depth: int = 1) -> dict[str, Part]:
    """Where heads, channels, hidden units and layers are in the weights.

    Args:
        config: sizes.
        depth: platters that the heads are dealt out to. The heads at the same place of each
            platter are one unit, so that platters go on matching.

    >>> from vfejax.models.gpt_modern.config import ModernGPTConfig
    >>> structure(ModernGPTConfig())["heads"].channels
    32
    """
    channels = config.dim // config.heads
    reader = Cut(f"{BLOCK}attention_out/kernel", -2, copies=depth, size=channels)
    writers = ["tokens/embedding"]
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
            config.heads // depth,
            (Cut(f"{BLOCK}qkv/kernel", -1, copies=3 * depth, size=channels), reader),
            reader=reader,
            multiple=depth,
            channels=depth * channels,
        ),
        "hidden": hidden(config.hidden, "mlp_in/kernel", "mlp_out/kernel", copies=2),
    }
