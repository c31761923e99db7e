"""``vfejax evaluate``: how well a trained model predicts a text."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vfejax.cli import evaluate_koopman, output, trained_run
from vfejax.cli import options as configuration
from vfejax.cli.limits import check, check_seed
from vfejax.cli.train.config import with_options
from vfejax.cli.train.corpora import named_inputs, train_corpus
from vfejax.cli.train.model import build
from vfejax.cli.trained_run import Trained
from vfejax.data import corpus
from vfejax.data.batches import evaluation_windows
from vfejax.data.corpus import Split
from vfejax.data.tokenizers import Tokenizer
from vfejax.errors import UserError
from vfejax.models.table import MODELS
from vfejax.runs import inputs
from vfejax.training import sharding
from vfejax.training.evaluate import evaluator
from vfejax.training.scores import Measured, scores
from vfejax.types import SequenceModel

__all__ = ["MOST_WINDOWS", "EvaluateConfig", "main", "split_scores"]

MOST_WINDOWS = 20_000  # that an evaluation reads unless it is told otherwise


@dataclass(frozen=True)
class EvaluateConfig:
    """How well a trained model predicts a text: cross-entropy, perplexity per token, bits per
    byte.
    """

    run: Path = Path("runs/train")
    """Directory that vfejax train wrote, whose best weights are used, or the file of vfejax
    compress.
    """
    text: Path | None = None
    """UTF-8 text file to predict instead of the run's own data, with the run's vocabulary."""
    split: Literal["train", "valid", "test"] = "valid"
    """Part of the run's own data."""
    windows: int = MOST_WINDOWS
    """The evaluation reads at most this many windows of the run's --length, evenly spaced; 0 reads
    all.
    """
    koopman: bool = False
    """Also evaluate the model with each block, and spans of blocks, replaced by linear maps of the
    stream that enters them, fitted on the run's training text, and with them skipped. Prints a
    table of losses and operations.
    """
    out: Path | None = None
    """JSON file for the figures. A file that exists is kept unless --overwrite is given."""
    overwrite: bool = False
    """Replace the file of --out."""
    quiet: bool = False
    """Print nothing but errors."""
    seed: int = 0
    """Every command takes a seed. An evaluation draws nothing, so it changes nothing here."""


def split_scores(measured: Measured, split: Split, tokenizer: Tokenizer) -> dict[str, float]:
    """The figures of a model on a split, by name.

    Args:
        measured: cross-entropy on the tokens that were predicted.
        split: tokens, and the text they stand for.
        tokenizer: of the tokens.

    Returns:
        As :func:`vfejax.training.scores.scores`.
    """
    unknown = None
    if split.num_bytes is not None and tokenizer.unknown_id is not None:
        unknown = int(np.count_nonzero(split.tokens == tokenizer.unknown_id))
    return scores(
        measured,
        num_tokens=len(split.tokens),
        num_bytes=split.num_bytes,
        spelling_nats=split.spelling_nats,
        num_unknown=unknown,
    )


def _split(config: EvaluateConfig, of: Trained) -> Split:
    """The text of ``--text``, or a part of the run's own data, if these are still what they were.

    Both are read with the run's own tokenizer.
    """
    if config.text is not None:
        return corpus.load_split(config.text, of.vocabulary)
    try:
        inputs.check(config.run, named_inputs(of.config, config.run))
        data = train_corpus(of.config, of.vocabulary)
    except UserError as error:
        problem, _, _ = str(error).rpartition("; ")
        raise UserError(
            f"{problem or error}; put the data of {config.run} back, or give another text with "
            "--text"
        ) from error
    split = getattr(data, config.split)
    if split is None:
        raise UserError(
            f"--split {config.split}: the data of {config.run} has no such part; choose train or "
            "valid"
        )
    return split


def _ablated(of: Trained) -> dict[str, SequenceModel]:
    """The model's ablations by name; none for most models."""
    ablations = MODELS[of.config.model].ablations if of.config.model in MODELS else {}
    return {
        name: build(with_options(of.config, **changes), of.vocabulary.size)
        for name, changes in ablations.items()
    }


def _training_text(config: EvaluateConfig, of: Trained) -> Split:
    """The text that the run learned from."""
    return _split(replace(config, text=None, split="train"), of)


def _figures(config: EvaluateConfig, of: Trained) -> dict[str, Any]:
    """What is found, by name."""
    split, settings = _split(config, of), of.config
    padding = of.vocabulary.padding_id
    mesh = sharding.data_mesh(settings.batch_size)
    windows = evaluation_windows(
        split.tokens, settings.length, settings.batch_size, padding, limit=config.windows or None
    )
    measured = evaluator(of.model, mesh, padding)(of.params, windows)
    figures = {"run": str(config.run), "step": of.step, "of": str(config.text or config.split)}
    figures |= split_scores(measured, split, of.vocabulary)
    for name, model in _ablated(of).items():
        without = evaluator(model, mesh, padding)(of.params, windows)
        figures[f"{name}_loss_nats_per_token"] = without.nats_per_token
    if config.koopman:
        text = _training_text(config, of)
        figures["koopman"] = evaluate_koopman.measure(of, text, split, config.windows)
    return figures


def main(arguments: Sequence[str]) -> int:
    """Parse, evaluate, print, and return the exit status."""
    config = configuration.parse(EvaluateConfig, arguments, program="vfejax evaluate")
    check(config.windows >= 0, "windows", config.windows, "at least 0")
    check_seed(config.seed)
    output.check_replaceable(config.out, config.overwrite)
    figures = _figures(config, trained_run.read(config.run))
    try:
        if config.out is not None:
            output.write(config.out, json.dumps(figures, indent=2) + "\n")
    finally:  # a full disk does not cost the figures
        if not config.quiet:
            table = figures.pop("koopman", None)
            for name, value in figures.items():
                shown = f"{value:.6g}" if isinstance(value, float) else value
                output.show(f"{name:<30} {shown}")
            for line in evaluate_koopman.lines(table) if table else []:
                output.show(line)
    return 0
