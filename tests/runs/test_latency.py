"""Latencies in constant memory."""

import numpy as np
import pytest

from vfejax.runs.latency import Latencies


def test_quantiles_of_latencies_are_right_to_their_bins(rng):
    durations = np.exp(rng.normal(-7, 1, 2000))
    found = Latencies()
    for duration in durations:
        found.add(float(duration))
    for share in (0.5, 0.99):
        exact = np.quantile(durations, share, method="inverted_cdf")
        assert found.quantile(share) == pytest.approx(exact, rel=0.024)
        assert found.share_below(0.97 * exact) <= share <= found.share_below(1.03 * exact)
    assert found.longest == found.quantile(1.0) == durations.max()
    assert np.isnan(Latencies().quantile(0.5))
    assert np.isnan(Latencies().share_below(0.5))


def test_a_histogram_counts_every_duration_between_its_ends(rng):
    durations = np.exp(rng.normal(-7, 1, 500))
    found = Latencies()
    for duration in durations:
        found.add(float(duration))
    edges, counts = found.histogram()
    np.testing.assert_array_equal(counts, np.histogram(durations, edges)[0])
    assert counts.sum() == 500
    assert counts[0] > 0
    assert counts[-1] > 0
    assert [len(x) for x in Latencies().histogram()] == [0, 0]
    with pytest.raises(ValueError, match="per_decade must divide 100, got 30"):
        found.histogram(30)
