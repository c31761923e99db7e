"""A trained ResNet-BK with some of its blocks replaced by linear operators that were fitted on a
text: the start of a distillation.
"""

import dataclasses

import jax
import jax.numpy as jnp

from vfejax.models import span_fit
from vfejax.models.blocks import OptionError
from vfejax.models.koopman.config import KoopmanConfig, check_operators
from vfejax.models.resnet_bk.config import ResNetBKConfig
from vfejax.types import Array, PyTree, SequenceModel

__all__ = ["converted"]


def converted(
    config: ResNetBKConfig,
    model: SequenceModel,
    params: PyTree,
    tokens: Array,
    operators: tuple[int, ...],
    *,
    delays: int = 4,
    rank: int = 32,
) -> tuple[PyTree, KoopmanConfig]:
    """Weights and options of a Koopman model: each chosen block is the best operator of its rank.

    Args:
        config: options of the trained model.
        model: the trained model, a ResNet-BK.
        params: its weights.
        tokens: a text that operators are fitted on, integers ``[batches, b, n]``: one batch is read
            at a time.
        operators: numbers of the blocks that become operators, rising.
        delays: tokens that an operator reads.
        rank: of the operators, at most the width of the stream.

    Returns:
        The weights, as the options ask for, and the options.

    Raises:
        ValueError: for numbers that do not fit, naming the option.
    """
    if rank > config.dim:
        raise OptionError("rank", rank, f"at most dim {config.dim}")
    check_operators(operators, config.layers)
    plain = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    new = KoopmanConfig(**plain, operators=operators, delays=delays, rank=rank)
    spans = [(block, block + 1) for block in operators]
    fit = span_fit.fitted(model, params, tokens, spans, delays=delays)
    found = [span_fit.low_rank_map(fit, span, delays, rank) for span in spans]
    left, right, bias = (jnp.stack(x) for x in zip(*found, strict=True))
    kept = [n for n in range(config.layers) if n not in operators]
    blocks = jax.tree.map(lambda x: jnp.asarray(x)[jnp.asarray(kept)], params["blocks"])
    linear = {"read": {"kernel": left}, "write": {"kernel": right, "bias": bias}}
    return params | {"blocks": blocks, "operators": {"block": linear}}, new
