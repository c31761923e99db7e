"""From populations to energies: a Rabi oscillation against its closed form, then an unknown
Hamiltonian learnt from counts.

A hidden real symmetric H, known states prepared with 2 % of depolarisation, several times, N shots
of each: all that is seen is how often each level was found. Adam descends the ``-log`` likelihood
along the exact gradient of ``evolve``. It starts at H = 0, where levels are equal and autodiff
through ``eigh`` would give NaN, and sees the early times first: seen all at once, the late ones
trap it in wrong minima.

What populations can tell. H plus a multiple of I has the same ones: the trace is set to 0. Basis
states leave signs open, ``D H D`` with ``D = diag(+-1)``; superpositions ``|j> + |k>`` tell them.
Real states do not tell H from -H, the same motion backwards; ``|j> + i |k>`` do.

How well. The shots hold the Fisher information ``I = N sum_settings sum_k grad p_k grad p_k^T /
p_k``, and no unbiased estimate has a covariance below ``I^-1`` (Cramer-Rao). Maximum likelihood
reaches it as N grows: the error e in its units, ``e^T I e`` per free parameter, then has mean 1
over repetitions.

    python examples/learn_hamiltonian.py

Source: Rabi, Phys. Rev. 51 (1937) 652; Cramer, Mathematical Methods of Statistics (1946), chapter
32.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vfejax.figures.style import BLUE, CURVES, GREY, INK, label_right, new_figure, style_axes
from vfejax.numerics import identity_like
from vfejax.quantum.channels import depolarize
from vfejax.quantum.density import populations, pure_state
from vfejax.quantum.evolution import evolve
from vfejax.quantum.hamiltonian import rabi, rabi_population, symmetric

DETUNINGS = (0.0, 1.0, 3.0)  # of the Rabi oscillation, in units of its frequency
DIM = 4
NUM_PARAMETERS = DIM * (DIM + 1) // 2  # the trace among them
TIMES = np.linspace(0.2, 1.6, 8)  # in inverse units of H
NOISE = 0.02  # depolarisation of what is prepared: no outcome has probability 0
LEARNING_RATE = 0.1


def outcomes(hamiltonian: jax.Array) -> jax.Array:
    """Probabilities ``[d^2, times, d]`` under ``hamiltonian [d, d]``, from basis states, real and
    complex superpositions of every pair.
    """
    basis, (j, k) = np.eye(DIM), np.triu_indices(DIM, 1)
    psi = np.concatenate(
        [basis, *((basis[j] + phase * basis[k]) / np.sqrt(2) for phase in (1, 1j))]
    )
    states = depolarize(pure_state(jnp.asarray(psi)), NOISE)
    return populations(evolve(states[:, None], hamiltonian, jnp.asarray(TIMES)))


def traceless(parameters: jax.Array) -> jax.Array:
    hamiltonian = symmetric(parameters)
    return hamiltonian - jnp.trace(hamiltonian) / DIM * identity_like(hamiltonian)


def learn(frequencies: jax.Array, num_steps: int) -> jax.Array:
    """H after every step, ``[steps, d, d]``, from ``frequencies [preparations, times, d]``."""
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, num_steps))

    def loss(parameters, weights):
        return -jnp.mean(weights[:, None] * frequencies * jnp.log(outcomes(traceless(parameters))))

    def step(carry, weights):
        parameters, state = carry
        updates, state = optimizer.update(jax.grad(loss)(parameters, weights), state)
        parameters = optax.apply_updates(parameters, updates)
        return (parameters, state), traceless(parameters)

    # The number of times seen grows to all of them at half the steps.
    reach = 1 + (len(TIMES) - 1) * np.linspace(0, 2, num_steps)
    weights = jnp.asarray(np.arange(len(TIMES)) < reach[:, None], frequencies.dtype)
    start = jnp.zeros(NUM_PARAMETERS, frequencies.dtype)
    return jax.lax.scan(step, (start, optimizer.init(start)), weights)[1]


def lookalikes(hidden: jax.Array) -> dict[str, tuple[float, float]]:
    """Largest difference of any population from those of -H and of D H D, as kinds of preparations
    are added.
    """
    signs = jnp.asarray((-1.0) ** np.arange(DIM), hidden.dtype)
    seen, *others = jax.vmap(outcomes)(
        jnp.stack([hidden, -hidden, jnp.outer(signs, signs) * hidden])
    )
    ends = {
        "basis states": DIM,
        "and real superpositions": NUM_PARAMETERS,
        "and complex ones": DIM**2,
    }
    return {
        name: tuple(float(jnp.max(jnp.abs(other - seen)[:end])) for other in others)
        for name, end in ends.items()
    }


def oscillations() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Times, and the population of level 1 at each detuning, ``[detunings, times]``: by ``evolve``,
    and by the formula.
    """
    times, detunings = jnp.linspace(0.0, 4 * jnp.pi, 161), jnp.asarray(DETUNINGS)[:, None]
    frequency = jnp.ones_like(detunings)
    states = evolve(pure_state(jnp.eye(2)[0]), rabi(frequency, detunings), times[None])
    return times, populations(states)[..., 1], rabi_population(frequency, detunings, times[None])


