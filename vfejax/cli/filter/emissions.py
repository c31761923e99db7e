"""What the states of a hidden Markov model emit: one Gaussian per state and series, or symbols."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vfejax.cli.filter.linear import Data
from vfejax.data.series import Series
from vfejax.errors import UserError
from vfejax.inference.chains import hidden_markov
from vfejax.inference.chains.hidden_markov import HiddenMarkov
from vfejax.types import Array

__all__ = ["GaussianStates", "Symbols", "begin", "check", "check_symbols"]

# A standard deviation is not learned below this share of that of the whole series: the likelihood
# has no bound where a state takes a single value.
SMALLEST = 0.01


class GaussianStates(NamedTuple):
    """A hidden Markov model whose series are independent and normal in each state.

    Attributes:
        initial: probabilities of the first state, ``[k]``.
        transition: ``[k, k]``, columns sum to 1: entry ``[j, i]`` leads from i to j.
        means: ``[k, o]``, in the units of the series.
        stds: ``[k, o]``.
    """

    initial: Array
    transition: Array
    means: Array
    stds: Array

    @property
    def chain(self) -> HiddenMarkov:
        """The chain of the states."""
        return HiddenMarkov(self.initial, self.transition)

    def log_likelihood(self, values: Array, mask: Array) -> Array:
        """Log density of each row in each state, ``[t, k]``, in nats, without missing entries."""
        off = (values[:, None] - self.means[None]) / self.stds[None]
        each = -0.5 * off**2 - jnp.log(self.stds)[None] - 0.5 * math.log(2 * math.pi)
        return jnp.sum(jnp.where(mask[:, None], each, 0.0), axis=-1)

    def learned(self, data: Data, chances: Array, least: Array) -> "GaussianStates":
        """Means and standard deviations that maximise the expected log likelihood.

        Args:
            data: the observations.
            chances: probabilities of the states ``[t, k]``.
            least: smallest standard deviation of each series ``[o]``.
        """
        seen = data.mask.astype(chances.dtype)
        weight = chances.T @ seen
        empty = weight <= 1e-8
        safe = jnp.where(empty, 1.0, weight)
        means = jnp.where(empty, self.means, chances.T @ (seen * data.values) / safe)
        square = (data.values[:, None] - means[None]) ** 2
        variance = jnp.einsum("tk,to,tko->ko", chances, seen, square) / safe
        stds = jnp.maximum(jnp.sqrt(variance), least[None])
        return self._replace(means=means, stds=jnp.where(empty, self.stds, stds))

    def centres(self) -> np.ndarray:
        """Mean of each series in each state, ``[k, o]``."""
        return np.asarray(self.means)

    def cumulative(self, values: np.ndarray) -> np.ndarray:
        """Probability of at most each of ``values [rows, o]`` in each state, ``[rows, k, o]``."""
        from jax.scipy.special import ndtr

        off = (values[:, None] - np.asarray(self.means)) / np.asarray(self.stds)
        return np.asarray(ndtr(off))

    def middle(self, values: np.ndarray) -> np.ndarray:
        """As :meth:`cumulative`; of what is discrete, the middle of the jump."""
        return self.cumulative(values)

    def bracket(self) -> tuple[np.ndarray, np.ndarray]:
        """Values that all series lie between, ``[o]`` each."""
        means, reach = np.asarray(self.means), 40.0 * np.asarray(self.stds)
        return (means - reach).min(axis=0), (means + reach).max(axis=0)


class Symbols(NamedTuple):
    """A hidden Markov model of one series of symbols 0, 1, ...

    Attributes:
        initial: probabilities of the first state, ``[k]``.
        transition: ``[k, k]``, columns sum to 1: entry ``[j, i]`` leads from i to j.
        emission: probabilities of the symbols ``[m, k]``, columns sum to 1.
    """

    initial: Array
    transition: Array
    emission: Array

    @property
    def chain(self) -> HiddenMarkov:
        """The chain of the states."""
        return HiddenMarkov(self.initial, self.transition)

    def log_likelihood(self, values: Array, mask: Array) -> Array:
        """Log probability of each row in each state, ``[t, k]``, in nats."""
        model = HiddenMarkov(self.initial, self.transition, self.emission)
        return hidden_markov.log_likelihoods(model, values[:, 0].astype(int), mask[:, 0])

    def learned(self, data: Data, chances: Array, least: Array) -> "Symbols":
        """Emission that maximises the expected log likelihood.

        Args:
            data: the observations.
            chances: probabilities of the states ``[t, k]``.
            least: not read; the emissions of all models take the same arguments.
        """
        symbols = jnp.arange(self.emission.shape[0])
        hits = (data.values[:, :1].astype(int) == symbols[None]) & data.mask[:, :1]
        counts = hits.astype(chances.dtype).T @ chances
        total = jnp.sum(counts, axis=0, keepdims=True)
        empty = jnp.broadcast_to(total <= 1e-8, counts.shape)
        fresh = counts / jnp.where(total <= 1e-8, 1.0, total)
        return self._replace(emission=jnp.where(empty, self.emission, fresh))

    def centres(self) -> np.ndarray:
        """Mean symbol of each state, ``[k, 1]``."""
        emission = np.asarray(self.emission)
        return (np.arange(len(emission)) @ emission)[:, None]

    def cumulative(self, values: np.ndarray) -> np.ndarray:
        """Probability of at most each of ``values [rows, 1]`` in each state, ``[rows, k, 1]``."""
        below = np.concatenate([np.zeros((1, self.emission.shape[1])), self.emission]).cumsum(0)
        place = np.clip(np.floor(np.nan_to_num(values[:, 0])) + 1, 0, len(below) - 1)
        return below[place.astype(int)][..., None]

    def middle(self, values: np.ndarray) -> np.ndarray:
        """As :meth:`cumulative`, in the middle of the jump."""
        return 0.5 * (self.cumulative(values) + self.cumulative(values - 1))

    def bracket(self) -> tuple[np.ndarray, np.ndarray]:
        """Values that all symbols lie between, ``[1]`` each."""
        return np.array([-1e-6]), np.array([self.emission.shape[0] - 1.0])


def begin(num_states: int, names: tuple[str, ...], values: np.ndarray, seed: int) -> GaussianStates:
    """Where learning begins: rows in clusters, and states that last ten rows.

    Args:
        num_states: k.
        names: of the series.
        values: rows ``[t, o]``, NaN where missing.
        seed: of the first centres.

    Raises:
        UserError: when a series is constant, or rows do not differ enough.
    """
    mean, std = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    for name, spread in zip(names, std, strict=True):
        if not spread > 0:
            raise UserError(f"column '{name}' is constant; leave it out with --columns")
    rows = np.nan_to_num((values - mean) / std)
    if len(np.unique(rows, axis=0)) < num_states:
        raise UserError(f"--states {num_states}: there are fewer rows that differ; give fewer")
    centres, labels = _clusters(rows, num_states, np.random.default_rng(seed))
    order = np.argsort(centres[:, 0], kind="stable")
    spread = np.stack([np.std(rows[labels == k], axis=0) for k in order])
    stay = 0.9 if num_states > 1 else 1.0
    other = (1 - stay) / max(num_states - 1, 1)
    transition = np.full((num_states, num_states), other) + (stay - other) * np.eye(num_states)
    return GaussianStates(
        jnp.full(num_states, 1.0 / num_states),
        jnp.asarray(transition),
        jnp.asarray(mean + std * centres[order]),
        jnp.asarray(std * np.maximum(spread, 0.1)),
    )


def _clusters(
    rows: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Centres and labels by Lloyd's algorithm, from centres far apart."""
    centres = rows[rng.integers(len(rows))][None]
    for _ in range(count - 1):
        distance = np.min(np.sum((rows[:, None] - centres) ** 2, axis=-1), axis=1)
        chosen = rng.choice(len(rows), p=distance / distance.sum())
        centres = np.concatenate([centres, rows[chosen][None]])
    for _ in range(20):
        labels = np.argmin(np.sum((rows[:, None] - centres) ** 2, axis=-1), axis=1)
        centres = np.stack(
            [
                rows[labels == k].mean(axis=0) if np.any(labels == k) else centre
                for k, centre in enumerate(centres)
            ]
        )
    labels = np.argmin(np.sum((rows[:, None] - centres) ** 2, axis=-1), axis=1)
    labels[[int(np.argmin(np.sum((rows - c) ** 2, axis=-1))) for c in centres]] = range(count)
    return centres, labels


def check(model: GaussianStates | Symbols) -> None:
    """Refuse values that cannot be right.

    Raises:
        ValueError: naming the field and the entry or the column.
    """
    fields = model._asdict()
    hidden_markov.check_model(HiddenMarkov(model.initial, model.transition, fields.get("emission")))
    if "stds" in fields and not np.all(np.asarray(fields["stds"]) > 0):
        stds = np.asarray(fields["stds"])
        place = np.argwhere(~(stds > 0))[0]
        raise ValueError(f"stds must be positive; entry {place.tolist()} is {stds[tuple(place)]:g}")


def check_symbols(model: Symbols, series: Series) -> None:
    """Refuse rows that are no symbols of the model.

    Raises:
        UserError: naming the line.
    """
    count, values = model.emission.shape[0], series.values
    known = ~np.isnan(values[:, 0])
    fits = (values[:, 0] == np.floor(values[:, 0])) & (values[:, 0] >= 0) & (values[:, 0] < count)
    bad = known & ~fits
    if np.any(bad):
        row = int(np.argmax(bad))
        raise UserError(
            f"line {series.lines[row]}, column '{series.names[0]}': {values[row, 0]:g} is no "
            f"symbol of the model; they are 0 to {count - 1}"
        )
