"""The data that ``vfejax train`` asks for: a text, or a made-up sequence."""

from vfejax.cli.train.config import TrainConfig
from vfejax.data import corpus, synthetic
from vfejax.data.corpus import Corpus

__all__ = ["train_corpus"]


def train_corpus(config: TrainConfig) -> Corpus:
    """Read the text or make the sequence; whatever is wrong with it is a UserError that names file
    or option.
    """
    made_up = config.synthetic
    shared = {"length": config.length, "valid_fraction": config.valid_fraction}
    if made_up.kind == "none":
        return corpus.load_text(
            config.text, config.vocabulary, max_words=config.max_words, **shared
        )
    shared |= {"num_tokens": made_up.tokens, "num_symbols": made_up.symbols, "seed": config.seed}
    if made_up.kind == "periodic":
        return synthetic.periodic(period=made_up.period, noise=made_up.noise, **shared)
    if made_up.kind == "sinusoidal":
        return synthetic.sinusoidal(period=made_up.period, **shared)
    return synthetic.uniform(**shared)
