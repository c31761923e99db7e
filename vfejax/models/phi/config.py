"""Options of a Phi model, as the file ``config.json`` of a checkpoint says them.

Two styles are in use: older files have ``rope_theta`` and ``partial_rotary_factor`` beside the
other keys, newer ones have them in ``rope_parameters``. A key that is missing has the default of
the architecture. The rates of dropout are not read: a model that is trained here leaves nothing
out.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args, get_origin

from vfejax.attention.frequencies import LARGEST_CIRCUMFERENCE

__all__ = [
    "PhiConfig",
    "Segment",
    "Swap",
    "Toroidal",
    "from_json",
    "segments",
    "to_json",
    "with_swapped",
]

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 51200,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu_new",
    "qk_layernorm": False,
    "tie_word_embeddings": False,
}
_COUNTS = tuple(key for key, value in _DEFAULTS.items() if type(value) is int)
_SWAPPED = "vfejax_swapped_attention"
_ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh")  # two names of one function


@dataclass(frozen=True)
class Toroidal:
    """Attention on a torus in place of a layer's own; see :mod:`vfejax.attention.toroidal`.

    The defaults leave the logits as they were, and so does any depth of axial attention until the
    fusion of its platters is trained.
    """

    depth: int = 1
    """Number of platters that the heads are divided among, a divisor of their number."""
    attention: Literal["axial", "joint"] = "axial"
    """What a query reads: its own platter, or all platters at depth times the cost."""
    encoding: Literal["standard", "snapped", "geometric", "mixed"] = "standard"
    """Frequencies of the rotary positions. standard: those of the pretrained model. snapped: the
    nearest that make whole turns around the ring. geometric: whole turns in geometric steps. mixed:
    these, combined with turns across the platters.
    """
    fusion: Literal["none", "low-rank", "attention", "mean"] = "none"
    """How the platters of a token mix after the attention."""
    rank: int = 4
    """Rank of the low-rank fusion, which is the identity at first."""
    distance: Literal["circular", "linear"] = "circular"
    """Distance along the sequence in the bias: the short way round the ring, or the age."""
    slope: float = 0.0
    """Logits lost per unit of distance, at least 0; without any bias at 0."""
    circumference: int | None = None
    """Places of the ring; as many as the model reads tokens by default."""
    window: int | None = None
    """A query reads this many last keys, its own among them; all by default."""


@dataclass(frozen=True)
class Swap(Toroidal):
    """Attention on a torus, and the layers that it is swapped into; these learn."""

    layers: tuple[int, ...] = ()
    """Numbers of the layers, from 0; the last one by default."""


class Segment(NamedTuple):
    """Neighbouring layers with equal attention: their numbers, and the attention."""

    layers: range
    toroidal: Toroidal | None


@dataclass(frozen=True)
class PhiConfig:
    """A Phi model: attention and feed-forward layer side by side, partly rotary positions.

    Attributes:
        vocab_size: number of tokens.
        dim: width of the residual stream, a multiple of heads.
        hidden: width of the feed-forward layers.
        layers: number of blocks.
        heads: attention heads per block.
        kv_heads: heads of keys and values, a divisor of heads; each serves equally many heads.
        length: tokens that a sequence may have.
        epsilon: added to the variance in every layer norm.
        base: slowest wavelength of the rotary positions, in tokens, divided by 2 pi.
        rotary: channels of a head that turn with the position, even; the others stay.
        qk_norm: whether queries and keys are normalised, head by head.
        tied: whether the output shares the token embedding.
        swapped: for every layer its attention on a torus, or None for the ordinary one; empty when
            all are ordinary.
        dtype: of the arithmetic: float32, float64 or bfloat16; no file says it.
        source: the JSON that these options were read from; it has keys that no computation needs.
    """

    vocab_size: int
    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    length: int
    epsilon: float
    base: float
    rotary: int
    qk_norm: bool
    tied: bool
    swapped: tuple[Toroidal | None, ...] = ()
    dtype: str = "float32"
    source: str = dataclasses.field(default="{}", compare=False, repr=False)

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.dim // self.heads


def from_json(mapping: Mapping[str, Any]) -> PhiConfig:
    """The options that a ``config.json`` says.

    Args:
        mapping: the parsed file.

    Raises:
        ValueError: naming the key, for another architecture and for values that do not fit.

    >>> small = {"model_type": "phi", "hidden_size": 16, "num_attention_heads": 2}
    >>> flat = from_json(small | {"partial_rotary_factor": 0.25, "rope_theta": 500.0})
    >>> flat.head_dim, flat.rotary, flat.base
    (8, 2, 500.0)
    >>> parameters = {"rope_type": "default", "partial_rotary_factor": 0.25, "rope_theta": 500.0}
    >>> from_json(small | {"rope_parameters": parameters}) == flat
    True
    """
    kind = mapping.get("model_type")
    if kind != "phi":
        raise ValueError(f"model_type must be 'phi', got {kind!r}: this is another architecture")
    values = {key: mapping.get(key, default) for key, default in _DEFAULTS.items()}
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    _check(values)
    head_dim = values["hidden_size"] // values["num_attention_heads"]
    stated, requirement = mapping.get("head_dim"), f"hidden_size / num_attention_heads = {head_dim}"
    _require(stated in (None, head_dim), "head_dim", requirement, stated)
    base, rotary = _rotary(mapping, head_dim)
    config = PhiConfig(
        vocab_size=values["vocab_size"],
        dim=values["hidden_size"],
        hidden=values["intermediate_size"],
        layers=values["num_hidden_layers"],
        heads=values["num_attention_heads"],
        kv_heads=values["num_key_value_heads"],
        length=values["max_position_embeddings"],
        epsilon=float(values["layer_norm_eps"]),
        base=base,
        rotary=rotary,
        qk_norm=values["qk_layernorm"],
        tied=values["tie_word_embeddings"],
        source=json.dumps({k: v for k, v in mapping.items() if k != _SWAPPED}),
    )
    return with_swapped(config, _swapped(config, mapping.get(_SWAPPED, {})))


def segments(config: PhiConfig) -> list[Segment]:
    """The layers in runs of equal attention, each of which is compiled once.

    >>> import dataclasses
    >>> config = from_json({"model_type": "phi", "num_hidden_layers": 4})
    >>> swapped = dataclasses.replace(config, swapped=(None, Toroidal(), Toroidal(), None))
    >>> [(list(segment.layers), segment.toroidal is None) for segment in segments(swapped)]
    [([0], True), ([1, 2], False), ([3], True)]
    """
    kinds = config.swapped or (None,) * config.layers
    starts = [i for i in range(config.layers) if i == 0 or kinds[i] != kinds[i - 1]]
    return [
        Segment(range(start, stop), kinds[start])
        for start, stop in zip(starts, [*starts[1:], config.layers], strict=True)
    ]


def to_json(config: PhiConfig) -> dict[str, Any]:
    """What a ``config.json`` says of these options: all that the file said that they were read
    from, and the swapped attention of each layer under a key of its own.
    """
    swapped = {
        str(layer): dataclasses.asdict(toroidal)
        for layer, toroidal in enumerate(config.swapped)
        if toroidal is not None
    }
    return json.loads(config.source) | ({_SWAPPED: swapped} if swapped else {})


def _swapped(config: PhiConfig, said: Any) -> tuple[Toroidal | None, ...]:
    """The swapped attention of every layer, as :func:`to_json` wrote it."""
    _require(isinstance(said, Mapping), _SWAPPED, "an object", said)
    kinds: list[Toroidal | None] = [None] * config.layers
    for layer, options in said.items():
        known = layer in map(str, range(config.layers)) and isinstance(options, Mapping)
        _require(known, _SWAPPED, f"options by a layer from 0 to {config.layers - 1}", said)
        try:
            kinds[int(layer)] = Toroidal(**options)
        except TypeError as error:
            raise ValueError(
                f"{_SWAPPED} of layer {layer} must be known options: {error}"
            ) from error
    return tuple(kinds)


def with_swapped(config: PhiConfig, kinds: Sequence[Toroidal | None]) -> PhiConfig:
    """The options with this attention in every layer.

    A ring has room for as many tokens as it has places, so the model reads no more. One that is not
    said has as many places as the model reads tokens now.

    Args:
        config: the options of the model.
        kinds: for every layer the options of its attention on a torus, or None.

    Raises:
        ValueError: naming the option, its value and what it must be.
    """
    full = [
        None if kind is None else dataclasses.replace(kind, circumference=_ring(config, kind))
        for kind in kinds
    ]
    for kind in filter(None, full):
        _check_toroidal(config, kind)
    rings = [kind.circumference for kind in full if kind is not None and kind.circumference]
    length = min([config.length, *rings])
    return dataclasses.replace(config, swapped=tuple(full) if rings else (), length=length)


def _ring(config: PhiConfig, toroidal: Toroidal) -> int:
    return config.length if toroidal.circumference is None else toroidal.circumference


def _check_toroidal(config: PhiConfig, toroidal: Toroidal) -> None:
    for field in dataclasses.fields(toroidal):
        value, choices = getattr(toroidal, field.name), get_args(field.type)
        if get_origin(field.type) is Literal:
            _require(value in choices, field.name, f"one of {', '.join(choices)}", value)
    heads = config.kv_heads if toroidal.attention == "joint" else config.heads
    valid = [depth for depth in range(1, heads + 1) if heads % depth == 0]
    noun = "heads of keys" if toroidal.attention == "joint" else "heads"
    fits = type(toroidal.depth) is int and toroidal.depth in valid
    requirement = f"a divisor of the {heads} {noun}: {', '.join(map(str, valid))}"
    _require(fits, "depth", requirement, toroidal.depth)
    ring, window = toroidal.circumference, toroidal.window
    fits = type(ring) is int and 1 <= ring <= LARGEST_CIRCUMFERENCE
    requirement = f"an integer from 1 to {LARGEST_CIRCUMFERENCE}"
    _require(fits, "circumference", requirement, ring)
    fits = window is None or (type(window) is int and 1 <= window <= int(ring or 1))
    _require(fits, "window", f"1 to the circumference {ring}", window)
    slope = toroidal.slope
    finite = _is_number(slope) and (slope == 0 or _is_positive(slope))
    _require(finite, "slope", "at least 0 and finite", slope)
    rank = toroidal.rank
    _require(type(rank) is int and rank >= 1, "rank", "an integer of at least 1", rank)


def _require(fits: bool, key: str, requirement: str, value: Any) -> None:
    if not fits:
        raise ValueError(f"{key} must be {requirement}, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    """Whether it is a number above 0 and finite; JSON has integers that no float can hold."""
    try:
        return _is_number(value) and value > 0 and math.isfinite(value)
    except OverflowError:
        return False


def _check(values: Mapping[str, Any]) -> None:
    """Refuse values of another type, out of their limits, or that do not fit together."""
    for key in (*_COUNTS, "num_key_value_heads"):
        value = values[key]
        _require(type(value) is int and value >= 1, key, "an integer of at least 1", value)
    for key in ("qk_layernorm", "tie_word_embeddings"):
        _require(type(values[key]) is bool, key, "true or false", values[key])
    epsilon = values["layer_norm_eps"]
    _require(_is_positive(epsilon), "layer_norm_eps", "a positive number", epsilon)
    activation = values["hidden_act"]
    _require(activation in _ACTIVATIONS, "hidden_act", " or ".join(_ACTIVATIONS), activation)
    heads, dim = values["num_attention_heads"], values["hidden_size"]
    _require(dim % heads == 0, "hidden_size", f"a multiple of num_attention_heads {heads}", dim)
    groups = values["num_key_value_heads"]
    requirement = f"a divisor of num_attention_heads {heads}"
    _require(heads % groups == 0, "num_key_value_heads", requirement, groups)


def _rotary(mapping: Mapping[str, Any], head_dim: int) -> tuple[float, int]:
    """Base of the rotary positions and number of channels that turn, from either style."""
    nested = mapping.get("rope_parameters")
    _require(nested is None or isinstance(nested, Mapping), "rope_parameters", "an object", nested)
    scaling = mapping.get("rope_scaling")
    _require(scaling is None or isinstance(scaling, Mapping), "rope_scaling", "an object", scaling)
    said = {**mapping, **(scaling or {}), **(nested or {})}
    for part in (scaling or {}, nested or {}):  # neither may scale positions, whichever counts
        kind = part.get("rope_type", part.get("type", "default"))
        _require(kind == "default", "rope_type", "'default', the positions as they are", kind)
    base, share = said.get("rope_theta", 10_000.0), said.get("partial_rotary_factor", 0.5)
    _require(_is_positive(base), "rope_theta", "a positive number", base)
    fits = _is_number(share) and 0 < share <= 1
    _require(fits, "partial_rotary_factor", "a number above 0 and at most 1", share)
    turned = int(head_dim * share)
    requirement = f"a share of the {head_dim} channels of a head that is an even number of them"
    _require(turned >= 2 and turned % 2 == 0, "partial_rotary_factor", requirement, share)
    return float(base), turned
