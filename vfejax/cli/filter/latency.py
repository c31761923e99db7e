"""Latencies in constant memory: counts by their logarithm, from which quantiles are read."""

import math

__all__ = ["Latencies"]

_BINS_PER_DECADE = 100  # quantiles are right to 2.3 %
_SHORTEST = 1e-7  # seconds


class Latencies:
    """Counts of durations between 0.1 microseconds and a day.

    >>> durations = Latencies()
    >>> for i in range(1, 101):
    ...     durations.add(i * 1e-3)
    >>> round(1e3 * durations.quantile(0.5)), durations.count
    (50, 100)
    """

    def __init__(self) -> None:
        self.count = 0
        self._counts = [0] * (12 * _BINS_PER_DECADE)

    def add(self, seconds: float) -> None:
        """Count one more."""
        place = _BINS_PER_DECADE * math.log10(max(seconds, _SHORTEST) / _SHORTEST)
        self._counts[min(int(place), len(self._counts) - 1)] += 1
        self.count += 1

    def quantile(self, share: float) -> float:
        """Duration that this share of all does not exceed, in seconds; NaN without any."""
        wanted, total = share * self.count, 0
        for place, count in enumerate(self._counts):
            total += count
            if count and total >= wanted:
                return float(_SHORTEST * 10 ** ((place + 0.5) / _BINS_PER_DECADE))
        return math.nan
