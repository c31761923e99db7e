"""A hidden Markov model: the dishonest casino's dice, found from the rolls.

A casino changes between a fair die and two loaded ones. From the rolls alone: the probability of
each die (filter and smoother), the most probable path, and paths drawn from the posterior. Each is
compared with the truth, and the log evidence of models learned by expectation maximisation with
that of the model that made the rolls.

    python examples/hidden_markov.py
"""

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.inference.chains import hidden_markov, hidden_markov_learning, sampling
from vfejax.inference.chains.hidden_markov import HiddenMarkov

FAIR = np.full(6, 1 / 6)
HIGH = np.array([0.05, 0.05, 0.05, 0.05, 0.2, 0.6])
LOW = np.array([0.5, 0.3, 0.05, 0.05, 0.05, 0.05])


def true_model() -> HiddenMarkov:
    """Dice last for 20 to 50 rolls."""
    transition = np.array([[0.98, 0.04, 0.05], [0.01, 0.95, 0.0], [0.01, 0.01, 0.95]])
    return HiddenMarkov(np.array([1.0, 0.0, 0.0]), transition, np.stack([FAIR, HIGH, LOW], axis=1))


def simulate(rng: np.random.Generator, model: HiddenMarkov, num_rolls: int):
    """Dice and rolls ``[t]``."""
    dice = [rng.choice(3, p=model.initial)]
    while len(dice) < num_rolls:
        dice.append(rng.choice(3, p=model.transition[:, dice[-1]]))
    return np.array(dice), np.array([rng.choice(6, p=model.emission[:, d]) for d in dice])


def learn(start: HiddenMarkov, rolls, num_steps: int):
    """Expectation maximisation: the model, and the log evidence before each step."""

    def step(model, _):
        rows = hidden_markov.log_likelihoods(model, rolls)
        found = hidden_markov.hidden_markov_smoother(model, rows)
        counts = hidden_markov_learning.expect_hidden_markov(model, found, rolls)
        return hidden_markov_learning.maximize_hidden_markov(model, counts), found.log_evidence

    return jax.lax.scan(step, start, None, length=num_steps)


def main(num_rolls: int = 2000, num_em: int = 100, num_starts: int = 5) -> dict:
    """Print how often each method names the right die, and what learning finds.

    Args:
        num_rolls: rolls of the dice.
        num_em: steps of expectation maximisation.
        num_starts: random starts of it; the best one counts.

    Returns:
        ``{method: part of the rolls whose die is right}``, the part that the smoother expects under
        "expected", and log evidences under "truth" and "learned".
    """
    rng = np.random.default_rng(1)
    model = true_model()
    hidden_markov.check_model(model)
    dice, rolls = simulate(rng, model, num_rolls)

    @jax.jit
    def infer(key):
        rows = hidden_markov.log_likelihoods(model, rolls)
        smoothed = hidden_markov.hidden_markov_smoother(model, rows)
        path = hidden_markov.viterbi(model, rows)
        draws = sampling.sample_states(key, model, smoothed.filtered, 100)
        return smoothed, path, draws

    smoothed, path, draws = infer(jax.random.key(0))
    filtered = np.asarray(smoothed.filtered.probabilities)
    found = {
        "filter": np.mean(filtered.argmax(axis=1) == dice),
        "smoother": np.mean(np.asarray(smoothed.probabilities).argmax(axis=1) == dice),
        "most probable path": np.mean(np.asarray(path.states) == dice),
        "posterior paths": np.mean(np.asarray(draws) == dice[None]),
        "expected": np.mean(np.asarray(smoothed.probabilities).max(axis=1)),
        "truth": float(smoothed.log_evidence),
    }
    starts = [rng.dirichlet(np.full(k, 2.0), (num_starts, 3)).swapaxes(1, 2) for k in (3, 6)]
    starts[0] = 0.2 * starts[0] + 0.8 * np.eye(3)
    begin = HiddenMarkov(jnp.full((num_starts, 3), 1 / 3), *(jnp.asarray(x) for x in starts))
    _, evidence = jax.jit(jax.vmap(lambda m: learn(m, rolls, num_em)))(begin)
    found["learned"] = float(np.max(evidence[:, -1]))

    print(f"{'':<24}{'right die':>12}")
    for name in ("filter", "smoother", "most probable path", "posterior paths"):
        print(f"{name:<24}{100 * found[name]:>10.1f} %")
    print(f"{'smoother expects':<24}{100 * found['expected']:>10.1f} %")
    print(
        f"log evidence: true model {found['truth']:.1f} nats, learned {found['learned']:.1f} nats"
    )
    return found


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
