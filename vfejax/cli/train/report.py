"""What a training run shows in the end: how good the best weights are, beside simple statistics of
the text, and a sample of what they write.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from vfejax.cli import executable_cache, generate
from vfejax.cli.drawing import sketched
from vfejax.cli.evaluate import split_scores
from vfejax.cli.fast_compilation import compiled_plainly
from vfejax.cli.train import devices, metric_columns
from vfejax.cli.train.config import TrainConfig
from vfejax.cli.train.model import Start
from vfejax.data import tokenizers
from vfejax.data.batches import evaluation_windows
from vfejax.data.corpus import Corpus
from vfejax.data.ngrams import ngram_cross_entropy
from vfejax.models import sampling
from vfejax.runs import checkpoint, processes
from vfejax.runs.directory import RunDirectory
from vfejax.runs.load import BEST
from vfejax.runs.metrics import read_metrics
from vfejax.runs.report import Picture, Report
from vfejax.runs.seeds import random_key
from vfejax.training.evaluate import EvaluateFn
from vfejax.types import Maps, PyTree, SequenceModel

__all__ = ["build", "summary_text"]

if TYPE_CHECKING:
    from vfejax.figures import maps as map_figures
    from vfejax.figures import training as training_figures
else:
    map_figures = sketched("vfejax.figures.maps")
    training_figures = sketched("vfejax.figures.training")

_LOSSES = ("step", "loss", "valid_loss")  # columns that are no diagnostics
_SPLITS = {"valid": "validation", "test": "test"}
_SAMPLE_TEMPERATURE = 0.8
_PROMPT_TOKENS = 16
_MAP_WINDOWS = 32


def baselines(corpus: Corpus, stop_fn: Callable[[], bool]) -> dict[str, float]:
    """Losses in nats per token that need no model: what every curve is read against. Counts that
    ``stop_fn`` ended are left out.
    """
    size, train, valid = corpus.vocabulary.size, corpus.train.tokens, corpus.valid.tokens
    losses = {"uniform": math.log(np.count_nonzero(np.bincount(train)))}
    for name, order in (("unigrams", 1), ("bigrams", 2)):
        if len(valid) >= order:
            losses[name] = ngram_cross_entropy(train, valid, size, order, stop_fn=stop_fn)
    if corpus.entropy_rate is not None:
        losses["entropy rate"] = corpus.entropy_rate
    return {name: loss for name, loss in losses.items() if not math.isnan(loss)}


def _scores(
    config: TrainConfig,
    corpus: Corpus,
    params: PyTree,
    evaluate_fn: EvaluateFn,
    stop_fn: Callable[[], bool],
) -> dict[str, Any]:
    """What the weights reach on the splits that were kept back."""
    scores = {}
    for name in _SPLITS:
        split = getattr(corpus, name)
        if split is None:
            continue
        windows = evaluation_windows(
            split.tokens,
            config.length,
            config.batch_size,
            corpus.vocabulary.padding_id,
            limit=config.final_windows or None,
        )
        measured = evaluate_fn(params, windows, stop_fn=stop_fn)
        scores[name] = split_scores(measured, split, corpus.vocabulary)
    return scores


def _summary(
    config: TrainConfig,
    corpus: Corpus,
    params: PyTree,
    steps: int,
) -> dict[str, Any]:
    return {
        "model": config.model,
        "data": corpus.name,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "steps": steps,
        "tokens_trained": steps * config.batch_size * config.length,
    }


def _remarks(
    config: TrainConfig, corpus: Corpus, summary: dict[str, Any], stopped: bool
) -> list[str]:
    """What a reader of the summary must know about its figures."""
    remarks = []
    if stopped:
        remarks.append(
            "The run was interrupted, so the losses of long texts are of their first windows, and "
            "baselines that take long to count are left out; --resume goes on."
        )
    predicted, curve = summary["valid"]["tokens_predicted"], summary["best_valid_loss"]
    if config.eval_windows and config.eval_windows * config.length < predicted:
        remarks.append(
            f"The validation loss of the summary is a mean over {predicted:,} tokens; that of the "
            f"curve ({curve:.4f} at its best) reads {config.eval_windows} windows of "
            f"{config.length} tokens (--eval-windows)."
        )
    for name, word in _SPLITS.items():
        split = getattr(corpus, name)
        if split is None:
            continue
        if not stopped and summary[name]["tokens_predicted"] < len(split.tokens) - 1:
            remarks.append(
                f"The {word} loss reads {summary[name]['tokens_predicted']:,} of "
                f"{len(split.tokens):,} tokens, in evenly spaced windows (--final-windows)."
            )
        if split.num_bytes is not None and split.spelling_nats is None:
            remarks.append(
                f"No bits per byte of the {word} text: its tokens do not return the text itself, "
                "so what a code for it costs is not known."
            )
        if unknown := summary[name].get("unknown_tokens"):
            remarks.append(
                f"{unknown:.2%} of the tokens of the {word} text are unknown to the vocabulary. "
                "The loss counts each as one symbol; bits per byte also pay for its letters."
            )
    return remarks


def summary_text(summary: dict[str, Any]) -> str:
    """The summary for a terminal."""
    lines = [
        f"{summary['model']}, {summary['parameters']:,} parameters, {summary['steps']} steps on "
        f"{summary['data']}, {summary['seconds']} s"
    ]
    for name in _SPLITS:
        if name in summary:
            figures = summary[name]
            line = (
                f"{name + ' loss':<20} {figures['loss_nats_per_token']:.4f} nats per token, "
                f"perplexity {figures['perplexity']:.4g}"
            )
            if "bits_per_byte" in figures:
                line += f", {figures['bits_per_byte']:.4f} bits per byte"
            lines.append(line)
    for name, value in summary["baselines_nats_per_token"].items():
        lines.append(f"{name:<20} {value:.4f}")
    return "\n".join([*lines, *summary.get("remarks", [])])


def _pictures(metrics: dict[str, np.ndarray], losses: dict[str, float]) -> Iterator[Picture]:
    caption = (
        "Cross-entropy of training batches and of the validation text. Dashed: what is reached by "
        "guessing evenly among the tokens, by knowing how often each token occurs, and by knowing "
        "which token follows which."
    )
    figure = training_figures.loss_curves(
        metrics["step"], metrics["loss"], metrics["valid_loss"], levels=losses
    )
    yield Picture("loss", "Loss", caption, figure)
    others = {name: values for name, values in metrics.items() if name not in _LOSSES}
    caption = (
        "Learning rate, norm of the gradient, and what the model reports of itself: further loss "
        "terms (nats) and diagnostics."
    )
    figure = training_figures.diagnostics(metrics["step"], others, metric_columns.units(others))
    yield Picture("diagnostics", "Diagnostics", caption, figure)


def _maps(config: TrainConfig, corpus: Corpus, params: PyTree, shown: Maps) -> Iterator[Picture]:
    """What the model shows of itself on windows of the validation text, spread over all of it."""
    tokens, length = corpus.valid.tokens, config.length
    count = min(_MAP_WINDOWS, len(tokens) // length)
    starts = np.arange(count) * (len(tokens) - length) // max(count - 1, 1)
    windows = np.stack([tokens[start : start + length] for start in starts])
    figure = map_figures.heat_maps(
        executable_cache.jit(shown.values)(params, windows),
        xlabel=shown.xlabel,
        ylabel=shown.ylabel,
        label=shown.label,
        columns=shown.columns,
    )
    yield Picture(shown.name, shown.title, shown.caption, figure)


def _sample(
    config: TrainConfig, corpus: Corpus, model: SequenceModel, params: PyTree
) -> tuple[str, str]:
    """Caption and text of what the weights write."""
    tokenizer = corpus.vocabulary
    prompt = corpus.valid.tokens[:_PROMPT_TOKENS]
    new = generate.continuation(
        model,
        params,
        prompt,
        num_tokens=config.sample_tokens,
        seed=config.seed,
        sampler_fn=sampling.sampler(
            _SAMPLE_TEMPERATURE, forbidden=tokenizers.never_drawn(tokenizer)
        ),
        jit_fn=compiled_plainly,  # a few hundred tokens take less time than their compilation
    )
    beginning = tokenizer.decode(prompt)
    caption = (
        f"The validation text begins {json.dumps(beginning, ensure_ascii=False)}. The best weights "
        f"continued it by {config.sample_tokens} tokens, drawn at temperature "
        f"{_SAMPLE_TEMPERATURE}."
    )
    return caption, tokenizer.extend(beginning, new)


def _rows(summary: dict[str, Any]) -> list[tuple[str, Any]]:
    """The summary as a table: what was done, how good it is, what it is measured against."""
    rows = [
        (name.replace("_", " "), value)
        for name, value in summary.items()
        if not isinstance(value, dict | list)
    ]
    for name, word in _SPLITS.items():
        for key, value in summary.get(name, {}).items():
            rows.append((f"{word}: {key.replace('_', ' ')}", value))
    losses = summary["baselines_nats_per_token"].items()
    return rows + [(f"baseline: {name}", value) for name, value in losses]


def build(
    config: TrainConfig,
    corpus: Corpus,
    start: Start,
    run: RunDirectory,
    evaluate_fn: EvaluateFn,
    stop_fn: Callable[[], bool],
) -> tuple[Report | None, dict[str, Any]]:
    """Evaluate the best weights; what the run shows in the end, and its summary.

    Several processes evaluate together; the first one alone makes the report.

    Args:
        config: the options of the run.
        corpus: its data.
        start: its model, and the weights that stay.
        run: its directory, held; metrics and best weights are read.
        evaluate_fn: see :func:`vfejax.training.evaluate.evaluator`.
        stop_fn: whether the reader waits for no more than has been begun: evaluations end after
            their first windows, and baselines that take long are left out.

    Returns:
        The report, and the summary, as JSON can hold it; None and nothing where another process
        makes them.

    Raises:
        UserError: when the best weights or the metrics cannot be read.
    """
    best = run.path / BEST
    template = start.learning(executable_cache.shapes(start.model.init, random_key(config.seed)))
    learning, meta = checkpoint.restore(best, devices.dealt_out(config, template))
    scores = _scores(config, corpus, start.whole(learning), evaluate_fn, stop_fn)
    if not processes.leads():
        return None, {}
    if processes.count() > 1:  # what the first one shows, it computes alone
        learning, _ = checkpoint.restore(best, template)
    params = start.whole(learning)
    metrics = read_metrics(run, required=_LOSSES)
    summary = _summary(config, corpus, params, int(metrics["step"][-1])) | scores
    summary |= {"baselines_nats_per_token": baselines(corpus, stop_fn)}
    summary |= {"best_step": meta["step"], "best_valid_loss": meta["valid_loss"]}
    summary["remarks"] = _remarks(config, corpus, summary, stop_fn())
    pictures = [_pictures(metrics, summary["baselines_nats_per_token"])]
    if start.maps is not None:
        shown = (start.maps, *start.maps.further)
        pictures += [_maps(config, corpus, params, maps) for maps in shown]
    report = Report(
        "vfejax train",
        _rows(summary),
        itertools.chain(*pictures),
        [_sample(config, corpus, start.model, params)] if config.sample_tokens else [],
        notes=summary["remarks"],
    )
    return report, summary
