"""The filtering study: its references, and the form of its tables."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "filtering_study"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("filtering_study", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_derivatives_of_the_bump_are_those_of_its_polynomials(study):
    path = study.bump_path(30)[..., 0]
    times = np.arange(30.0)
    np.testing.assert_allclose(path[:, 0], np.exp(-((times - 12) ** 2) / 4), rtol=1e-12)
    np.testing.assert_allclose(path[:, 1], -(times - 12) / 2 * path[:, 0], rtol=0, atol=1e-12)
    expected = ((times - 12) ** 2 / 4 - 0.5) * path[:, 0]
    np.testing.assert_allclose(path[:, 2], expected, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_tables_name_every_smoothness(study):
    text = study.table("title", {"method": np.ones((len(study.SMOOTHNESS), 3))})
    assert text.count("1.0000 ± 0.0000") == len(study.SMOOTHNESS)
    with pytest.raises(SystemExit):
        study.main(["--seeds", "1"])
