"""A small student learns from a teacher of another family, beside the same student that reads the
text alone.

    python examples/distil.py [TEXT_FILE]

The teacher is a ResNet-BK, the student a GPT of fewer weights. Teaching is a transformation of
models: ``distillation(student, teacher)`` is a model whose loss, with the usual trainer, is that of
distillation. Both students begin with the same weights and read the same batches. Without a file
the text is that of the help topics of Python.
"""

import sys

import jax

from vfejax.compression.distill import distillation, trainable
from vfejax.data import batches, corpus
from vfejax.models.gpt_modern import model as gpt_modern
from vfejax.models.resnet_bk import model as resnet_bk
from vfejax.training.evaluate import evaluate
from vfejax.training.optimizer import adamw, warmup_cosine
from vfejax.training.step import trainer
from vfejax.types import PyTree, SequenceModel

LENGTH, BATCH, CHUNK = 64, 12, 50
TEACHER = resnet_bk.ResNetBKConfig(layers=2, dim=64, experts=1)
STUDENT = gpt_modern.ModernGPTConfig(layers=2, dim=32, heads=4, hidden=64)


def fit(
    model: SequenceModel, text: corpus.Corpus, num_steps: int, learns: PyTree | None = None
) -> PyTree:
    """Weights of the model after some updates; ``learns`` is True for those that change."""
    optimizer = adamw(warmup_cosine(4e-3, 50, num_steps, 0.1))
    padding = text.vocabulary.padding_id
    method = trainer(model, optimizer, jax.random.key(1), padding=padding, trained=learns)
    run = jax.jit(lambda state, windows: jax.lax.scan(method.step, state, windows)[0])
    state = method.init(jax.random.key(0))
    windows = batches.Batches(text.train.tokens, BATCH, LENGTH, seed=0)
    for step in range(0, num_steps, CHUNK):
        state = run(state, windows.at(step, CHUNK))
    return jax.device_get(state.params)


def validation_loss(model: SequenceModel, params: PyTree, text: corpus.Corpus) -> float:
    """Nats per character of text that was not read."""
    padding = text.vocabulary.padding_id
    windows = batches.evaluation_windows(text.valid.tokens, LENGTH, 96, padding, limit=480)
    sums = jax.jit(lambda p: evaluate(model, p, windows, padding))(params)
    return float(sums.nats / sums.num_tokens)


def main(
    path: str | None = None, teacher_steps: int = 500, num_steps: int = 300
) -> dict[str, float]:
    """Train a teacher and two students; print and return their validation losses."""
    text = corpus.load_text(path, "character", length=LENGTH)
    teacher = resnet_bk.build(TEACHER, text.vocabulary.size, LENGTH)
    student = gpt_modern.build(STUDENT, text.vocabulary.size, LENGTH)
    losses = {}

    def report(name: str, model: SequenceModel, params: PyTree) -> None:
        losses[name] = validation_loss(model, params, text)
        weights = sum(x.size for x in jax.tree.leaves(params))
        print(f"{name:<20} {weights:>7} weights  {losses[name]:.3f} nats", flush=True)

    known = fit(teacher, text, teacher_steps)
    report("teacher", teacher, known)
    report("student, text alone", student, fit(student, text, num_steps))

    trained_teacher = teacher._replace(init=lambda key: known)
    padding = text.vocabulary.padding_id
    model = distillation(student, trained_teacher, temperature=1.0, padding=padding)
    learns = trainable(jax.eval_shape(model.init, jax.random.key(0)))
    report("student, taught", student, fit(model, text, num_steps, learns)["student"])
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:])
