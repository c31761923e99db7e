"""Attention: the softmax over masked rows that agents and sequence models share, rotary positions,
and attention on a torus, at once, as a stream and over a ring of devices.

:mod:`vfejax.attention.pallas` is imported by its own name: it needs a jaxlib that has Triton.
"""

from vfejax.attention import (
    blockwise,
    buffers,
    circulant,
    depth_fusion,
    dot_product,
    encodings,
    frequencies,
    latent,
    orthogonality,
    pattern,
    ring,
    rope,
    softmax,
    streaming,
    striping,
    tiles,
    toroidal,
    windows,
)

__all__ = [
    "blockwise",
    "buffers",
    "circulant",
    "depth_fusion",
    "dot_product",
    "encodings",
    "frequencies",
    "latent",
    "orthogonality",
    "pattern",
    "ring",
    "rope",
    "softmax",
    "streaming",
    "striping",
    "tiles",
    "toroidal",
    "windows",
]
