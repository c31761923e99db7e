"""The study of periodic data: predictions are those of enumeration, statistics are those by hand,
and the whole runs.
"""

import importlib
import itertools
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "periodic_study"
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def load():
    """Import a file of the study by its name; the names are free again afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


def _enumerated(weights, tokens, hidden, num_symbols):
    """``p(x_i | visible)`` at the hidden places from the weights of all sequences."""
    result = np.full((*tokens.shape, num_symbols), np.nan)
    for row, (seen, mask) in enumerate(zip(tokens, hidden, strict=True)):
        fits = [(x, w) for x, w in weights.items() if np.all(np.array(x)[~mask] == seen[~mask])]
        for place in np.flatnonzero(mask):
            result[row, place] = np.bincount(
                [x[place] for x, _ in fits], [w for _, w in fits], num_symbols
            ) / sum(w for _, w in fits)
    return result


def _necklace_weight(x, period, num_symbols, noise):
    """The sum over all patterns of the product of their errors."""
    total = 0.0
    for beads in itertools.product(range(num_symbols), repeat=period):
        errors = sum(symbol != beads[i % period] for i, symbol in enumerate(x))
        total += (noise / (num_symbols - 1)) ** errors * (1 - noise) ** (len(x) - errors)
    return total


def _every_mask(length):
    return np.array(list(itertools.product([False, True], repeat=length)))


@pytest.mark.parametrize("kind", ["necklace", "seam", "ring", "open"])
def test_predictions_are_those_of_enumeration(load, rng, kind):
    tasks = load("tasks")
    length, num_symbols = 5, 3
    if kind in ("necklace", "seam"):
        length, period = {"necklace": (4, 2), "seam": (5, 2)}[kind]
        task = tasks.necklace("", length, period, num_symbols, 0.3)
        weight = lambda x, matrix: _necklace_weight(x, period, num_symbols, 0.3)  # noqa: E731
    elif kind == "ring":
        task = tasks.ring_field("", length, num_symbols)
        weight = lambda x, matrix: np.prod([matrix[x[i - 1], x[i]] for i in range(length)])  # noqa: E731
    else:
        task = tasks.open_chain("", length, num_symbols)

        def weight(x, matrix):
            values, vectors = np.linalg.eig(matrix.T)
            first = np.real(vectors[:, np.argmax(np.real(values))])
            steps = [matrix[x[i - 1], x[i]] for i in range(1, length)]
            return first[x[0]] / first.sum() * np.prod(steps)

    matrix = task.parameters(rng)
    weights = {x: weight(x, matrix) for x in itertools.product(range(num_symbols), repeat=length)}
    hidden = _every_mask(length)
    tokens = task.sample(rng, matrix, len(hidden))
    found = task.predict(tokens, hidden, matrix)
    # Probabilities, from sums of a few hundred terms of one sign.
    np.testing.assert_allclose(
        found[hidden], _enumerated(weights, tokens, hidden, num_symbols)[hidden], rtol=0, atol=1e-12
    )
    drawn = task.sample(rng, matrix, 20_000)
    counts = np.zeros((num_symbols,) * length)
    np.add.at(counts, tuple(drawn.T), 1)
    share = np.array(list(weights.values())) / sum(weights.values())
    # Chi square over the cells expected at least five times: mean 1, and 1.5 is beyond six standard
    # deviations of 81 cells or more.
    expected = share * len(drawn)
    often = expected > 5
    chi = (counts.ravel() - expected)[often] ** 2 / expected[often]
    assert np.mean(chi) < 2.0
    assert np.sum(often) > 20


def test_resamples_are_all_of_them(load, rng):
    analysis = load("analysis")
    differences = rng.standard_normal(4) + 0.5
    mean, error = differences.mean(), differences.std(ddof=1) / 2
    sizes = []
    for drawn in itertools.product(differences, repeat=4):
        spread = np.std(drawn, ddof=1) / 2
        flat = len(set(drawn)) == 1
        sizes.append(np.inf if flat else abs(np.mean(drawn) - mean) / spread)
    found = analysis.bootstrap(differences)
    # Rounding can move a resample across t itself: the sample and its 24 orders are among them.
    p_value = np.mean(np.array(sizes) >= abs(mean) / error * (1 - 1e-9))
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.p_value, p_value, rtol=1e-12)
    # 243.2 of 256 resamples: the 244th.
    np.testing.assert_allclose(found.half_width, np.sort(sizes)[243] * error, rtol=1e-9)


def test_bootstrap_of_two_seeds_by_hand(load):
    analysis = load("analysis")
    # Half of the resamples are one seed twice, without spread; the others are the sample, t* = 0.
    assert analysis.bootstrap(np.array([1.0, 3.0])) == (2.0, np.inf, 0.5)
    assert analysis.bootstrap(np.array([2.0, 2.0])) == (2.0, 0.0, 0.0)
    assert np.all(np.isnan(analysis.bootstrap(np.array([1.0, np.nan]))))
    with pytest.raises(ValueError, match="2 to 10 seeds, got 1"):
        analysis.bootstrap(np.ones(1))


def test_holm_by_hand(load):
    # 3 x 0.01; 2 x 0.03; 0.04 stays behind the one before it; and never above 1.
    found = load("analysis").holm([0.01, 0.04, 0.03])
    np.testing.assert_allclose(found, [0.03, 0.06, 0.06], rtol=1e-12)
    np.testing.assert_allclose(load("analysis").holm([0.7, 0.6]), [1.0, 1.0])


def test_arms_are_equal_in_size(load):
    arms = load("arms")
    sizes = [
        arms.num_parameters(jax.eval_shape(partial(arms.init, arm=arm, num_symbols=6), KEY))
        for arm in arms.ARMS.values()
    ]
    assert max(sizes) == 25_000
    assert min(sizes) > 0.99 * max(sizes)


def test_comparisons_name_what_is_there(load):
    analysis, arms, tasks = load("analysis"), load("arms"), load("tasks")
    for row in analysis.COMPARISONS:
        assert row.task in tasks.TASKS
        assert {row.arm, row.other} <= {*arms.ARMS, analysis.STRONGEST}
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in page for name in (*arms.ARMS, *tasks.TASKS))


@pytest.mark.usefixtures("library_promotion")
def test_axial_platters_without_fusion_are_heads_and_follow_the_ring(load):
    arms = load("arms")
    plain = arms.ARMS["toroidal"]
    params = arms.init(KEY, plain, 6)
    tokens = jax.random.randint(KEY, (2, arms.LENGTH), 0, 7)
    axial = plain._replace(attention=arms.axial_attention, depth=4)
    logits = jax.jit(lambda *x: (arms.apply(x[0], plain, x[1]), arms.apply(x[0], axial, x[1])))
    straight, platters = logits(params, tokens)
    # float32 through two blocks: sums of 64 terms of order 1.
    np.testing.assert_allclose(platters, straight, rtol=0, atol=1e-4)
    rolled, _ = logits(params, jnp.roll(tokens, 5, axis=1))
    np.testing.assert_allclose(rolled, jnp.roll(straight, 5, axis=1), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("library_promotion")
def test_quick_run_goes_on_after_a_stop_and_shows_all_arms(load, tmp_path, capsys):
    run, arms, tasks = load("run"), load("arms"), load("tasks")
    cells = run.main(["--quick", "--out", str(tmp_path)])
    assert len(cells) == 2 * len(arms.ARMS) * len(tasks.TASKS)
    assert all(np.min(cell["excess"]) > 0 for cell in cells)  # nothing beats the optimum
    table = (tmp_path / "table.md").read_text()
    assert "missing" not in table
    assert all(f"| {arm} |" in table for arm in arms.ARMS)
    assert np.ptp(matplotlib.image.imread(tmp_path / "periodic_study.png")[..., :3]) > 0.5
    # Stopped in the middle of the last line: that cell alone is made again, and is the same.
    path = tmp_path / "cells.jsonl"
    path.write_text(path.read_text()[:-40])
    capsys.readouterr()
    again = run.main(["--quick", "--out", str(tmp_path)])
    assert capsys.readouterr().out.count(" nats ") == 1
    assert [c["excess"] for c in again] == [c["excess"] for c in cells]
    with pytest.raises(ValueError, match="other settings"):
        run.read_cells(path, run.Settings())
