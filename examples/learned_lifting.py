"""Observables that are learned: the spectrum of a process that is seen on a curved scale.

The process ``x' = a x + noise`` has the Koopman eigenvalues a, a^2, a^3, ... and Hermite
polynomials of x as eigenfunctions. Only ``y = tanh x`` is seen. A perceptron learns three
observables of y by their VAMP-2 score, from a start at which they are nearly constant. A linear map
of them is fitted by least squares on rows that it was not trained on; its eigenvalues are compared
with the truth, and with those of as many polynomials of y.

    python examples/learned_lifting.py
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vfejax.figures.style import BLUE, GREY, ORANGE, new_figure, style_axes
from vfejax.koopman import operators, streaming
from vfejax.models.lifting import LiftingConfig, lifting, loss

RATE = 0.9
CONFIG = LiftingConfig(observables=3, hidden=32)
TRUTH = RATE ** np.arange(1, CONFIG.observables + 1)


def observe(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """A trajectory of y, ``[num_samples, 1]``."""
    pushes = np.sqrt(1.0 - RATE**2) * rng.normal(size=num_samples)
    x = np.empty(num_samples)
    state = rng.normal()
    for step, push in enumerate(pushes):
        x[step] = state
        state = RATE * state + push
    return np.tanh(x).astype(np.float32)[:, None]


def train(y: jax.Array, num_updates: int, seed: int = 0):
    """The observables as a function, and their score before every update. The last layer starts a
    hundred times too small.
    """
    model = lifting(1, CONFIG)
    params = model.init(jax.random.key(seed))
    last = max(params["layers"])
    params["layers"][last] = jax.tree.map(lambda x: 0.01 * x, params["layers"][last])
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, num_updates))

    @jax.jit
    def fit(params):
        def update(carry, key):
            params, state = carry
            rows = jax.random.randint(key, (2048,), 0, len(y) - 1)
            value, gradient = jax.value_and_grad(loss, argnums=1)(
                model, params, y[rows], y[rows + 1]
            )
            change, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, change), state), -value

        keys = jax.random.split(jax.random.key(seed + 1), num_updates)
        (params, _), scores = jax.lax.scan(update, (params, optimizer.init(params)), keys)
        return params, scores

    params, scores = fit(params)
    return (lambda y: model.apply(params, y)), np.asarray(scores)


def eigenvalues(lift, y: jax.Array) -> np.ndarray:
    """Those of the map of centred observables, largest first."""
    z = lift(y)
    z = (z - jnp.mean(z, axis=0)) / jnp.std(z, axis=0)
    factor = streaming.update(streaming.init(z.shape[1]), z[:-1], z[1:])
    values = np.linalg.eigvals(np.asarray(operators.ridge(factor)))
    return values[np.argsort(-np.abs(values))]


def draw(scores: np.ndarray, found: dict):
    """The score over training, and eigenvalues beside the truth."""
    figure = new_figure(3.2)
    left, right = figure.subplots(1, 2)
    left.axhline(np.sum(TRUTH**2), color=GREY, linewidth=1.0)
    left.plot(scores, color=BLUE, linewidth=1.2)
    style_axes(left, xlabel="update", ylabel="VAMP-2 score of a batch")
    place = np.arange(len(TRUTH)) + 1
    right.plot(place, TRUTH, "o", color=GREY, markersize=11, fillstyle="none", label="truth")
    for name, colour in (("learned", BLUE), ("polynomials", ORANGE)):
        right.plot(place, np.real(found[name]), "o", color=colour, markersize=5, label=name)
    right.legend(frameon=False, fontsize=8.5)
    right.set_xticks(place)
    style_axes(right, xlabel="eigenvalue")
    return figure


def main(num_samples: int = 50_000, num_updates: int = 300, out: Path | None = None) -> dict:
    """Print eigenvalues beside the truth.

    Args:
        num_samples: rows of each of two trajectories: to learn observables, and to fit maps.
        num_updates: of the perceptron.
        out: folder of the picture.

    Returns:
        Eigenvalues by dictionary, and the scores under "scores".
    """
    rng = np.random.default_rng(0)
    seen, fresh = (jnp.asarray(observe(rng, num_samples)) for _ in range(2))
    learned, scores = train(seen, num_updates)
    powers = jnp.arange(1, CONFIG.observables + 1).astype(jnp.float32)
    found = {
        "learned": eigenvalues(learned, fresh),
        "polynomials": eigenvalues(lambda y: y ** powers[None, :], fresh),
    }
    print(f"score {scores[0]:.4f} at the start, {np.mean(scores[-50:]):.4f} at the end; ", end="")
    print(f"that of the eigenfunctions is {np.sum(TRUTH**2):.4f}")
    print(f"{'truth':14s}{np.round(TRUTH, 3)}")
    for name, values in found.items():
        off = np.max(np.abs(values - TRUTH))
        print(f"{name:14s}{np.round(values, 3)}, off by at most {off:.3f}")
    if out is not None:
        draw(scores, found).savefig(out / "learned_lifting.png", dpi=100)
    return {**found, "scores": scores}


if __name__ == "__main__":
    main()
