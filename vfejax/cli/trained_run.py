"""A trained run, as ``vfejax evaluate`` and ``vfejax generate`` read it."""

from pathlib import Path
from typing import NamedTuple

import jax

from vfejax import runs
from vfejax.cli import options
from vfejax.cli.train.config import TrainConfig
from vfejax.cli.train.limits import check_values
from vfejax.data.tokenizers import Tokenizer
from vfejax.errors import UserError
from vfejax.runs import artefact, checkpoint
from vfejax.runs.load import BEST, settings
from vfejax.types import PyTree, SequenceModel

__all__ = ["Trained", "read"]


class Trained(NamedTuple):
    """Options of a run, its model, best weights and tokenizer, and the step of those weights."""

    config: TrainConfig
    model: SequenceModel
    params: PyTree
    vocabulary: Tokenizer
    step: int


def read(path: Path) -> Trained:
    """Read what ``vfejax train`` or ``vfejax compress`` left; switches to float64 when the run
    used it.

    Args:
        path: the directory of the run, or the file of a compressed model.

    Raises:
        UserError: when it is no such run, has not been evaluated yet, or is damaged.
    """
    mapping = settings(path)
    if "model" not in mapping:
        raise UserError(
            f"{path} holds no trained model; give a directory that vfejax train wrote, or a file "
            "of vfejax compress"
        )
    where = str(path if artefact.is_artefact(path) else path / "config.toml")
    config = options.restored(
        TrainConfig, mapping, where, program="vfejax train", check_values=check_values
    )
    if config.compute == "float64":
        jax.config.update("jax_enable_x64", True)
    run = runs.load(path)
    if run.model is None or run.vocabulary is None or run.step is None:
        if checkpoint.latest_step(run.path / BEST) is not None:
            raise UserError(
                f"{path}/vocabulary.json is missing; put it back, or let vfejax train --resume "
                f"--out {path} make it again from the run's data"
            )
        raise UserError(
            f"{path} holds no weights yet; wait for the first evaluation of vfejax train, or go on "
            f"with vfejax train --resume --out {path}"
        )
    return Trained(config, run.model, run.params, run.vocabulary, run.step)
