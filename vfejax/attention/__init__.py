"""Attention: the softmax over masked rows that agents and sequence models share, rotary positions,
and attention on a torus.
"""

from vfejax.attention import (
    circulant,
    depth_fusion,
    encodings,
    frequencies,
    orthogonality,
    pattern,
    rope,
    softmax,
    toroidal,
)

__all__ = [
    "circulant",
    "depth_fusion",
    "encodings",
    "frequencies",
    "orthogonality",
    "pattern",
    "rope",
    "softmax",
    "toroidal",
]
