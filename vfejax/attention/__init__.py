"""Attention: the softmax over masked rows that agents and sequence models share, and rotary
positions.
"""

from vfejax.attention import rope, softmax

__all__ = ["rope", "softmax"]
