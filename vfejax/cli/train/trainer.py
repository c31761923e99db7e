"""How the model of ``vfejax train`` learns."""

from collections.abc import Callable
from typing import Any

from vfejax.cli.train.config import TrainConfig, model_options, with_defaults
from vfejax.cli.train.model import Start
from vfejax.cli.train.optimizers import DESCENTS
from vfejax.errors import UserError
from vfejax.models.table import MODELS
from vfejax.training import surrogate_trainers
from vfejax.training.step import trainer
from vfejax.types import Array, SequenceModel, Trainer

__all__ = ["SURROGATES", "trainer_of"]

SURROGATES: dict[str, Callable[..., Trainer]] = {
    "koopman": surrogate_trainers.koopman_trainer,
    "identity": surrogate_trainers.identity_trainer,
    "readout": surrogate_trainers.readout_trainer,
}
"""How a model learns by other gradients than exact ones, by the name of the option."""


def trainer_of(
    config: TrainConfig, start: Start, rate: Callable[[Any], Any], key: Array
) -> Trainer:
    """The model's own method of learning, or else gradient descent.

    The windows of training are cut from the text and hold no padding.

    Args:
        config: the options.
        start: the model, and which of its weights learn.
        rate: the learning rate of an update.
        key: source of all randomness in training.

    Raises:
        UserError: for a method that the model cannot learn by, naming the option.
    """
    own = MODELS[config.model].trainer if config.model in MODELS else None
    if own is not None:
        return own(start.model, model_options(config), rate, key)
    optimizer = DESCENTS[config.optimizer].build(with_defaults(config), rate)
    if config.gradients != "exact":
        try:
            return SURROGATES[config.gradients](start.model, optimizer, key)
        except ValueError as error:
            raise UserError(
                f"--gradients {config.gradients}: must be exact for {config.model}, whose blocks "
                "are of several kinds, or hand on more than one stream"
            ) from error
    model = _recomputing(config, start.model) if config.remat else start.model
    return trainer(model, optimizer, key, accumulation=config.accumulation, trained=start.trained)


def _recomputing(config: TrainConfig, model: SequenceModel) -> SequenceModel:
    if model.recompute is None:
        raise UserError(
            f"--remat {config.remat}: must be left out with --model {config.model}, whose gradient "
            "does not need what blocks compute"
        )
    return model._replace(apply=model.recompute)
