"""Attention: the softmax over masked rows that agents and sequence models share."""

from vfejax.attention import softmax

__all__ = ["softmax"]
