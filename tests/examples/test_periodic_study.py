"""The study of periodic data: predictions are those of enumeration, statistics are those by hand,
and the whole runs.
"""

import importlib
import itertools
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "periodic_study"


@pytest.fixture(scope="module")
def load():
    """Import a file of the study by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module


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
        found[hidden], _enumerated(weights, tokens, hidden, num_symbols)[hidden], atol=1e-12
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
