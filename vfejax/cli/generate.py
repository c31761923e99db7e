"""``vfejax generate``: a trained model continues a text."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from vfejax.cli import language_models
from vfejax.cli import options as configuration
from vfejax.cli.options import check
from vfejax.data.files import atomic_write
from vfejax.data.vocabulary import Vocabulary
from vfejax.errors import UserError
from vfejax.models import sampling
from vfejax.types import PyTree, SequenceModel

__all__ = ["GenerateConfig", "continuation", "main"]


@dataclass(frozen=True)
class GenerateConfig:
    """A trained model continues a text, token by token."""

    run: Path = Path("runs/train")
    """Directory that vfejax train wrote; its best weights are used."""
    prompt: str = "\n"
    """Text to continue."""
    tokens: int = 500
    """Number of new tokens."""
    temperature: float = 0.8
    """Divides the logits: below 1 bolder, 0 always the most probable token."""
    top_k: int = 0
    """Draw only among this many most probable tokens; 0 for all."""
    top_p: float = 1.0
    """Draw only among the most probable tokens that together hold this probability."""
    seed: int = 0
    """Seed of the draws."""
    out: Path | None = None
    """Text file for prompt and continuation."""
    quiet: bool = False
    """Print nothing but errors."""


def _encode(prompt: str, vocabulary: Vocabulary) -> np.ndarray:
    """Tokens ``[p]`` of the prompt; UserError when there are none, or for a symbol the vocabulary
    does not know (words may be unknown).
    """
    tokens = vocabulary.encode(prompt)
    if not len(tokens):
        raise UserError("--prompt: holds no token; give at least one")
    unknown = tokens == vocabulary.unknown_id
    if vocabulary.kind != "word" and np.any(unknown):
        raise UserError(
            f"--prompt: the model's vocabulary has no {prompt[int(np.argmax(unknown))]!r}; leave it out"
        )
    return tokens


def continuation(
    model: SequenceModel,
    params: PyTree,
    vocabulary: Vocabulary,
    prompt: np.ndarray,
    num_tokens: int,
    seed: int,
    sampler_fn: sampling.SamplerFn,
) -> str:
    """What the model writes after the tokens ``prompt [p]``."""
    write = jax.jit(partial(sampling.generate, model, num_tokens=num_tokens, sampler_fn=sampler_fn))
    new = write(params, prompt[None], key=jax.random.key(seed))
    return vocabulary.decode(np.asarray(new)[0])


def main(arguments: Sequence[str]) -> int:
    """Parse, generate, print, and return the exit status."""
    config = configuration.parse(GenerateConfig, arguments, program="vfejax generate")
    check(config.tokens >= 1, "tokens", config.tokens, "at least 1")
    check(
        0 <= config.temperature < float("inf"),
        "temperature",
        config.temperature,
        "at least 0 and finite",
    )
    check(config.top_k >= 0, "top-k", config.top_k, "at least 0")
    check(0 < config.top_p <= 1, "top-p", config.top_p, "above 0 and at most 1")
    trained = language_models.load(config.run)
    words = trained.vocabulary
    top_p = None if config.top_p == 1 else config.top_p
    special = (words.padding_id, words.unknown_id)
    sampler_fn = sampling.sampler(
        config.temperature, config.top_k or None, top_p, forbidden=special
    )
    prompt = _encode(config.prompt, words)
    new = continuation(
        trained.model, trained.params, words, prompt, config.tokens, config.seed, sampler_fn
    )
    gap = " " if words.kind == "word" and not config.prompt[-1:].isspace() else ""
    text = config.prompt + gap + new
    if config.out is not None:
        atomic_write(config.out, text + "\n")
    if not config.quiet:
        print(text)
    return 0
