"""The prunable units of a toroidal GPT: those of a modern one, with equally many heads
on every platter.
"""

from vfejax.compression.prune import Cut, Part, Scaling
from vfejax.models.gpt_modern.pruning import structure as modern
from vfejax.models.prunable_units import BLOCK
from vfejax.models.toroidal.config import ToroidalConfig

__all__ = ["structure"]


def structure(config: ToroidalConfig) -> dict[str, Part]:
    """Where heads, channels, hidden units and layers are in the weights.

    Heads, and the width that goes with them, stay where slopes differ from head to head and are an
    option, not weights, so that layers could not keep different ones; or where platters share them.

    >>> structure(ToroidalConfig(heads=4, depth=2))["heads"].number  # of each platter
    2
    """
    found = modern(config, config.depth)
    heads, many = found["heads"], len(config.slopes)
    cuts, channels = list(heads.cuts), config.dim // config.heads
    if many != 1 and not (config.learn_slopes and many in (0, config.heads)):
        return {name: part for name, part in found.items() if name not in ("heads", "dim")}
    if config.learn_slopes:
        cuts.append(Cut(f"{BLOCK}torus/slopes", -1, copies=config.depth))
    if config.fusion == "low-rank":
        cuts += [Cut(f"{BLOCK}torus/fusion/{i}", -2, config.depth, channels) for i in (0, 1)]

    def fewer(kept: int) -> dict:
        """First slopes for as many heads; those that were learned stay what they are."""
        return {"slopes": config.slopes if many < 2 else config.slopes[: kept * config.depth]}

    scalings: tuple[Scaling, ...] = ()
    if config.fusion == "attention":
        # Platters read each other by products over the root of their width: values as long as to
        # leave these as they are, and outputs that undo it.
        scalings = (
            Scaling(f"{BLOCK}qkv/kernel", -0.25, part=2, parts=3),
            Scaling(f"{BLOCK}attention_out/kernel", 0.25),
        )
    return found | {"heads": heads._replace(cuts=tuple(cuts), scalings=scalings, options=fewer)}
