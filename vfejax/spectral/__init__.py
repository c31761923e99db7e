"""Tridiagonal operators: resolvents by recursion, determinants, densities of states."""

from vfejax.spectral import gates, recurrence, resolvent, scans, streaming, tridiagonal

__all__ = ["gates", "recurrence", "resolvent", "scans", "streaming", "tridiagonal"]
