"""A language model from parts: a text, a model, an optimiser, one compiled chunk of steps, and a
sample.

    python examples/train_language_model.py [TEXT_FILE]

What ``vfejax train`` does, without run directory, checkpoints and report. Without a file it learns
from the help topics of Python.
"""

import sys

import jax

from vfejax.data import batches, corpus
from vfejax.models import sampling
from vfejax.models.resnet_bk import model as resnet_bk
from vfejax.training.evaluate import evaluate
from vfejax.training.optimizer import adamw, warmup_cosine
from vfejax.training.step import trainer

LENGTH, BATCH, CHUNK = 64, 12, 50


def main(
    path: str | None = None, num_steps: int = 300, num_tokens: int = 200, **options
) -> tuple[float, str]:
    """Train, print losses and a sample; returns the validation loss (nats per character) and the
    sample.
    """
    text = corpus.load_text(path, "character", length=LENGTH)
    words = text.vocabulary
    model = resnet_bk.build(resnet_bk.ResNetBKConfig(**options), words.size, LENGTH)
    optimizer = adamw(warmup_cosine(2e-3, 100, num_steps, 0.1))
    method = trainer(model, optimizer, jax.random.key(1), padding=words.padding_id)
    run = jax.jit(
        lambda state, windows: jax.lax.scan(method.step, state, windows), donate_argnums=0
    )

    state = jax.jit(method.init)(jax.random.key(0))
    windows = batches.Batches(text.train.tokens, BATCH, LENGTH, seed=0)
    for step in range(0, num_steps, CHUNK):
        state, infos = run(state, windows.at(step, CHUNK))
        print(f"step {step + CHUNK:>5}  loss {infos.parts.cross_entropy.mean():.3f}", flush=True)

    held_out = batches.evaluation_windows(
        text.valid.tokens, LENGTH, BATCH, words.padding_id, limit=20 * BATCH
    )
    sums = jax.jit(lambda p, w: evaluate(model, p, w, words.padding_id))(state.params, held_out)
    loss = float(sums.nats / sums.num_tokens)
    print(f"validation loss {loss:.3f} nats per character")

    draw = sampling.sampler(0.8, forbidden=(words.padding_id, words.unknown_id))
    write = jax.jit(
        lambda p: sampling.generate(
            model, p, words.encode("\n")[None], num_tokens, jax.random.key(2), draw
        )
    )
    sample = words.decode(jax.device_get(write(state.params))[0])
    print(sample)
    return loss, sample


if __name__ == "__main__":
    main(*sys.argv[1:2])
