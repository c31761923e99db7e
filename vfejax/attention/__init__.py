"""Attention: the softmax over masked rows that agents and sequence models share, rotary positions,
and attention on a torus.
"""

from vfejax.attention import pattern, rope, softmax, toroidal

__all__ = ["pattern", "rope", "softmax", "toroidal"]
