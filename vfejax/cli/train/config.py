"""Options of ``vfejax train``: their meaning, their defaults, their limits."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from vfejax.cli import options as configuration
from vfejax.cli.distributed import GroupOptions
from vfejax.cli.train.optimizers import DESCENTS
from vfejax.models.phi.config import Swap
from vfejax.models.table import MODELS, field_name
from vfejax.training.sharding import RULES

__all__ = [
    "PRETRAINED",
    "Synthetic",
    "TrainConfig",
    "model_options",
    "parse",
    "with_defaults",
    "with_options",
]

_Settings = TypeVar("_Settings")

PRETRAINED = "phi"
"""The model that is read from a directory, and whose options are those of ``--swap``."""


if TYPE_CHECKING:
    _ModelName = str
    _OptimizerName = str
    _RuleName = str
else:
    _ModelName = Literal[(*MODELS, PRETRAINED)]
    _OptimizerName = Literal[(*DESCENTS,)]
    _RuleName = Literal[(*RULES,)]


@dataclass(frozen=True)
class Synthetic:
    """A synthetic sequence instead of a text."""

    kind: Literal["none", "periodic", "sinusoidal", "uniform"] = "none"
    """No synthetic sequence; a repeated random pattern; quantised sinusoids; or independent uniform
    tokens, which no model can predict.
    """
    symbols: int = 16
    """Number of different tokens."""
    period: int = 24
    """Tokens after which the pattern repeats; the longest period of the sinusoids."""
    noise: float = 0.0
    """Probability that a token of the periodic sequence is replaced by a uniform one."""
    tokens: int = 100_000
    """Length of the sequence, training and validation together."""


def _with_models(settings: type[_Settings]) -> type[_Settings]:
    """The dataclass with one more field for the options of each model in the table."""
    models = [
        (field_name(name), entry.config, field(default_factory=entry.config))
        for name, entry in MODELS.items()
    ]
    made = dataclasses.make_dataclass(
        settings.__name__,
        models,
        bases=(settings,),
        namespace={"__doc__": settings.__doc__, "__module__": settings.__module__},
        frozen=True,
    )
    return made


@_with_models
@dataclass(frozen=True)
class TrainConfig(GroupOptions):
    """A next-token model learns a text.

    Without a text of your own it learns English from the help topics that ship with every Python.
    """

    CHANGEABLE: ClassVar[tuple[str, ...]] = (
        *("steps", "checkpoint_every", "learning_rate", "patience"),
        *("final_windows", "sample_tokens", "shard", "remat"),
    )
    INPUTS: ClassVar[tuple[str, ...]] = ("text", "phi", "tokenizer")
    CHOICES: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "model": {**{name: field_name(name) for name in MODELS}, PRETRAINED: "swap"}
    }

    out: Path = Path("runs/train")
    """Run directory to create."""
    seed: int = 0
    """Seed of weights, batches and dropout."""

    model: _ModelName = "resnet-bk"
    """Which model; its own options begin with its name, and those of others are ignored. --phi
    chooses phi.
    """
    phi: Path | None = None
    """Directory of a pretrained Phi model (config.json and safetensors). Some of its layers get
    attention on a torus and learn; all other weights stay as they are.
    """
    swap: Swap = field(default_factory=Swap)
    """The attention on a torus that layers of --phi get."""
    tokenizer: Path | None = None
    """The tokenizer.json that belongs to --phi; bytes by default. --vocabulary does not count
    then.
    """

    text: Path | None = None
    """UTF-8 text file, or a directory with train, valid and (optional) test files. The help topics
    of Python by default.
    """
    synthetic: Synthetic = field(default_factory=Synthetic)
    vocabulary: str = "character"
    """What a token is: character, byte or word (split at white space and line breaks), or the path
    of a tokenizer.json that the library tokenizers wrote.
    """
    max_words: int = 20_000
    """How many of the most frequent words get a token of their own."""
    valid_fraction: float = 0.1
    """Share of a single text, at its end, that is kept for validation."""

    length: int = 64
    """Tokens the model reads at once."""
    batch_size: int = 12
    """Sequences per update."""
    optimizer: _OptimizerName = "adamw"
    """How weights follow the gradient: AdamW; leapfrog with friction, which is gradient descent
    with momentum; or its relativistic form, whose speed has a limit.
    """
    learning_rate: float | None = None
    """Largest learning rate, reached after the warm-up. By default 2e-3 for adamw and 0.2 for
    momentum and relativistic.
    """
    warmup_steps: int = 100
    """Updates over which the learning rate rises; it then falls along a cosine."""
    final_rate: float = 0.1
    """Learning rate at the end, as a fraction of the largest."""
    weight_decay: float | None = None
    """Decay of weight matrices, relative to the learning rate. By default 0.1 for adamw, and 1e-4
    for momentum and relativistic, whose velocity adds up about 20 gradients.
    """
    clip_norm: float = 1.0
    """Gradients whose global norm exceeds this are scaled down to it."""
    beta2: float = 0.99
    """Decay rate of AdamW's average of squared gradients."""
    momentum: float = 0.9
    """Share of the velocity that an update of momentum or relativistic keeps."""
    delta: float = 1.0
    """Inverse square of the speed limit of relativistic: no update moves all weights together by
    more than 2 / sqrt(delta).
    """
    accumulation: int = 1
    """Number of equal parts in which a batch is worked through, one after the other: less memory,
    the same gradient.
    """
    remat: bool = False
    """Store only the input of each block, and recompute the block for the gradient, its products
    with weights included: less memory, the same gradient.
    """
    gradients: Literal["exact", "koopman", "identity", "readout"] = "exact"
    """How gradients pass through the blocks. exact: by their Jacobians. koopman: by linear
    operators that predict the blocks and are learned during training. identity: unchanged. readout:
    not at all, so that only the layers after the last block learn.
    """
    shard: _RuleName = "replicated"
    """How the training state is divided among several devices, which share every batch: each has a
    copy of all (replicated); a copy of the weights and a share of the optimiser's state (zero1); a
    share of both (zero3). A resumed run may change this, and have another number of devices.
    """
    compute: Literal["float32", "bfloat16", "float64"] = "float32"
    """Arithmetic of the model. Weights are float32, or float64 if that is chosen."""

    eval_every: int = 100
    """Updates between evaluations, a multiple of --log-every."""
    eval_windows: int = 200
    """Windows of --length tokens, evenly spaced in the validation text, that an evaluation reads; 0
    for all.
    """
    patience: int = 0
    """Stop after this many evaluations in a row without a better loss; 0 never stops early."""
    final_windows: int = 20_000
    """Windows of --length tokens, evenly spaced in each split, that the evaluation at the end of
    the run reads; 0 for all.
    """
    sample_tokens: int = 400
    """Tokens that the trained model writes for the report."""


def with_defaults(config: TrainConfig) -> TrainConfig:
    """The configuration with the learning rate and the weight decay of its optimiser where it has
    none.
    """
    descent = DESCENTS[config.optimizer]
    names = ("learning_rate", "weight_decay")
    open_ones = {name: getattr(descent, name) for name in names if getattr(config, name) is None}
    return dataclasses.replace(config, **open_ones)


def _options_field(config: TrainConfig) -> str:
    return type(config).CHOICES["model"][config.model]


def model_options(config: TrainConfig) -> Any:
    """The options of the chosen model."""
    return getattr(config, _options_field(config))


def with_options(config: TrainConfig, **changes: Any) -> TrainConfig:
    """The configuration with other options of the chosen model."""
    options = dataclasses.replace(model_options(config), **changes)
    return dataclasses.replace(config, **{_options_field(config): options})


def parse(arguments: Sequence[str]) -> TrainConfig:
    """Flags over the configuration file (or, with --resume, over the run's own configuration) over
    the defaults.
    """
    config = configuration.parse_run(TrainConfig, arguments, program="vfejax train")
    config = with_defaults(config)
    return config if config.phi is None else dataclasses.replace(config, model=PRETRAINED)
