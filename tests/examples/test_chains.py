"""The examples of chains: their intervals hold, and learning finds what the truth would give."""

import importlib.util
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_casino_rolls_follow_the_model():
    example = load("hidden_markov")
    model = example.true_model()
    example.hidden_markov.check_model(model)
    dice, rolls = example.simulate(np.random.default_rng(0), model, 3000)
    seen = np.bincount(rolls[dice == 0], minlength=6) / np.sum(dice == 0)
    # Some 1500 rolls of the fair die: 1 % of standard error; four of these.
    np.testing.assert_allclose(seen, 1 / 6, rtol=0, atol=0.04)
    assert np.mean(dice[1:] != dice[:-1]) < 0.06


def test_simulated_motion_has_the_moments_of_the_model():
    example = load("linear_state_space")
    model = example.true_model()
    states, y, mask = example.simulate(np.random.default_rng(0), model, 4000)
    residual = states[1:] - states[:-1] @ model.transition.T
    noise = (y - states @ model.emission.T).T
    # 4000 draws: variances to 2.2 % each; five of these.
    np.testing.assert_allclose(np.cov(residual.T), model.transition_cov, rtol=0, atol=0.022)
    np.testing.assert_allclose(np.cov(noise), model.emission_cov, rtol=0, atol=0.06)
    assert abs(mask.mean() - 0.8) < 0.02


@pytest.mark.slow
@pytest.mark.usefixtures("library_promotion")
def test_linear_state_space(capsys):
    rows = load("linear_state_space").main(num_steps=600, num_em=30)
    errors = [error for error, _ in list(rows.values())[:3]]
    assert errors[1] < errors[0] < errors[2]
    for _, coverage in list(rows.values())[:3]:
        # Some hundred independent numbers: 3 %, two and a half of these.
        assert abs(coverage - 0.9) < 0.075
    truth, start, *learned = rows["log evidence"]
    for found in learned:
        assert start + 100 < found < truth
        # Some 60 numbers learned from 300 steps.
        assert truth - found < 60
    assert "in 90 % interval" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("library_promotion")
def test_hidden_markov(capsys):
    found = load("hidden_markov").main(num_rolls=1500, num_em=60, num_starts=3)
    assert found["smoother"] > found["filter"]
    # No method names more dice on average than the smoother.
    assert found["smoother"] > found["most probable path"] - 0.02
    assert abs(found["smoother"] - found["expected"]) < 0.04
    # It fits these rolls better than what made them, by about half of its 21 free numbers.
    assert -30 < found["learned"] - found["truth"] < 40
    assert "learned" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("library_promotion")
def test_image_denoising(tmp_path, capsys):
    rows = load("image_denoising").main(100, 150, tmp_path)
    for errors in rows.values():
        assert errors["Ising"] < min(x for name, x in errors.items() if name != "Ising")
    assert "Ising" in capsys.readouterr().out
    picture = matplotlib.image.imread(tmp_path / "image_denoising.png")
    assert np.ptp(picture[..., :3]) > 0.5
