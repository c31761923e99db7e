"""The model that ``vfejax train`` asks for."""

import jax.numpy as jnp
import numpy as np

from vfejax.cli.train.config import TrainConfig, model_options
from vfejax.errors import UserError
from vfejax.models import table
from vfejax.models.blocks import OptionError
from vfejax.types import SequenceModel

__all__ = ["build"]


def build(config: TrainConfig, vocab_size: int, tokens: np.ndarray | None = None) -> SequenceModel:
    """The model that a configuration describes.

    Args:
        config: the options.
        vocab_size: number of tokens.
        tokens: the training text, ``[n]``; weights that are read back need none.

    Raises:
        UserError: for numbers that do not fit together, naming the option.
    """
    counts = None if tokens is None else np.bincount(tokens, minlength=vocab_size)
    try:
        return table.build(
            config.model,
            model_options(config),
            vocab_size,
            config.length,
            jnp.dtype(config.compute),
            counts,
        )
    except OptionError as error:
        flag = f"--{config.model}.{error.name.replace('_', '-')} {error.value}"
        raise UserError(f"{flag}: must be {error.requirement}") from error
    except ValueError as error:
        raise UserError(f"--{config.model}: {error}") from error
