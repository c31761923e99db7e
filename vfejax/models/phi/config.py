"""Options of a Phi model, as the file ``config.json`` of a checkpoint says them.

Two styles are in use: older files have ``rope_theta`` and ``partial_rotary_factor`` beside the
other keys, newer ones have them in ``rope_parameters``. A key that is missing has the default of
the architecture. The rates of dropout are not read: a model that is trained here leaves nothing
out.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

__all__ = ["PhiConfig", "Segment", "Toroidal", "from_json", "segments", "to_json"]

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
_ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh")  # two names of one function


@dataclass(frozen=True)
class Toroidal:
    """Attention on a torus in place of a layer's own; see :mod:`vfejax.attention.toroidal`.

    The defaults leave the layer as it was.
    """

    depth: int = 1
    """Number of platters that the heads are dealt out to, a divisor of their number."""
    attention: Literal["axial", "joint"] = "axial"
    """What a query reads: its own platter, or all platters at depth times the cost."""
    encoding: str = "standard"
    """Rates of the rotary positions, by their name in the table of encodings; standard ones are
    those of the weights.
    """
    fusion: str = "none"
    """How the platters mix after the attention, by its name in the table of fusions."""
    distance: Literal["circular", "linear"] = "circular"
    """Distance along the sequence in the bias: the short way round the ring, or the age."""
    slope: float = 0.0
    """Logits lost per unit of distance, at least 0; no bias at 0."""
    circumference: int = 0
    """Places of the ring; 0 for as many as the model reads tokens."""
    window: int = 0
    """A query reads this many last keys, its own among them; 0 for all."""
    rank: int = 4
    """Rank of the low-rank fusion."""


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
    _require(
        mapping.get("head_dim") in (None, head_dim),
        *("head_dim", f"hidden_size / num_attention_heads = {head_dim}", mapping.get("head_dim")),
    )
    base, rotary = _rotary(mapping, head_dim)
    return PhiConfig(
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
        source=json.dumps(dict(mapping)),
    )


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
    from.
    """
    return json.loads(config.source)


def _require(fits: bool, key: str, requirement: str, value: Any) -> None:
    if not fits:
        raise ValueError(f"{key} must be {requirement}, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check(values: Mapping[str, Any]) -> None:
    """Refuse values of another type, out of their limits, or that do not fit together."""
    for key in (*_COUNTS, "num_key_value_heads"):
        value = values[key]
        _require(type(value) is int and value >= 1, key, "an integer of at least 1", value)
    for key in ("qk_layernorm", "tie_word_embeddings"):
        _require(type(values[key]) is bool, key, "true or false", values[key])
    epsilon = values["layer_norm_eps"]
    _require(_is_number(epsilon) and epsilon > 0, "layer_norm_eps", "a positive number", epsilon)
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
    kind = said.get("rope_type", said.get("type", "default"))
    _require(kind == "default", "rope_type", "'default', the positions as they are", kind)
    base, share = said.get("rope_theta", 10_000.0), said.get("partial_rotary_factor", 0.5)
    _require(_is_number(base) and 0 < base < float("inf"), "rope_theta", "a positive number", base)
    _require(
        _is_number(share) and 0 < share <= 1,
        *("partial_rotary_factor", "a number above 0 and at most 1", share),
    )
    turned = int(head_dim * share)
    requirement = f"a share of the {head_dim} channels of a head that is an even number of them"
    _require(turned >= 2 and turned % 2 == 0, "partial_rotary_factor", requirement, share)
    return float(base), turned
