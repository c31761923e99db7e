"""The prunable units of a ResNet-BK: experts, their hidden units, heads, channels, layers."""

from collections.abc import Mapping

import jax

from vfejax.compression.experts import kept_scale
from vfejax.compression.prune import Cut, Part
from vfejax.models.prunable_units import BLOCK, blocks, hidden, stream
from vfejax.models.resnet_bk.config import ResNetBKConfig
from vfejax.models.resnet_bk.experts import ROUTERS
from vfejax.types import Array, PyTree

__all__ = ["structure"]

_EXPERTS, _MIXER = f"{BLOCK}experts/", f"{BLOCK}mixer/"
# Linear maps that write two numbers for every head, and vectors that have one.
_LEVELS = {
    "gate": ("gates/levels",),
    "tridiagonal": ("gates/levels", "couplings"),
    "operator": ("potential/levels",),
    "features": ("potential/levels",),
    "rg-lru": ("levels",),
}
_VECTORS = {
    "gate": ("gates/decay", "gates/phase"),
    "tridiagonal": ("gates/decay", "gates/phase"),
    "operator": ("potential/hop", "potential/offset", "potential/width"),
    "features": ("potential/hop", "potential/offset", "potential/width"),
    "rg-lru": ("decay",),
}


def structure(config: ResNetBKConfig) -> dict[str, Part]:
    """Where the units are in the weights. Only the features mixer has heads whose number the width
    does not depend on.

    >>> structure(ResNetBKConfig())["experts"].number
    4
    """
    found = {
        "layers": blocks(config.layers),
        "dim": _stream(config),
        "heads": _heads(config),
        "hidden": hidden(config.hidden, "experts/kernel_in", "experts/kernel_out"),
    }
    return found | ({"experts": _experts(config)} if config.experts > 1 else {})


def _stream(config: ResNetBKConfig) -> Part:
    writers = ["tokens/embedding", f"{_EXPERTS}kernel_out", f"{_MIXER}out/kernel"]
    readers = [
        f"{_EXPERTS}kernel_in",
        *(f"{_MIXER}{name}/kernel" for name in _LEVELS[config.mixer]),
    ]
    if config.positions:
        writers.append("positions/embedding")
    if not config.tied:
        readers.append("output/kernel")
    if config.experts > 1:
        readers.append(f"{_EXPERTS}router/kernel")
    if config.mixer != "features":
        readers += [f"{_MIXER}values/kernel", f"{_MIXER}gate/kernel"]
    if config.convolution > 1 and config.mixer not in ("features", "operator"):
        writers.append(f"{_MIXER}convolution/taps")
    norms = ["norm/scale", f"{BLOCK}expert_norm/scale", f"{BLOCK}mixer_norm/scale"]
    return stream(config.dim, writers=writers, readers=readers, norms=norms)


def _heads(config: ResNetBKConfig) -> Part:
    cuts = [Cut(f"{_MIXER}{name}", -1) for name in _VECTORS[config.mixer]]
    for name in _LEVELS[config.mixer]:
        cuts += [Cut(f"{_MIXER}{name}/{leaf}", -1, copies=2) for leaf in ("kernel", "bias")]
    if config.mixer == "features":
        reader, channels = Cut(f"{_MIXER}out/kernel", -2, copies=2), 0
    else:
        channels = config.dim // config.heads
        parts = 1 if config.mixer == "rg-lru" else 2
        reader = Cut(f"{_MIXER}out/kernel", -2, size=parts * channels)
        cuts += [Cut(f"{_MIXER}{name}/kernel", -1, size=channels) for name in ("values", "gate")]
        cuts.append(Cut(f"{_MIXER}scale", -2))
    return Part(config.heads, (*cuts, reader), reader=reader, channels=channels)


def _experts(config: ResNetBKConfig) -> Part:
    kernels = (Cut(f"{_EXPERTS}{name}", -3) for name in ("kernel_in", "kernel_out"))

    def correct(params: PyTree, activations: Mapping[str, Array], units: Array) -> PyTree:
        def one(kernel: Array, logits: Array, units: Array) -> Array:
            scale = kept_scale(logits, units, config.top_k, ROUTERS[config.router])
            return kernel.at[units].multiply(scale.astype(kernel.dtype)[:, None, None])

        experts = params["blocks"]["block"]["experts"]
        logits = activations[f"{_EXPERTS}logits"]
        kernel = jax.vmap(one)(experts["kernel_out"], logits, units)
        block = params["blocks"]["block"] | {"experts": experts | {"kernel_out": kernel}}
        return params | {"blocks": {"block": block}}

    return Part(
        config.experts,
        (*kernels, Cut(f"{_EXPERTS}router/kernel", -1)),
        scored=(f"{_EXPERTS}contribution",),
        alone=(f"{_EXPERTS}router/kernel",),
        options=lambda kept: {"top_k": min(config.top_k, kept)},
        correct=correct,
    )
