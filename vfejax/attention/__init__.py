"""Attention: the softmax over masked rows that agents and sequence models share, rotary positions,
and attention on a torus, at once, as a stream and over a ring of devices.
"""

from vfejax.attention import (
    buffers,
    circulant,
    depth_fusion,
    encodings,
    frequencies,
    latent,
    orthogonality,
    pattern,
    ring,
    rope,
    softmax,
    streaming,
    tiles,
    toroidal,
    windows,
)

__all__ = [
    "buffers",
    "circulant",
    "depth_fusion",
    "encodings",
    "frequencies",
    "latent",
    "orthogonality",
    "pattern",
    "ring",
    "rope",
    "softmax",
    "streaming",
    "tiles",
    "toroidal",
    "windows",
]
