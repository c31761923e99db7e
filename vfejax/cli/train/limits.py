"""Limits of the options of ``vfejax train``."""

from vfejax.cli.limits import check, check_counts, check_numbers, check_run
from vfejax.cli.train.config import PRETRAINED, TrainConfig, with_defaults
from vfejax.cli.train.optimizers import DESCENTS
from vfejax.data.vocabulary import KINDS
from vfejax.models.table import MODELS

__all__ = ["check_values"]


def check_values(config: TrainConfig) -> None:
    """Raise a UserError that names the option and its limits for the first value that is out of
    them.
    """
    check_run(config)
    check_counts(config, ["length", "batch_size", "accumulation", "eval_every", "max_words"], 1)
    counts = ["warmup_steps", "eval_windows", "final_windows", "patience", "sample_tokens"]
    check_counts(config, counts, 0)
    check_numbers(config, ["clip_norm"], positive=True)
    if config.learning_rate is not None:
        check_numbers(config, ["learning_rate"], positive=True)
    if config.weight_decay is not None:
        check_numbers(config, ["weight_decay"], positive=False)
    check_numbers(config, ["delta"], positive=False)
    requirement = f"a multiple of --log-every {config.log_every}"
    fits = config.eval_every % config.log_every == 0
    check(fits, "eval-every", config.eval_every, requirement)
    vocabularies = f"{', '.join(KINDS)} or the path of a .json file"
    named = config.vocabulary in KINDS or config.vocabulary.endswith(".json")
    check(named, "vocabulary", config.vocabulary, vocabularies)
    check(0 <= config.final_rate <= 1, "final-rate", config.final_rate, "between 0 and 1")
    check(0 <= config.beta2 < 1, "beta2", config.beta2, "at least 0 and below 1")
    check(0 <= config.momentum < 1, "momentum", config.momentum, "at least 0 and below 1")
    check(
        0 < config.valid_fraction < 1,
        "valid-fraction",
        config.valid_fraction,
        "between 0 and 1, both excluded",
    )
    check(
        config.batch_size % config.accumulation == 0,
        "accumulation",
        config.accumulation,
        f"a divisor of --batch-size {config.batch_size}",
    )
    _check_pretrained(config)
    _check_method(config)
    synthetic = config.synthetic
    check(
        synthetic.kind == "none" or config.text is None,
        "synthetic.kind",
        synthetic.kind,
        "none when --text is given",
    )
    check_counts(synthetic, ["symbols", "tokens"], 2, prefix="synthetic.")
    check_counts(synthetic, ["period"], 1, prefix="synthetic.")
    check(0 <= synthetic.noise <= 1, "synthetic.noise", synthetic.noise, "between 0 and 1")


def _check_method(config: TrainConfig) -> None:
    """Refuse options of another optimiser, and of any for a model that learns by its own method."""
    foreign = {
        name: f"left out with --optimizer {config.optimizer}"
        for name in ("beta2", "momentum", "delta")
        if name not in DESCENTS[config.optimizer].options
    }
    if config.model in MODELS and MODELS[config.model].trainer is not None:
        requirement = f"left out with --model {config.model}, which learns by its own method"
        descent = ("optimizer", "weight_decay", "clip_norm", "beta2")
        gradient = ("accumulation", "remat", "gradients")
        foreign |= dict.fromkeys((*descent, *gradient), requirement)
    if config.gradients != "exact":
        other = f"left out with --gradients {config.gradients}"
        foreign |= {"accumulation": other, "remat": other}
    defaults = with_defaults(TrainConfig())
    for name, requirement in foreign.items():
        value = getattr(config, name)
        left_out = value is None or value == getattr(defaults, name)
        check(left_out, name.replace("_", "-"), value, requirement)


def _check_pretrained(config: TrainConfig) -> None:
    """The options of a pretrained model, which need one another."""
    if config.phi is None:
        given = config.model != PRETRAINED
        check(given, "model", config.model, "another one, or --phi must name a directory")
        check(config.tokenizer is None, "tokenizer", config.tokenizer, "left out without --phi")
        return
    kind = config.synthetic.kind
    check(kind == "none", "synthetic.kind", kind, "none when --phi is given")
    check(min(config.swap.layers, default=0) >= 0, "swap.layers", config.swap.layers, "at least 0")
