"""The data that ``vfejax train`` asks for: a text, or a synthetic sequence."""

from pathlib import Path

from vfejax.cli.train.config import TrainConfig
from vfejax.data import corpus, synthetic, tokenizers
from vfejax.data.corpus import Corpus
from vfejax.data.tensors import checkpoint_files
from vfejax.data.tokenizers import Tokenizer
from vfejax.models.phi import directory
from vfejax.runs import inputs as run_inputs
from vfejax.runs.directory import read_config

__all__ = ["named_inputs", "train_corpus"]


def named_inputs(config: TrainConfig, run: Path) -> run_inputs.Inputs:
    """What the run in that directory is computed from, by option, for :mod:`vfejax.runs.inputs`:
    the text, or the help topics of this Python, the files of a pretrained model, and the file of a
    tokenizer as long as the run has no copy of it; nothing for a synthetic sequence.
    """
    if config.synthetic.kind != "none":
        return {}
    is_copied = not config.overwrite and (run / "vocabulary.json").exists()
    text = run_inputs.help_topics() if config.text is None else config.text
    if config.phi is not None:
        names = tuple(checkpoint_files(config.phi))
        # One that is named anew has to be the one that the run has a copy of.
        is_own = (
            config.resume
            and is_copied
            and str(config.tokenizer) == read_config(run).get("tokenizer")
        )
        tokenizer = None if is_own else config.tokenizer
        return {
            "text": text,
            "phi": run_inputs.Files(config.phi, names),
            "tokenizer": tokenizer,
        }
    is_read = config.vocabulary.endswith(".json") and not is_copied
    return {"text": text, "vocabulary": Path(config.vocabulary) if is_read else None}


def train_corpus(config: TrainConfig, tokenizer: Tokenizer | None = None) -> Corpus:
    """Read the text or make the sequence.

    Args:
        config: the options.
        tokenizer: that of a run that exists, with which its text is read again; None to make one.

    Raises:
        UserError: for whatever is wrong with it, naming file or option.
    """
    if config.phi is not None and tokenizer is None:
        rows = directory.read_config(config.phi).vocab_size
        tokenizer = tokenizers.read_pretrained(config.tokenizer, rows)
    options = config.synthetic
    if options.kind == "none":
        return corpus.load_text(
            config.text,
            config.vocabulary,
            length=config.length,
            max_words=config.max_words,
            valid_fraction=config.valid_fraction,
            tokenizer=tokenizer,
        )
    size = (options.tokens, options.symbols)
    length, fraction, seed = config.length, config.valid_fraction, config.seed
    if options.kind == "periodic":
        return synthetic.periodic(
            *size,
            options.period,
            length=length,
            noise=options.noise,
            valid_fraction=fraction,
            seed=seed,
        )
    if options.kind == "sinusoidal":
        return synthetic.sinusoidal(
            *size, options.period, length=length, valid_fraction=fraction, seed=seed
        )
    return synthetic.uniform(*size, length=length, valid_fraction=fraction, seed=seed)
