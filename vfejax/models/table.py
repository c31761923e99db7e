"""The one list of sequence models, for commands, tests, benchmark and documentation.

A new model is a folder with a configuration and a ``build`` function, and one line here. It then
trains, resumes, is evaluated and generates, has its options on the command line, and is held to
causality by the tests.
"""

import dataclasses
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vfejax.compression.prune import Part
from vfejax.models.gpt import model as gpt
from vfejax.models.gpt.config import TransformerConfig
from vfejax.models.gpt.pruning import structure as gpt_structure
from vfejax.models.gpt_modern import model as gpt_modern
from vfejax.models.gpt_modern.config import ModernGPTConfig
from vfejax.models.gpt_modern.pruning import structure as gpt_modern_structure
from vfejax.models.koopman import model as koopman
from vfejax.models.koopman.config import KoopmanConfig
from vfejax.models.pure_fep import model as pure_fep
from vfejax.models.pure_fep.config import PureFEPConfig
from vfejax.models.pure_fep.trainer import trainer as pure_fep_trainer
from vfejax.models.quantum import model as quantum
from vfejax.models.quantum.config import QuantumTransformerConfig
from vfejax.models.quantum.pruning import structure as quantum_structure
from vfejax.models.resnet_bk import model as resnet_bk
from vfejax.models.resnet_bk.config import ResNetBKConfig
from vfejax.models.resnet_bk.pruning import structure as resnet_bk_structure
from vfejax.models.reversible import model as reversible
from vfejax.models.reversible.config import ReversibleConfig
from vfejax.models.toroidal import model as toroidal
from vfejax.models.toroidal.config import ToroidalConfig
from vfejax.models.toroidal.pruning import structure as toroidal_structure
from vfejax.models.vfe import maps as vfe_maps
from vfejax.models.vfe import model as vfe
from vfejax.models.vfe.config import VFEConfig
from vfejax.models.vfe.pruning import structure as vfe_structure
from vfejax.types import Array, Maps, SequenceModel, Trainer

__all__ = ["MODELS", "Entry", "TrainerFn", "build", "entry_of", "field_name"]


class TrainerFn(Protocol):
    """A model's own method of learning: ``(model, config, learning_rate_fn, key) -> Trainer``.

    Args:
        model: the model.
        config: its options.
        learning_rate_fn: the rate of each update, from its number.
        key: source of all randomness in training.
    """

    def __call__(
        self,
        model: SequenceModel,
        config: Any,
        learning_rate_fn: Callable[[Array], Array],
        key: Array,
        /,
    ) -> Trainer: ...


class Entry(NamedTuple):
    """One model.

    Attributes:
        config: frozen dataclass of its options; docstrings of the fields are the help texts. All
            have defaults.
        build: ``build(config, vocab_size, length, dtype) -> SequenceModel``, with a further
            argument ``counts`` if ``needs_counts``; raises ValueError that names an option whose
            value does not fit.
        tiny: options of a model small enough for tests.
        needs_counts: whether its first weights depend on how often each token occurs in the
            training text, ``counts [vocab_size]``.
        ablations: by name, the options that switch a part of the trained model off, for
            ``vfejax evaluate``.
        trainer: its own method of learning; None for gradient descent by AdamW.
        constants: names of arrays that are stored with the weights and never trained.
        maps: ``maps(config, vocab_size, length, dtype)``: images of what a trained model does with
            a text, for the report of ``vfejax train``; None for none.
        structure: ``structure(config) -> {option: Part}``: where what can be taken out of the model
            is in its weights (:mod:`vfejax.compression.prune`); None for a model of which nothing
            can.
    """

    config: type
    build: Callable[..., SequenceModel]
    tiny: Any
    needs_counts: bool = False
    ablations: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    trainer: TrainerFn | None = None
    constants: tuple[str, ...] = ()
    maps: Callable[[Any, int, int, jnp.dtype], Maps] | None = None
    structure: Callable[[Any], dict[str, Part]] | None = None


