"""What a training run shows in the end: how good the best weights are, the loss beside simple
statistics of the text, and a sample.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from vfejax.cli import generate, language_models
from vfejax.cli.evaluate import Measured, scores
from vfejax.cli.train.config import TrainConfig
from vfejax.data.corpus import Corpus, ngram_cross_entropy
from vfejax.data.files import atomic_write
from vfejax.figures import training as training_figures
from vfejax.models import sampling
from vfejax.runs import checkpoint, report
from vfejax.runs import directory as run_directory
from vfejax.runs.directory import RunDirectory
from vfejax.types import PyTree, SequenceModel

__all__ = ["summary_text", "write"]

_LOSSES = ("step", "loss", "valid_loss")  # columns that are no diagnostics
_SAMPLE_TEMPERATURE = 0.8


def levels(corpus: Corpus) -> dict[str, float]:
    """Losses in nats per token that need no model: what every curve should be read against."""
    size, train, valid = corpus.vocabulary.size, corpus.train.tokens, corpus.valid.tokens
    found = {
        "uniform": math.log(len(np.unique(train))),
        "single frequencies": ngram_cross_entropy(train, valid, size, 1),
        "pair frequencies": ngram_cross_entropy(train, valid, size, 2),
    }
    if corpus.entropy_rate is not None:
        found["entropy rate"] = corpus.entropy_rate
    return found


def _summary(
    config: TrainConfig,
    corpus: Corpus,
    params: PyTree,
    metrics: dict[str, np.ndarray],
    measure: Callable[..., Measured],
) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "model": config.model,
        "data": corpus.name,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "steps": int(metrics["step"][-1]),
        "tokens_trained": int(metrics["step"][-1]) * config.batch_size * config.length,
        "baselines_nats_per_token": levels(corpus),
    }
    for name in ("valid", "test"):
        split = getattr(corpus, name)
        if split is not None:
            summary[name] = scores(measure(params, split.tokens, 0), split)
    return summary


def summary_text(summary: dict[str, Any]) -> str:
    """The summary for a terminal."""
    lines = [
        f"{summary['model']}, {summary['parameters']:,} parameters, {summary['steps']} steps on {summary['data']}, "
        f"{summary['seconds']} s"
    ]
    for name in ("valid", "test"):
        if name in summary:
            found = summary[name]
            tail = (
                f", {found['bits_per_byte']:.4f} bits per byte" if "bits_per_byte" in found else ""
            )
            lines.append(
                f"{name + ' loss':<20} {found['loss_nats_per_token']:.4f} nats per token, perplexity {found['perplexity']:.4g}{tail}"
            )
    lines += [
        f"{name:<20} {value:.4f}" for name, value in summary["baselines_nats_per_token"].items()
    ]
    return "\n".join(lines)


class _Picture(NamedTuple):
    """File name without suffix, title and caption in the report, and the figure."""

    name: str
    title: str
    caption: str
    figure: Figure


def _pictures(metrics: dict[str, np.ndarray], baselines: dict[str, float]) -> Iterator[_Picture]:
    caption = (
        "Cross-entropy of training batches and of held-out text. Dashed: what is reached by guessing evenly among the tokens, by knowing how often "
        "each token occurs, and by knowing which token follows which."
    )
    figure = training_figures.loss_curves(
        metrics["step"], metrics["loss"], metrics["valid_loss"], levels=baselines
    )
    yield _Picture("loss", "Loss", caption, figure)
    others = {name: values for name, values in metrics.items() if name not in _LOSSES}
    caption = "Learning rate, norm of the gradient, and what the model reports of itself: further loss terms (nats) and diagnostics."
    yield _Picture(
        "diagnostics", "Diagnostics", caption, training_figures.diagnostics(metrics["step"], others)
    )


def write(
    config: TrainConfig,
    corpus: Corpus,
    model: SequenceModel,
    run: RunDirectory,
    measure: Callable[..., Measured],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Evaluate the best weights, draw the figures, write ``figures/*.png`` and ``report.html``, and
    return the summary.
    """
    metrics = run_directory.read_metrics(run)
    best = run.path / language_models.BEST
    params, meta = checkpoint.restore(best, jax.eval_shape(model.init, jax.random.key(0)))
    summary = _summary(config, corpus, params, metrics, measure)
    summary["best_step"] = meta["step"]
    figures = []
    for picture in _pictures(metrics, summary["baselines_nats_per_token"]):
        png = report.figure_png(picture.figure)
        atomic_write(run.path / "figures" / f"{picture.name}.png", png)
        figures.append((picture.title, picture.caption, png))
    texts = []
    words = corpus.vocabulary
    if config.sample_tokens:
        prompt = corpus.valid.tokens[
            :1
        ]  # as ids: as text it may be a symbol that training never saw
        sampler_fn = sampling.sampler(
            _SAMPLE_TEMPERATURE, forbidden=(words.padding_id, words.unknown_id)
        )
        text = generate.continuation(
            model, params, words, prompt, config.sample_tokens, config.seed, sampler_fn
        )
        texts.append((f"Written by the best weights at temperature {_SAMPLE_TEMPERATURE}.", text))
    rows = [
        (f"{name}: {key.replace('_', ' ')}", value)
        for name in ("valid", "test")
        for key, value in summary.get(name, {}).items()
    ]
    rows += [
        (f"baseline: {name}", value) for name, value in summary["baselines_nats_per_token"].items()
    ]
    rows += [
        (name.replace("_", " "), value)
        for name, value in summary.items()
        if not isinstance(value, dict)
    ]
    report.write_report(
        run.path / "report.html",
        title="vfejax train",
        summary_rows=rows,
        figures=figures,
        texts=texts,
        config=settings,
    )
    return summary
