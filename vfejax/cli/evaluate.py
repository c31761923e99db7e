"""``vfejax evaluate``: how well a trained model predicts a text."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from vfejax.cli import language_models
from vfejax.cli import options as configuration
from vfejax.cli.options import check
from vfejax.cli.train.corpora import train_corpus
from vfejax.data import corpus
from vfejax.data.batches import evaluation_windows
from vfejax.data.corpus import Split
from vfejax.data.files import atomic_write
from vfejax.errors import UserError
from vfejax.training import sharding
from vfejax.training.step import evaluate as evaluate_windows
from vfejax.types import SequenceModel

__all__ = ["ABLATIONS", "EvaluateConfig", "Measured", "evaluator", "main", "scores"]

_GROUP = 32  # batches per compiled call

# What is measured again with a part of the model switched off: by model, the ablation's name and
# the options it changes.
ABLATIONS = {"quantum": ("decohered", {"decohere": True})}


@dataclass(frozen=True)
class EvaluateConfig:
    """How well a trained model predicts a text: cross-entropy, perplexity per token, bits per
    byte.
    """

    run: Path = Path("runs/train")
    """Directory that vfejax train wrote; its best weights are used."""
    text: Path | None = None
    """UTF-8 text file to predict instead of the run's own data, with the run's vocabulary."""
    split: Literal["train", "valid", "test"] = "valid"
    """Part of the run's own data."""
    windows: int = 0
    """Windows of the run's --length, evenly spaced, that are read; 0 for all."""
    out: Path | None = None
    """JSON file for the figures."""
    quiet: bool = False
    """Print nothing but errors."""
    seed: int = 0
    """Not used: an evaluation is deterministic. Every command has it."""


class Measured(NamedTuple):
    """Mean cross-entropy in nats per token, and how many tokens were predicted."""

    nats_per_token: float
    num_tokens: int


def evaluator(
    model: SequenceModel, mesh: jax.sharding.Mesh, length: int, batch_size: int, padding: int
) -> Callable[[Any, np.ndarray, int], Measured]:
    """A function ``(params, tokens, limit) -> Measured`` over at most ``limit`` windows of
    ``length`` tokens (0: all of them).
    """
    evaluate_fn = jax.jit(functools.partial(evaluate_windows, model, padding=padding))

    def measure(params: Any, tokens: np.ndarray, limit: int) -> Measured:
        params = sharding.replicate(mesh, params)
        windows = evaluation_windows(tokens, length, batch_size, padding, limit=limit or None)
        nats = count = 0
        for start in range(0, len(windows), _GROUP):
            group = windows[start : start + _GROUP]
            # Every call has the same shape, so that only one program is compiled; padding does not
            # count.
            missing = min(len(windows), _GROUP) - len(group)
            group = np.pad(group, ((0, missing), (0, 0), (0, 0)), constant_values=padding)
            sums = evaluate_fn(params, sharding.split_batches(mesh, group))
            nats, count = nats + float(sums.nats), count + int(sums.num_tokens)
        return Measured(nats / count, count)

    return measure


def scores(measured: Measured, split: Split) -> dict[str, float]:
    """Cross-entropy (nats per token), perplexity per token, and, for text, bits per byte of
    UTF-8.
    """
    nats, count = measured
    found = {"loss_nats_per_token": nats, "perplexity": math.exp(nats), "tokens_predicted": count}
    if split.num_bytes is not None:
        found["bits_per_byte"] = nats / math.log(2.0) * len(split.tokens) / split.num_bytes
    return found


def _split(config: EvaluateConfig, trained: language_models.Trained) -> Split:
    if config.text is not None:
        return corpus.load_split(config.text, trained.vocabulary, trained.config.length)
    split = getattr(train_corpus(trained.config), config.split)
    if split is None:
        raise UserError(
            f"--split {config.split}: the data of {config.run} has no such part; choose train or valid"
        )
    return split


def _ablated(trained: language_models.Trained) -> dict[str, SequenceModel]:
    """The model's ablation by name; none for most models."""
    config = trained.config
    if config.model not in ABLATIONS:
        return {}
    name, changes = ABLATIONS[config.model]
    options = dataclasses.replace(getattr(config, config.model), **changes)
    changed = dataclasses.replace(config, **{config.model: options})
    return {name: language_models.build(changed, trained.vocabulary.size)}


def main(arguments: Sequence[str]) -> int:
    """Parse, evaluate, print, and return the exit status."""
    config = configuration.parse(EvaluateConfig, arguments, program="vfejax evaluate")
    check(config.windows >= 0, "windows", config.windows, "at least 0")
    trained = language_models.load(config.run)
    split = _split(config, trained)
    settings = trained.config
    mesh = sharding.data_mesh(settings.batch_size)

    def measure(model: SequenceModel) -> Measured:
        measure_fn = evaluator(
            model, mesh, settings.length, settings.batch_size, trained.vocabulary.padding_id
        )
        return measure_fn(trained.params, split.tokens, config.windows)

    measured = measure(trained.model)
    found = {"run": str(config.run), "step": trained.step, "of": str(config.text or config.split)}
    found |= scores(measured, split)
    for name, model in _ablated(trained).items():
        found[f"{name}_loss_nats_per_token"] = measure(model).nats_per_token
    if config.out is not None:
        atomic_write(config.out, json.dumps(found, indent=2) + "\n")
    if not config.quiet:
        for name, value in found.items():
            print(f"{name:<30} {value:.6g}" if isinstance(value, float) else f"{name:<30} {value}")
    return 0