MODELS: dict[str, Entry] = {
    "resnet-bk": Entry(
        ResNetBKConfig,
        resnet_bk.build,
        tiny=ResNetBKConfig(layers=2, dim=16, heads=4, hidden=16, experts=4, top_k=2),
        structure=resnet_bk_structure,
    ),
    "transformer": Entry(
        TransformerConfig,
        gpt.build,
        tiny=TransformerConfig(layers=2, dim=16, heads=4, hidden=32),
        structure=gpt_structure,
    ),
    "gpt-modern": Entry(
        ModernGPTConfig,
        gpt_modern.build,
        tiny=ModernGPTConfig(layers=2, dim=16, heads=4, hidden=24),
        structure=gpt_modern_structure,
    ),
    "koopman": Entry(
        KoopmanConfig,
        koopman.build,
        tiny=KoopmanConfig(
            layers=2, dim=16, heads=4, hidden=16, experts=1, operators=(1,), delays=3, rank=4
        ),
    ),
    "quantum": Entry(
        QuantumTransformerConfig,
        quantum.build,
        tiny=QuantumTransformerConfig(dim=6, width=16, hidden=32),
        needs_counts=True,
        ablations={"decohered": {"decohere": True}},
        constants=("dephasing",),
        structure=quantum_structure,
    ),
    "toroidal": Entry(
        ToroidalConfig,
        toroidal.build,
        tiny=ToroidalConfig(layers=2, dim=16, heads=4, hidden=24, fusion="attention"),
        maps=toroidal.maps,
        structure=toroidal_structure,
    ),
    "reversible": Entry(
        ReversibleConfig,
        reversible.build,
        tiny=ReversibleConfig(layers=2, dim=16, heads=2, convolution=2, hidden=8),
    ),
    "vfe": Entry(
        VFEConfig,
        vfe.build,
        tiny=VFEConfig(layers=2, dim=16, heads=2, steps=2, hidden=24),
        ablations={"without_inference": {"steps": 0}},
        maps=vfe_maps.maps,
        structure=vfe_structure,
    ),
    "pure-fep": Entry(
        PureFEPConfig,
        pure_fep.build,
        tiny=PureFEPConfig(
            layers=2, max_layers=2, dim=16, spins=(0, 1), hidden=24, inference_steps=1
        ),
        trainer=pure_fep_trainer,
        constants=("alive",),
        maps=pure_fep.maps,
    ),
}
"""Every model by the name it has on the command line."""


def field_name(name: str) -> str:
    """A model's name as it is written in Python: the field of a configuration that holds its
    options.

    >>> field_name("resnet-bk")
    'resnet_bk'
    """
    return name.replace("-", "_")


def entry_of(name: str, config: Any) -> Entry:
    """The line of a model, once its options are known to be of it.

    Raises:
        KeyError: for a name that is not in the table.
        ValueError: for options of another model.

    >>> entry_of("transformer", {"layers": 2})
    Traceback (most recent call last):
        ...
    ValueError: config: 'transformer' takes TransformerConfig, got dict
    """
    if name not in MODELS:
        raise KeyError(f"no model {name!r}; there are {', '.join(MODELS)}")
    entry = MODELS[name]
    if not isinstance(config, entry.config):
        raise ValueError(
            f"config: {name!r} takes {entry.config.__name__}, got {type(config).__name__}"
        )
    return entry


def _with_python_numbers(config: Any) -> Any:
    """The options with Python's own numbers for those of NumPy, which flax takes for weights and
    which would widen what they are multiplied with.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(plain(x) for x in value)
        return value.item() if isinstance(value, np.generic) else value

    options = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{name: plain(value) for name, value in options.items()})


def _whole(name: str, size: Any) -> int:
    try:
        return operator.index(size)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {size!r}") from None


def build(
    name: str,
    config: Any,
    vocab_size: int,
    length: int,
    dtype: jnp.dtype = jnp.float32,
    counts: ArrayLike | None = None,
) -> SequenceModel:
    """The model of that name.

    Args:
        name: one of ``MODELS``.
        config: its options.
        vocab_size: number of tokens.
        length: tokens of a training sequence, and the most that a model with learned positions
            reads.
        dtype: that of the arithmetic: float32, float64 or bfloat16.
        counts: how often each token occurs in the training text, ``[vocab_size]``; read only by
            models that need it. None counts every token once, which does for weights that are read
            back.

    Raises:
        KeyError: for a name that is not in the table.
        ValueError: for options of another model, or that do not fit, naming them.

    >>> model = build("transformer", MODELS["transformer"].tiny, vocab_size=11, length=8)
    >>> model.max_length
    8
    """
    entry = entry_of(name, config)
    config = _with_python_numbers(config)
    vocab_size, length = _whole("vocab_size", vocab_size), _whole("length", length)
    extra = {}
    if entry.needs_counts:
        extra["counts"] = jnp.ones(vocab_size) if counts is None else counts
    return entry.build(config, vocab_size, length, dtype, **extra)
