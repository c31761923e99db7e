"""The examples of equilibrium propagation: agents that learn their noise, a network that reads
digits.
"""

import importlib.util
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("library_promotion")]
EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name, folder, **settings):
    """What the example returns, in float32 as a reader runs it; its picture is not blank."""
    with jax.enable_x64(False):
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = module.main(out=folder, **settings)
    assert np.ptp(matplotlib.image.imread(folder / f"{name}.png")[..., :3]) > 0.5
    return module, found


def test_nudged_agents_learn_how_noisy_their_senses_are(tmp_path, capsys):
    module, (learned, slopes, errors) = run(
        "nudged_agents", tmp_path, num_updates=60, num_scenes=16
    )
    assert "all relaxations converged: True" in capsys.readouterr().out
    # beta^2 of the estimator, and differences of float32 costs: parts of a slope of order 0.1.
    np.testing.assert_allclose(slopes[0], slopes[1], rtol=0, atol=0.01)
    assert (np.diff(learned) > 0).all()
    assert np.abs(np.log(learned / module.TRUE_STD)).max() < 0.5
    assert errors["learned"] < 0.8 * errors["all alike"]
    assert errors["learned"] < 1.1 * errors["best estimate"]


def test_a_network_learns_digits_from_nudges(tmp_path):
    _, (curves, best) = run("equilibrium_propagation", tmp_path, num_images=600, num_epochs=6)
    assert best > 0.97
    # A tenth would be chance.
    assert min(curve[-1] for curve in curves.values()) > 0.2
    assert curves["equilibrium propagation"][-1] > 0.3
