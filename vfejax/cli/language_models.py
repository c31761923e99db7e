"""The models that ``vfejax train`` knows, and a trained one read back from its run."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.cli import options as configuration
from vfejax.cli.train.config import TrainConfig, check_values, model_options
from vfejax.data import tokenizers
from vfejax.data.tokenizers import Tokenizer
from vfejax.errors import UserError
from vfejax.models import table
from vfejax.models.blocks import OptionError
from vfejax.runs import checkpoint
from vfejax.runs import directory as run_directory
from vfejax.runs.seeds import random_key
from vfejax.types import PyTree, SequenceModel

__all__ = ["BEST", "Trained", "build", "load"]

BEST = "best"  # folder of a run that holds the weights with the smallest validation loss


class Trained(NamedTuple):
    """A run's settings, model, best weights, vocabulary, and the step and validation loss (nats per
    token) of those weights.
    """

    config: TrainConfig
    model: SequenceModel
    params: PyTree
    vocabulary: Tokenizer
    step: int
    valid_loss: float


def build(config: TrainConfig, vocab_size: int, tokens: np.ndarray | None = None) -> SequenceModel:
    """The model that a configuration describes; numbers that do not fit together are a UserError.

    ``tokens`` is the training text, ``[n]``; weights that are read back need none.
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


def load(path: Path) -> Trained:
    """Read what ``vfejax train`` left at ``path``; switches to float64 when the run used it.

    Raises:
        UserError: when it is no such run, has not been evaluated yet, or is damaged.
    """
    stored = run_directory.read_config(path)
    if "model" not in stored:
        raise UserError(f"{path} holds no trained model; give a directory that vfejax train wrote")
    config = configuration.stored(
        TrainConfig, path, program="vfejax train", check_values=check_values
    )
    if config.compute == "float64":
        jax.config.update("jax_enable_x64", True)
    words = tokenizers.load(path / "vocabulary.json")
    model = build(config, words.size)
    if checkpoint.latest_step(path / BEST) is None:
        raise UserError(
            f"{path} holds no weights yet; wait for the first evaluation of vfejax train"
        )
    template = jax.eval_shape(model.init, random_key(config.seed))
    params, meta = checkpoint.restore(path / BEST, template)
    return Trained(config, model, params, words, meta["step"], meta["valid_loss"])