def learning_errors(
    rng: np.random.Generator, hidden: jax.Array, chances: np.ndarray, num_shots, num_runs, num_steps
) -> np.ndarray:
    """Errors of H after every step of learning from counts, ``[shots, runs, steps, entries]``."""
    counts = np.stack(
        [rng.multinomial(n, chances, (num_runs, *chances.shape[:2])) / n for n in num_shots]
    )
    learnt = jax.jit(jax.vmap(jax.vmap(lambda x: learn(x, num_steps))))(jnp.asarray(counts))
    return (np.asarray(learnt) - np.asarray(hidden))[..., *np.tril_indices(DIM)]


def fisher_information(parameters: jax.Array, chances: np.ndarray) -> np.ndarray:
    """``sum_settings sum_k grad p_k grad p_k^T / p_k`` of one shot per setting."""
    slopes_fn = jax.jit(jax.jacrev(lambda x: outcomes(traceless(x))))
    slopes = np.asarray(slopes_fn(parameters), np.float64)
    return np.einsum("ptka,ptkb->ab", slopes / chances[..., None], slopes)


def bound_quantiles(rng: np.random.Generator, information: np.ndarray) -> np.ndarray:
    """5, 50 and 95 % quantiles of the largest error of H by the Cramer-Rao bound, for one shot."""
    # The information is singular: populations say nothing of the trace.
    covariance = np.linalg.pinv(information, rcond=1e-6, hermitian=True)
    scatter = rng.multivariate_normal(np.zeros(NUM_PARAMETERS), covariance, 10_000)
    largest = np.max(np.abs(jax.vmap(traceless)(jnp.asarray(scatter))), axis=(1, 2))
    return np.quantile(largest, (0.05, 0.5, 0.95))


