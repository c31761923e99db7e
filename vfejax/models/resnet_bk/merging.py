"""Fewer experts of a ResNet-BK by merging those with similar outputs."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from vfejax.compression import merge
from vfejax.compression.experts import combined_scale
from vfejax.models.blocks import OptionError
from vfejax.models.resnet_bk.config import ResNetBKConfig
from vfejax.models.resnet_bk.experts import ROUTERS
from vfejax.types import Array, PyTree

__all__ = ["merged"]


def merged(
    config: ResNetBKConfig, params: PyTree, activations: Mapping[str, Array], experts: int
) -> tuple[PyTree, ResNetBKConfig]:
    """Weights and options of the model with so many experts in every layer, each a mean of some
    that were there. On the host.

    Args:
        config: the model's options.
        params: its weights.
        activations: ``model.activations(params, tokens)`` of real tokens.
        experts: how many there are to be.

    Returns:
        The weights, as the options ask for, and the options.

    Raises:
        OptionError: unless ``1 <= experts <= config.experts``.
        ValueError: for options of another model.
    """
    if not isinstance(config, ResNetBKConfig):
        raise ValueError(f"config must be a ResNetBKConfig, got {type(config).__name__}")
    if not 1 <= experts <= config.experts:
        raise OptionError("experts", experts, f"between 1 and {config.experts}")
    if experts == config.experts:
        return params, config
    block = params["blocks"]["block"]
    old = {"kernel_in": block["experts"]["kernel_in"], "kernel_out": block["experts"]["kernel_out"]}
    found: dict[str, list[Array]] = {"kernel_in": [], "kernel_out": [], "router": []}
    for layer in range(config.layers):
        said = {
            name: activations[f"blocks/block/experts/{name}"][layer]
            for name in ("logits", "frequency", "similarity")
        }
        frequency = np.asarray(said["frequency"])
        labels = merge.clusters(np.asarray(said["similarity"]), frequency, experts)
        first, last = (np.asarray(kernel[layer]) for kernel in old.values())
        new = merge.merge(first, last, frequency, labels)
        mixing = jnp.asarray(new.mixing, said["logits"].dtype)
        router = block["experts"]["router"]["kernel"][layer]
        scale = combined_scale(
            said["logits"],
            mixing,
            (mixing > 0).astype(mixing.dtype),
            config.top_k,
            ROUTERS[config.router],
        )
        found["kernel_in"].append(jnp.asarray(new.kernel_in, router.dtype))
        found["kernel_out"].append(jnp.asarray(new.kernel_out, router.dtype) * scale[:, None, None])
        found["router"].append(router @ mixing)
    stacked = {name: jnp.stack(layers) for name, layers in found.items()}
    router = {"kernel": stacked.pop("router")}
    new_experts = stacked | ({"router": router} if experts > 1 else {})
    params = params | {"blocks": {"block": block | {"experts": new_experts}}}
    top_k = min(config.top_k, experts)
    return params, dataclasses.replace(config, experts=experts, top_k=top_k)
