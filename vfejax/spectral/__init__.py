"""Tridiagonal operators: resolvents by recursion, determinants, densities of states."""

from vfejax.spectral import ablation, gates, recurrence, resolvent, streaming, tridiagonal

__all__ = ["ablation", "gates", "recurrence", "resolvent", "streaming", "tridiagonal"]
