"""The run that is compressed, with its text: read, never written."""

from typing import Any, NamedTuple

import numpy as np

from vfejax import runs
from vfejax.cli import options, trained_run
from vfejax.cli.compress.config import CompressConfig
from vfejax.cli.train.config import PRETRAINED, TrainConfig, model_options
from vfejax.cli.train.corpora import named_inputs, train_corpus
from vfejax.cli.trained_run import Trained
from vfejax.data.batches import evaluation_windows
from vfejax.data.corpus import Corpus
from vfejax.errors import UserError
from vfejax.models.table import field_name
from vfejax.runs import artefact
from vfejax.runs import inputs as run_inputs
from vfejax.types import PyTree, SequenceModel

__all__ = ["Teacher", "read", "settings"]

_OF_DATA = ("text", "valid_fraction", "length", "batch_size", "compute", "seed")


class Teacher(NamedTuple):
    """What is compressed.

    Attributes:
        config: options of its training.
        model, params: with its best weights.
        step: number of updates after which they were there.
        checksum: SHA-256 of the weights.
        inputs: what the run was computed from, as its ``inputs.json`` has it.
        corpus: its text.
    """

    config: TrainConfig
    model: SequenceModel
    params: PyTree
    step: int
    checksum: str
    inputs: dict[str, Any] | None
    corpus: Corpus

    @property
    def options(self) -> Any:
        """Options of the model."""
        return model_options(self.config)

    def valid_windows(self, limit: int) -> np.ndarray:
        """Windows of the validation text, at most so many; all for 0."""
        return evaluation_windows(
            self.corpus.valid.tokens,
            self.config.length,
            self.config.batch_size,
            self.corpus.vocabulary.padding_id,
            limit=limit or None,
        )


def read(config: CompressConfig) -> Teacher:
    """Read the run of ``--run``; switches to float64 when it was computed so.

    Raises:
        UserError: for what is no finished run of ``vfejax train``, and when its text is not what it
            was.
    """
    place = config.run
    if place.suffix == artefact.SUFFIX and place.is_file():
        raise UserError(
            f"--run {place}: is a compressed model already; give the run that it came from"
        )
    stored = runs.directory.read_config(place)
    if "rounded_share" in stored:
        raise UserError(f"--run {place}: is a compression; give the run that it was made from")
    if stored.get("model") == PRETRAINED:
        raise UserError(
            f"--run {place}: trained layers of a pretrained Phi model, whose other weights are not "
            "its own; give a run of another model"
        )
    found = trained_run.read(place)
    _check(config, found)
    inputs = named_inputs(found.config, place)
    run_inputs.check(place, inputs)
    recorded = run_inputs.recorded(place)
    if recorded is not None:
        recorded = {name: entry for name, entry in recorded.items() if inputs.get(name) is not None}
    return Teacher(
        found.config,
        found.model,
        found.params,
        found.step,
        artefact.checksum(found.params),
        recorded,
        train_corpus(found.config, found.vocabulary),
    )


def _check(config: CompressConfig, found: Trained) -> None:
    """Refuse a run that has not ended."""
    run = runs.load(config.run)
    done = (run.summary or {}).get("steps", -1)
    stopped_early = (run.summary or {}).get("stopped_early", False)
    if done < found.config.steps and not stopped_early:
        raise UserError(
            f"--run {config.run}: has not ended; let vfejax train --resume --out {config.run} end "
            "it first"
        )


def settings(teacher: Teacher, model: str, model_settings: Any) -> dict[str, Any]:
    """What the file says of the run: its text, and the student's options in place of the model's.

    Args:
        teacher: the run.
        model: name of the student's model.
        model_settings: its options.
    """
    known = options.settings(teacher.config)
    found = {name: known[name] for name in _OF_DATA if name in known}
    if teacher.config.synthetic.kind != "none":
        found["synthetic"] = known["synthetic"]
    table = options.as_mapping(model_settings)
    return found | {"model": model, field_name(model): table}
