"""Series with a known spectrum: what is refused. Spectra are found in ``tests/cli/filter``."""

import numpy as np
import pytest

from vfejax.problems.oscillations import simulate


def test_every_oscillator_has_a_period_and_a_decay(rng):
    found = simulate(rng, 3, periods=(12.0,), decays=(50.0,))
    expected = np.exp(-1 / 50 + 2j * np.pi / 12)
    np.testing.assert_allclose(found.eigenvalues, [expected], rtol=1e-15, atol=0)
    with pytest.raises(ValueError, match="one of each for every oscillator, got 1 and 2"):
        simulate(rng, 3, periods=(12.0,))
