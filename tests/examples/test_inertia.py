"""The closed forms of the example on inertia, and that it says and draws them."""

import importlib.util
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from scipy.linalg import eigh

FILE = Path(__file__).parents[2] / "examples" / "inertia.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("example_inertia", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_agents_return_over_critically_and_underdamped(example):
    """Against ``r'' + c r' + omega^2 r = 0``, whose roots are real, double and complex."""
    dt, num = 0.02, 600
    frictions, times = list(example.DAMPING.values()), 0.02 * np.arange(1, 601)
    found = example.damped(frictions, num, dt)
    # Second order: the error is of size (omega dt)^2 = 7e-4, and four times that at friction 5.
    np.testing.assert_allclose(found, example.damped_exact(frictions, times), rtol=0, atol=2e-3)
    # The closed form itself, by its differential equation: central differences.
    for c, r in zip(frictions, example.damped_exact(frictions, times), strict=True):
        slope, bend = np.gradient(r, dt)[2:-2], ((r[2:] - 2 * r[1:-1] + r[:-2]) / dt**2)[1:-1]
        np.testing.assert_allclose(bend + c * slope + 5 / 3 * r[2:-2], 0.0, rtol=0, atol=1e-2)
    under, critical, over = found
    assert under.min() < -0.4
    assert critical.min() > 0
    # The critical one is there first.
    assert over[-1] > 10 * critical[-1]


@pytest.mark.slow
def test_a_push_reaches_the_third_of_a_chain_and_no_momentum_is_lost(example):
    """Against normal modes by an eigendecomposition of masses and springs."""
    dt, num = 0.02, 600
    momenta = example.transfer(3, 4.0, num, dt)
    mass = 4.0 * np.diag([1.5, 3.0, 1.5])
    spring = 4.0 * 1.5 * np.array([[1.0, -1, 0], [-1, 2, -1], [0, -1, 1]])
    squares, modes = eigh(spring, mass)
    times = dt * np.arange(1, num + 1)
    waves = np.cos(np.sqrt(np.abs(squares)) * times[:, None])
    exact = np.einsum("ij,tj,j->ti", mass @ modes, waves, modes[0])
    # The error is of size (dt omega)^2 t / 24.
    np.testing.assert_allclose(momenta, exact, rtol=0, atol=1e-3)
    np.testing.assert_allclose(example.transfer_exact(3, times), exact, rtol=0, atol=1e-12)
    np.testing.assert_allclose(momenta.sum(axis=1), 1.0, rtol=1e-7)
    assert momenta[:, 2].max() > 0.7


@pytest.mark.slow
def test_everything_is_its_closed_form_and_drawn(example, tmp_path, capsys):
    rows = example.main(num_steps=600, out=tmp_path)
    for name, (found, exact) in rows.items():
        np.testing.assert_allclose(found, exact, rtol=0, atol=2e-3, err_msg=name)
    distances, _ = rows["stopping distance"]
    # Four times as precise, four times as heavy: a quarter of the way.
    np.testing.assert_allclose(distances[:-1] / distances[1:], 4.0, rtol=1e-3)
    amplitudes, _ = rows["resonance"]
    assert amplitudes.max() > 2 * amplitudes[0]
    printed = capsys.readouterr().out
    assert "resonance near 1.20" in printed
    picture = matplotlib.image.imread(tmp_path / "inertia.png")
    assert np.ptp(picture[..., :3]) > 0.5
