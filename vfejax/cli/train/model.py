"""The model that ``vfejax train`` asks for."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.cli.train.config import TrainConfig, model_options
from vfejax.errors import UserError
from vfejax.models import table
from vfejax.models.blocks import OptionError
from vfejax.models.phi import trainable
from vfejax.models.phi.directory import load_swapped
from vfejax.training import frozen_weights
from vfejax.types import Maps, PyTree, SequenceModel

__all__ = ["Start", "build", "check_size", "start"]

_LARGE = 1 << 16  # an option beyond this may make a model beyond all memory
_MOST_WEIGHTS = 10**12


class Start(NamedTuple):
    """What a training begins with.

    Attributes:
        model: the model; its ``init`` draws the first weights, or gives those that were read.
        trained: True for the weights that learn, a tree like the parameters; None when all do.
        fixed: the weights that stay, with None in the places of the others, as NumPy arrays; None
            when all learn.
        maps: images of what the model does with a text; None for none.
    """

    model: SequenceModel
    trained: PyTree | None = None
    fixed: PyTree | None = None
    maps: Maps | None = None

    def learning(self, params: PyTree) -> PyTree:
        """The weights that learn: what checkpoints hold."""
        return frozen_weights.split(params, self.trained)[0]

    def whole(self, learning: PyTree) -> PyTree:
        """All weights, from those that learn."""
        return frozen_weights.merge(learning, self.fixed)


def start(config: TrainConfig, vocab_size: int, tokens: np.ndarray) -> Start:
    """The model that a configuration describes, drawn or read.

    Args:
        config: the options.
        vocab_size: number of tokens.
        tokens: the training text, ``[n]``.

    Raises:
        UserError: for what does not fit, naming the option or the file.
    """
    if config.phi is None:
        return Start(build(config, vocab_size, tokens), maps=_maps(config, vocab_size))
    try:
        model, params = load_swapped(config.phi, config.swap, config.length, config.compute)
    except ValueError as error:
        raise UserError(f"--swap: {error}") from error
    ring = config.swap.circumference
    if ring is not None and ring < config.length:
        raise UserError(
            f"--swap.circumference {ring}: must be at least --length {config.length}: a ring has "
            "room for as many tokens as places"
        )
    trained = trainable(model, params)
    fixed = jax.device_get(frozen_weights.split(params, trained)[1])
    return Start(model._replace(init=lambda key: params), trained, fixed)


def _maps(config: TrainConfig, vocab_size: int) -> Maps | None:
    maps = table.MODELS[config.model].maps
    if maps is None:
        return None
    return maps(model_options(config), vocab_size, config.length, jnp.dtype(config.compute))


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
        model = table.build(
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
    check_size(model, f"--{config.model}", config.length, model_options(config))
    return model


def check_size(model: SequenceModel, name: str, length: int, options: Any) -> None:
    """Refuse a model that no machine can hold: XLA ends the process when a size overflows.

    Args:
        model: the model.
        name: the option that chose it.
        length: tokens of a window.
        options: of the model, a dataclass.

    Raises:
        UserError: for more weights than are possible.
    """
    numbers = (length, *dataclasses.asdict(options).values())
    if max((x for x in numbers if isinstance(x, int)), default=0) <= _LARGE:
        return
    shapes = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
    weights = sum(math.prod(x.shape) for x in shapes)
    if weights > _MOST_WEIGHTS:
        raise UserError(
            f"{name}: these options make a model of {weights:.3g} weights, and at most "
            f"{_MOST_WEIGHTS:.0e} are possible; choose smaller ones"
        )