def draw(times: jax.Array, found: jax.Array, exact: jax.Array, rows: dict):
    figure = new_figure(7.0)
    axes = figure.subplot_mosaic("aa;bc")
    for points, curve, colour in zip(found, exact, CURVES, strict=False):
        axes["a"].plot(times, curve, color=colour, linewidth=1.4)
        axes["a"].plot(times[::4], points[::4], "o", color=colour, markersize=4)
    style_axes(
        axes["a"],
        xlabel="$\\Omega t$",
        ylabel="population of level 1",
        title="Rabi: curves by formula",
    )
    names = (f"$\\Delta$ = {detuning:g} $\\Omega$" for detuning in DETUNINGS)
    label_right(axes["a"], list(zip(names, exact[:, -1], CURVES, strict=False)))
    shots, green = list(rows), CURVES[2]
    low, middle, high = np.transpose([limits for _, limits, _ in rows.values()])
    for n, (errors, *_) in rows.items():
        axes["b"].loglog([n] * len(errors), errors[:, -1], "o", color=BLUE, markersize=3)
    axes["b"].fill_between(
        shots, low, high, color=green, alpha=0.25, linewidth=0, label="90 % of runs, by the bound"
    )
    axes["b"].plot(shots, middle, color=green, linewidth=1.4, label="median, by the bound")
    axes["b"].legend(frameon=False, labelcolor=INK, fontsize=8.5)
    most, (history, *_) = list(rows.items())[-1]
    axes["c"].semilogy(history.T, color=BLUE, linewidth=0.5)
    axes["c"].axhspan(low[-1], high[-1], color=green, alpha=0.25, linewidth=0)
    style_axes(
        axes["b"],
        xlabel="shots per setting",
        ylabel="largest error of H",
        title="Points: runs, after learning",
    )
    style_axes(
        axes["c"],
        xlabel="step, from H = 0",
        ylabel="largest error of H",
        title=f"Runs with {most:,} shots",
    )
    for ax in (axes["b"], axes["c"]):
        ax.axhline(1e-3, color=GREY, linestyle="--", linewidth=1)
    return figure


def main(
    num_shots=(100, 10**3, 10**4, 10**5, 10**6, 10**7),
    num_runs=16,
    num_steps=300,
    out=Path("runs/examples"),
):
    """Oscillate, learn from ``num_shots`` of each setting (preparation and time), ``num_runs``
    times each, print, draw into the folder ``out``.

    Returns the largest error of the oscillations; the table of :func:`lookalikes`; and by shots the
    largest error of H after every step ``[runs, steps]``, its 5, 50 and 95 % quantiles by the
    Cramer-Rao bound, and the mean of ``e^T I e`` per free parameter.
    """
    times, found, exact = oscillations()
    rabi_error = float(jnp.max(jnp.abs(found - exact)))
    print(f"Rabi oscillation: largest difference from the formula {rabi_error:.1e}")
    rng = np.random.default_rng(0)
    parameters = jnp.asarray(rng.normal(size=NUM_PARAMETERS))
    hidden = traceless(parameters)
    table = lookalikes(hidden)
    print(f"\n{'largest difference of populations from those of':<50}{'-H':>10}{'D H D':>10}")
    for name, (backwards, gauge) in table.items():
        print(f"{name:<50}{backwards:>10.1e}{gauge:>10.1e}")
    chances = np.asarray(outcomes(hidden), np.float64)
    chances = chances / np.sum(chances, axis=-1, keepdims=True)
    errors = learning_errors(rng, hidden, chances, num_shots, num_runs, num_steps)
    information = fisher_information(parameters, chances)
    quantiles = bound_quantiles(rng, information)
    print(
        f"\n{'shots per setting':<18}{'median max error':>18}{'by the bound':>14}{'worst':>10}"
        f"{'e^T I e':>10}"
    )
    rows = {}
    for n, error in zip(num_shots, errors, strict=True):
        last, history = error[:, -1], np.max(np.abs(error), axis=-1)
        middle, worst = np.median(history[:, -1]), np.max(history[:, -1])
        ratio = n * np.mean(np.sum(last @ information * last, axis=-1)) / (NUM_PARAMETERS - 1)
        rows[n] = history, quantiles / np.sqrt(n), ratio
        print(f"{n:<18,}{middle:>18.1e}{rows[n][1][1]:>14.1e}{worst:>10.1e}{ratio:>10.2f}")
    out.mkdir(parents=True, exist_ok=True)
    draw(times, found, exact, rows).savefig(out / "learn_hamiltonian.png")
    print(f"wrote {out / 'learn_hamiltonian.png'}")
    return rabi_error, table, rows


if __name__ == "__main__":
    main()
