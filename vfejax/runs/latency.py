"""Latencies in constant memory: counts by their logarithm, from which quantiles are read."""

import math

import numpy as np

__all__ = ["Latencies"]

_BINS_PER_DECADE = 100  # quantiles are right to 2.3 %
_DECADES = 12
_SHORTEST = 1e-7  # seconds


class Latencies:
    """Counts of durations between 0.1 microseconds and a day.

    >>> durations = Latencies()
    >>> for i in range(1, 101):
    ...     durations.add(i * 1e-3)
    >>> round(1e3 * durations.quantile(0.5)), durations.count, durations.longest
    (50, 100, 0.1)
    """

    def __init__(self) -> None:
        self.count = 0
        self.longest = math.nan  # seconds, exact
        self._counts = [0] * (_DECADES * _BINS_PER_DECADE)

    def add(self, seconds: float) -> None:
        """Count one more."""
        place = _BINS_PER_DECADE * math.log10(max(seconds, _SHORTEST) / _SHORTEST)
        self._counts[min(int(place), len(self._counts) - 1)] += 1
        self.count += 1
        if not seconds <= self.longest:
            self.longest = seconds

    def quantile(self, share: float) -> float:
        """Duration that this share of all does not exceed, in seconds; NaN without any."""
        wanted, total = share * self.count, 0
        for place, count in enumerate(self._counts):
            total += count
            if count and total >= wanted:
                middle = float(_SHORTEST * 10 ** ((place + 0.5) / _BINS_PER_DECADE))
                return min(middle, self.longest)
        return math.nan

    def share_below(self, seconds: float) -> float:
        """Share of all durations that are surely shorter than this one, to the width of a bin (2.3
        %); NaN without any.

        >>> durations = Latencies()
        >>> durations.add(0.002); durations.add(0.02)
        >>> durations.share_below(0.016)
        0.5
        """
        place = _BINS_PER_DECADE * math.log10(max(seconds, _SHORTEST) / _SHORTEST)
        return sum(self._counts[: int(place)]) / self.count if self.count else math.nan

    def histogram(self, per_decade: int = 20) -> tuple[np.ndarray, np.ndarray]:
        """Ends of bins ``[bins + 1]``, in seconds, and counts ``[bins]``, from the first bin that
        is not empty to the last one; both empty without any duration.

        Args:
            per_decade: bins between 1 and 10 ms, say; a divisor of 100.

        Raises:
            ValueError: when it is none.

        >>> durations = Latencies()
        >>> durations.add(0.002); durations.add(0.02)
        >>> edges, counts = durations.histogram(per_decade=1)
        >>> edges.round(4).tolist(), counts.tolist()
        ([0.001, 0.01, 0.1], [1, 1])
        """
        if per_decade < 1 or _BINS_PER_DECADE % per_decade:
            raise ValueError(f"per_decade must divide {_BINS_PER_DECADE}, got {per_decade}")
        counts = np.asarray(self._counts).reshape(_DECADES * per_decade, -1).sum(axis=1)
        filled = np.flatnonzero(counts)
        if not len(filled):
            return np.zeros(0), np.zeros(0, int)
        first, last = int(filled[0]), int(filled[-1])
        edges = _SHORTEST * 10 ** (np.arange(first, last + 2) / per_decade)
        return edges, counts[first : last + 1]
