"""``vfejax generate``: a trained model continues a text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vfejax.cli import executable_cache, output, trained_run
from vfejax.cli import options as configuration
from vfejax.cli.limits import check, check_seed
from vfejax.data import tokenizers
from vfejax.data.tokenizers import Tokenizer
from vfejax.errors import UserError
from vfejax.models import sampling
from vfejax.models.phi import directory
from vfejax.runs.seeds import random_key
from vfejax.types import Array, PyTree, SequenceModel

__all__ = ["GenerateConfig", "continuation", "main"]

_MOST_TOKENS = 1_000_000  # of prompt and continuation, which are decoded in one compiled loop
_LONG = 10_000  # tokens from which faster decoding repays about a second of compilation


@dataclass(frozen=True)
class GenerateConfig:
    """A trained model continues a text, token by token."""

    run: Path = Path("runs/train")
    """Directory that vfejax train wrote, whose best weights are used, or the file of vfejax
    compress.
    """
    phi: Path | None = None
    """Directory of a pretrained Phi model (config.json and safetensors), in place of --run."""
    tokenizer: Path | None = None
    """The tokenizer.json that belongs to --phi; bytes by default."""
    prompt: str | None = None
    """Text to continue; a line break by default, or the vocabulary's first symbol where it has no
    line break. A text that begins with a dash is given as --prompt=-text.
    """
    tokens: int = 500
    """Number of new tokens."""
    temperature: float = 0.8
    """Divides the logits: a small one favours probable tokens, and 0 always takes the most probable
    one.
    """
    top_k: int = 0
    """Draw only among this many most probable tokens; 0 for all."""
    top_p: float = 1.0
    """Draw only among the most probable tokens that together hold this probability."""
    seed: int = 0
    """Seed of the draws."""
    out: Path | None = None
    """Text file for prompt and continuation. A file that exists is kept unless --overwrite is
    given.
    """
    overwrite: bool = False
    """Replace the file of --out."""
    quiet: bool = False
    """Print nothing but errors."""


def _check(config: GenerateConfig) -> None:
    temperature = config.temperature
    check(
        1 <= config.tokens <= _MOST_TOKENS, "tokens", config.tokens, f"between 1 and {_MOST_TOKENS}"
    )
    check(0 <= temperature < float("inf"), "temperature", temperature, "at least 0 and finite")
    check(config.top_k >= 0, "top-k", config.top_k, "at least 0")
    check(0 < config.top_p <= 1, "top-p", config.top_p, "above 0 and at most 1")
    given = config.tokenizer is None or config.phi is not None
    check(given, "tokenizer", config.tokenizer, "left out without --phi")
    check_seed(config.seed)


def _encode(prompt: str, tokenizer: Tokenizer, num_tokens: int) -> np.ndarray:
    """Tokens ``[p]`` of the prompt; UserError when there are none or too many, or for a symbol the
    vocabulary cannot say.
    """
    tokens = tokenizer.encode(prompt)
    if not len(tokens):
        raise UserError("--prompt: holds no token; give at least one")
    if len(tokens) + num_tokens > _MOST_TOKENS:
        raise UserError(
            f"--prompt: holds {len(tokens)} tokens, more than the {_MOST_TOKENS - num_tokens} that "
            "--tokens leaves room for; give a shorter one"
        )
    if (symbol := tokenizer.unencodable(prompt)) is not None:
        raise UserError(f"--prompt: the model's vocabulary has no {symbol!r}; leave it out")
    return tokens


def _source(
    config: GenerateConfig,
) -> tuple[Tokenizer, Callable[[int], tuple[SequenceModel, PyTree]]]:
    """The tokenizer, and the model and its weights for a number of tokens."""
    if config.phi is None:
        run = trained_run.read(config.run)
        prepare, params = run.model.prepare, run.params
        if prepare is not None and config.tokens >= _LONG:
            params = jax.jit(prepare)(params)
        return run.vocabulary, lambda num_tokens: (run.model, params)
    source, options = config.phi, directory.read_config(config.phi)
    tokenizer = tokenizers.read_pretrained(config.tokenizer, options.vocab_size)
    # Decoding keeps room for as many tokens as there will be, not for all that it could read.
    return tokenizer, lambda num_tokens: directory.load(source, min(num_tokens, options.length))


def continuation(
    model: SequenceModel,
    params: PyTree,
    prompt: np.ndarray,
    *,
    num_tokens: int,
    seed: int,
    sampler_fn: sampling.SamplerFn,
    jit_fn: Callable[..., Any] = executable_cache.jit,
) -> np.ndarray:
    """What a model writes after a prompt.

    Args:
        model: the model.
        params: its weights.
        prompt: tokens ``[p]``, one at least.
        num_tokens: how many it writes.
        seed: of the draws.
        sampler_fn: chooses each token; see :func:`vfejax.models.sampling.sampler`.
        jit_fn: compiles the writing, as ``jax.jit`` does.

    Returns:
        The new tokens, ``[num_tokens]``.
    """

    def write(params: PyTree, prompt: Array, key: Array) -> Array:
        return sampling.generate(
            model, params, prompt, num_tokens=num_tokens, key=key, sampler_fn=sampler_fn
        )

    return np.asarray(jit_fn(write)(params, prompt[None], random_key(seed)))[0]


def main(arguments: Sequence[str]) -> int:
    """Parse, generate, print, and return the exit status."""
    config = configuration.parse(GenerateConfig, arguments, program="vfejax generate")
    _check(config)
    output.check_replaceable(config.out, config.overwrite)
    tokenizer, model_fn = _source(config)
    prompt = tokenizers.opening(tokenizer) if config.prompt is None else config.prompt
    tokens = _encode(prompt, tokenizer, config.tokens)
    model, params = model_fn(len(tokens) + config.tokens)
    new = continuation(
        model,
        params,
        tokens,
        num_tokens=config.tokens,
        seed=config.seed,
        sampler_fn=sampling.sampler(
            config.temperature,
            config.top_k or None,
            None if config.top_p == 1 else config.top_p,
            forbidden=tokenizers.never_drawn(tokenizer),
        ),
    )
    text = tokenizer.extend(prompt, new)
    try:
        if config.out is not None:
            output.write(config.out, text + "\n")
    finally:  # a full disk does not cost the text
        if not config.quiet:
            output.show(text)
    return 0
