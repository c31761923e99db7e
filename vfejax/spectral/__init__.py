"""Tridiagonal operators: resolvents by recursion, determinants, densities of states."""

from vfejax.spectral import ablation, recurrence, resolvent, streaming, tridiagonal

__all__ = ["ablation", "recurrence", "resolvent", "streaming", "tridiagonal"]
