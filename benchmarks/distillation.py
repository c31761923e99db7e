"""What a teacher is worth: a student that it taught beside the same student that read the text
alone, after the same updates on the same batches.

    python benchmarks/distillation.py [--text FILE] [--steps 300] [--seeds 3] [--pairs NAME ...]

Both begin with the same weights and train with the same optimiser (AdamW, warm-up 100 steps, cosine
to a tenth) on the same windows (12 of 64 characters); a seed stands for both. The teacher was
trained on the same text, for --teacher-steps. The last tenth of the text is for validation, all of
which is read. Losses are nats per character, and the interval is Student's t at 95 % over seeds.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.stats import t

from vfejax.compression.distill import distillation, trainable
from vfejax.data import batches, corpus
from vfejax.models import table
from vfejax.training.evaluate import evaluate
from vfejax.training.optimizer import adamw, warmup_cosine
from vfejax.training.step import trainer
from vfejax.types import PyTree, SequenceModel

LENGTH, BATCH, CHUNK, RATE = 64, 12, 50, 2e-3
TEACHER = ("resnet-bk", {"dim": 96, "hidden": 96})
STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet-bk, narrow": ("resnet-bk", {"dim": 48, "hidden": 48, "experts": 2}),
    "gpt-modern, narrow": ("gpt-modern", {"dim": 48, "heads": 4, "hidden": 128}),
}
WEIGHTS_FN = Callable[[PyTree, jax.Array], PyTree]


class Gain(NamedTuple):
    """Validation losses in nats per token of a student that read the text alone, and of the same
    student that was taught.
    """

    plain: float
    taught: float


def fit(
    model: SequenceModel,
    text: corpus.Corpus,
    *,
    steps: int,
    seed: int = 0,
    rate: float = RATE,
    learns: PyTree | None = None,
    weights_fn: WEIGHTS_FN | None = None,
) -> PyTree:
    """Weights after ``steps`` updates, from ``model.init`` of the seed's key.

    Args:
        model: what is trained.
        text: what it reads.
        steps: number of updates.
        seed: of first weights, batches and noise.
        rate: the largest learning rate.
        learns: True for the weights that learn; None when all do.
        weights_fn: what the model reads in place of its weights.
    """
    method = trainer(
        model,
        adamw(warmup_cosine(rate, min(100, steps // 4), steps, 0.1)),
        jax.random.key(seed + 1),
        padding=text.vocabulary.padding_id,
        trained=learns,
        weights_fn=weights_fn,
    )
    run = jax.jit(lambda state, windows: jax.lax.scan(method.step, state, windows)[0])
    state = method.init(jax.random.key(seed))
    windows = batches.Batches(text.train.tokens, BATCH, LENGTH, seed=seed)
    for step in range(0, steps, CHUNK):
        state = run(state, windows.at(step, min(CHUNK, steps - step)))
    return jax.device_get(state.params)


def validation_loss(
    model: SequenceModel, params: PyTree, text: corpus.Corpus, limit: int | None = None
) -> float:
    """Nats per token of the validation text, or of at most ``limit`` windows of it."""
    padding = text.vocabulary.padding_id
    windows = batches.evaluation_windows(text.valid.tokens, LENGTH, 4 * BATCH, padding, limit=limit)
    sums = jax.jit(partial(evaluate, model, padding=padding))(params, windows=windows)
    return float(sums.nats / sums.num_tokens)


def compare(
    student: SequenceModel,
    teacher: SequenceModel,
    text: corpus.Corpus,
    *,
    steps: int,
    seed: int = 0,
    rate: float = RATE,
    constants: tuple[str, ...] = (),
    weights_fn: WEIGHTS_FN | None = None,
    **options: float,
) -> Gain:
    """The same student, taught and not, from the same first weights, with the same updates.

    Args:
        student: its ``init`` gives the weights that both begin with.
        teacher: its ``init`` gives its trained weights.
        text: what both read.
        steps: number of updates.
        seed: of first weights, batches and noise, the same for both.
        rate: the largest learning rate.
        constants: names of arrays of the student that never learn.
        weights_fn: what the student reads in place of its weights, in both.
        options: those of :func:`vfejax.compression.distill.distillation`.
    """
    key, fitted = jax.random.key(seed), partial(fit, text=text, steps=steps, seed=seed, rate=rate)
    model = distillation(student, teacher, padding=text.vocabulary.padding_id, **options)
    learns = trainable(jax.eval_shape(model.init, key), constants)
    read = None
    if weights_fn is not None:

        def read(params: PyTree, step: jax.Array) -> PyTree:
            return params | {"student": weights_fn(params["student"], step)}

    own = fitted(student, learns=learns["student"], weights_fn=weights_fn)
    told = fitted(model, learns=learns, weights_fn=read)["student"]
    return Gain(*(validation_loss(student, params, text) for params in (own, told)))


def _model(name: str, options: dict[str, Any], text: corpus.Corpus) -> SequenceModel:
    entry, size = table.MODELS[name], text.vocabulary.size
    counts = np.bincount(text.train.tokens, minlength=size)
    return table.build(name, entry.config(**options), size, LENGTH, counts=counts)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean, and half the width of its interval of 95 %; infinite for a single value."""
    if len(values) < 2:
        return float(values.mean()), float("inf")
    spread = values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(spread * t.ppf(0.975, len(values) - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--text", type=Path, help="a text file; the help topics of Python without")
    parser.add_argument("--steps", type=int, default=300, help="updates of a student")
    parser.add_argument("--teacher-steps", type=int, default=1200, help="updates of the teacher")
    parser.add_argument("--seeds", type=int, default=3, help="students of each kind")
    parser.add_argument("--pairs", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    for name, value in (("temperature", 1.0), ("weight", 0.7), ("hidden-weight", 0.0)):
        parser.add_argument(f"--{name}", type=float, default=value, help="of the distillation")
    given = parser.parse_args()
    text = corpus.load_text(given.text, "character", length=LENGTH)
    teacher = _model(*TEACHER, text)
    params = fit(teacher, text, steps=given.teacher_steps)
    loss = validation_loss(teacher, params, text)
    print(f"teacher {TEACHER[0]} {TEACHER[1]}: {loss:.4f} nats per character\n")
    print("| student | text alone | taught | gain |\n| --- | ---: | ---: | ---: |")
    options = {
        "temperature": given.temperature,
        "weight": given.weight,
        "hidden_weight": given.hidden_weight,
    }
    known = teacher._replace(init=lambda key: params)
    for pair in given.pairs:
        student = _model(*STUDENTS[pair], text)
        found = np.asarray(
            [
                compare(student, known, text, steps=given.steps, seed=seed, **options)
                for seed in range(given.seeds)
            ]
        )
        plain, told = found.mean(axis=0)
        gain, half = interval(found[:, 0] - found[:, 1])
        print(f"| {pair} | {plain:.4f} | {told:.4f} | {gain:+.4f} +- {half:.4f} |", flush=True)


if __name__ == "__main__":
    main()
