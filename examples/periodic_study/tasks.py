"""Four sources of sequences, each with its exact predictions of hidden symbols.

A task draws sequences of N symbols out of V, hides some, and asks for each hidden one. What the
visible ones say about it is known in closed form:

- a *noisy necklace* repeats a uniform pattern of p symbols; every symbol that is seen is, with
  probability ``noise``, another one. Copies of one bead are independent given the bead, so that
  their counts ``c`` give the posterior ``p(z) ~ prod_v p(v | z)^(c_v)`` and the prediction ``sum_z
  p(z) p(v | z)``. Position i belongs to bead ``i mod p``. If p divides N, distances round the ring
  know the bead; else they do not across the seam between N - 1 and 0.
- a *ring field* is ``p(x) ~ prod_i P(x_i, x_(i+1 mod N))``. With transfer matrices, a hidden symbol
  a steps after its nearest visible neighbour l and b steps before r has ``p(v) ~ (P^a)_lv
  (P^b)_vr``, both ways round the ring.
- an *open chain* has the same P without the bond from N - 1 to 0, and starts in equilibrium.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

__all__ = ["TASKS", "Task", "necklace", "open_chain", "ring_field", "transitions"]


class Task(NamedTuple):
    """A source of sequences.

    Attributes:
        title: what it is, for tables.
        length: N, places.
        num_symbols: V.
        parameters: ``parameters(rng) -> array``, what distinguishes one world from another.
        sample: ``sample(rng, parameters, num) -> tokens [num, N]``.
        predict: ``predict(tokens [num, N], hidden [num, N], parameters) -> [num, N, V]``, exact
            probabilities of the symbol at every hidden place given all visible ones; other rows
            mean nothing.
    """

    title: str
    length: int
    num_symbols: int
    parameters: Callable[[np.random.Generator], np.ndarray]
    sample: Callable[[np.random.Generator, np.ndarray, int], np.ndarray]
    predict: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _draw(rng: np.random.Generator, probabilities: np.ndarray) -> np.ndarray:
    """One symbol from each row of ``[n, V]``."""
    steps = np.cumsum(probabilities, axis=-1)
    uniform = rng.random((*probabilities.shape[:-1], 1)) * steps[..., -1:]
    return np.sum(uniform >= steps[..., :-1], axis=-1)


def necklace(title: str, length: int, period: int, num_symbols: int, noise: float) -> Task:
    """A pattern of ``period`` independent uniform beads, seen with errors."""
    errors = np.full((num_symbols, num_symbols), noise / (num_symbols - 1))
    channel = errors + np.diag(np.full(num_symbols, 1 - noise) - errors[0, 0])
    bead = np.arange(length) % period
    same = (bead[:, None] == bead[None, :]).astype(float)

    def sample(rng: np.random.Generator, parameters: np.ndarray, num: int) -> np.ndarray:
        beads = rng.integers(num_symbols, size=(num, period))
        return _draw(rng, channel[beads[:, bead]])

    def predict(tokens: np.ndarray, hidden: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        seen = np.eye(num_symbols)[tokens] * ~hidden[..., None]
        counts = np.einsum("ij,bjv->biv", same, seen)
        logits = counts @ np.log(channel).T
        posterior = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return posterior / posterior.sum(axis=-1, keepdims=True) @ channel

    return Task(title, length, num_symbols, lambda rng: np.zeros(0), sample, predict)


def transitions(
    num_symbols: int, spread: float = 2.0
) -> Callable[[np.random.Generator], np.ndarray]:
    """Random transition matrices ``P ~ exp(spread normal)``, rows summing to 1; not symmetric."""

    def parameters(rng: np.random.Generator) -> np.ndarray:
        weights = np.exp(spread * rng.standard_normal((num_symbols, num_symbols)))
        return weights / weights.sum(axis=1, keepdims=True)

    return parameters


def _powers(matrix: np.ndarray, length: int) -> np.ndarray:
    """``P^0`` to ``P^N``, ``[N + 1, V, V]``."""
    powers = [np.eye(len(matrix))]
    for _ in range(length):
        powers.append(powers[-1] @ matrix)
    return np.array(powers)


def _equilibrium(matrix: np.ndarray) -> np.ndarray:
    """The distribution that P leaves alone."""
    size = len(matrix)
    system = np.vstack([matrix.T - np.eye(size), np.ones(size)])
    return np.linalg.lstsq(system, np.eye(size + 1)[-1], rcond=None)[0]


def _normalised(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum(axis=-1, keepdims=True)


def _steps_to_visible(hidden: np.ndarray) -> np.ndarray:
    """Steps from every place back to the nearest visible one before it, round the ring; N + 1 where
    there is none.
    """
    length = hidden.shape[1]
    back = np.arange(1, length + 1)
    places = (np.arange(length)[:, None] - back[None, :]) % length
    visible = ~hidden[:, places]
    return np.where(visible.any(axis=-1), 1 + visible.argmax(axis=-1), length + 1)


def ring_field(title: str, length: int, num_symbols: int) -> Task:
    """A Markov field on a ring: every bond alike, the one from the last place to the first too."""

    def sample(rng: np.random.Generator, matrix: np.ndarray, num: int) -> np.ndarray:
        powers = _powers(matrix, length)
        first = _draw(rng, np.tile(np.diag(powers[length]), (num, 1)))
        tokens = [first]
        for place in range(1, length):
            # What may come next, and how it can still close the ring.
            closing = powers[length - place][:, first].T
            tokens.append(_draw(rng, matrix[tokens[-1]] * closing))
        return np.stack(tokens, axis=1)

    def predict(tokens: np.ndarray, hidden: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        powers = _powers(matrix, length)
        place = np.arange(length)[None]
        before = _steps_to_visible(hidden)
        after = _steps_to_visible(hidden[:, ::-1])[:, ::-1]
        nothing = before > length
        before, after = np.where(nothing, 0, before), np.where(nothing, 0, after)
        left = np.take_along_axis(tokens, (place - before) % length, axis=1)
        right = np.take_along_axis(tokens, (place + after) % length, axis=1)
        joint = powers[before, left] * powers[after, :, right]
        free = np.diag(powers[length])
        return _normalised(np.where(nothing[..., None], free, joint))

    return Task(title, length, num_symbols, transitions(num_symbols), sample, predict)


def open_chain(title: str, length: int, num_symbols: int) -> Task:
    """A Markov chain in equilibrium, without a bond between its ends."""

    def sample(rng: np.random.Generator, matrix: np.ndarray, num: int) -> np.ndarray:
        tokens = [_draw(rng, np.tile(_equilibrium(matrix), (num, 1)))]
        for _ in range(1, length):
            tokens.append(_draw(rng, matrix[tokens[-1]]))
        return np.stack(tokens, axis=1)

    def predict(tokens: np.ndarray, hidden: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        powers = _powers(matrix, length)
        place = np.arange(length)[None]
        before = _steps_to_visible(hidden)
        after = _steps_to_visible(hidden[:, ::-1])[:, ::-1]
        no_left, no_right = before > place, after > length - 1 - place
        before, after = np.where(no_left, 0, before), np.where(no_right, 0, after)
        left = np.take_along_axis(tokens, place - before, axis=1)
        right = np.take_along_axis(tokens, place + after, axis=1)
        from_left = np.where(no_left[..., None], _equilibrium(matrix), powers[before, left])
        from_right = np.where(no_right[..., None], 1.0, powers[after, :, right])
        return _normalised(from_left * from_right)

    return Task(title, length, num_symbols, transitions(num_symbols), sample, predict)


TASKS: dict[str, Task] = {
    "necklace": necklace("necklace, period 4 divides 16", 16, 4, 6, 0.2),
    "ring": ring_field("Markov field on a ring", 16, 6),
    "seam": necklace("necklace, period 5 does not divide 16", 16, 5, 6, 0.2),
    "open": open_chain("open Markov chain", 16, 6),
}
