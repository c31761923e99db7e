"""The prunable units of a VFE transformer."""

from vfejax.compression.prune import Cut, Part
from vfejax.models.prunable_units import BLOCK, blocks, hidden, stream
from vfejax.models.vfe.config import VFEConfig
from vfejax.models.vfe.options import rule_of

__all__ = ["structure"]


def structure(config: VFEConfig) -> dict[str, Part]:
    """Where heads, channels, hidden units and layers are in the weights.

    Heads and channels only where nothing but weights depends on how many there are: priors are read
    from the stream, the output compares no beliefs, and there are no positions, whose wavelengths
    are spread over the heads, or over the channels.

    >>> list(structure(VFEConfig())), list(structure(VFEConfig(position="none")))
    (['layers', 'hidden'], ['layers', 'hidden', 'dim', 'heads'])
    """
    found = {"layers": blocks(config.layers)}
    if config.hidden:
        found["hidden"] = hidden(config.hidden, "mlp_in/kernel", "mlp_out/kernel", copies=2)
    if config.priors == "carried" or config.output == "kl" or config.position != "none":
        return found
    return found | {"dim": _stream(config), "heads": _heads(config)}


def _framed(config: VFEConfig) -> list[str]:
    return [] if config.frames == "identity" else ["phi"]


def _stream(config: VFEConfig) -> Part:
    read = ["mean", "spread", *_framed(config), *(["mlp_in"] if config.hidden else [])]
    wrote = ["out", *(["mlp_out"] if config.hidden else [])]
    norms = ["readout/norm/scale", f"{BLOCK}norm/scale"]
    norms += [f"{BLOCK}mlp_norm/scale"] if config.hidden else []
    readers = [f"{BLOCK}{name}/kernel" for name in read]
    return stream(
        config.dim,
        writers=["embed/tokens/embedding", *(f"{BLOCK}{name}/kernel" for name in wrote)],
        readers=readers + (["readout/output/kernel"] if config.output == "linear" else []),
        norms=norms if config.norm == "rms" else [],
    )


def _heads(config: VFEConfig) -> Part:
    rule, channels = rule_of(config), config.dim // config.heads
    numbers = rule.family.num_raw(rule.layout)
    reader = Cut(f"{BLOCK}out/kernel", -2, size=channels)
    cuts = [reader, Cut(f"{BLOCK}mean/kernel", -1, size=channels)]
    cuts += [Cut(f"{BLOCK}spread/kernel", -1, size=numbers), Cut(f"{BLOCK}spread_bias", -2)]
    cuts += [Cut(f"{BLOCK}{name}", -1) for name in ("log_coupling", "log_temperature")]
    coordinates = rule.layout.group.generators.shape[0]
    cuts += [Cut(f"{BLOCK}{name}/kernel", -1, size=coordinates) for name in _framed(config)]
    cuts += [Cut(f"{BLOCK}mean_bias", -3)] if config.mean_bias else []
    cuts += [Cut(f"{BLOCK}mean_scale", -3)] if config.mean_norm else []
    cuts += [Cut(f"{BLOCK}link", -3)] if config.link else []
    return Part(config.heads, tuple(cuts), reader=reader, channels=channels)
