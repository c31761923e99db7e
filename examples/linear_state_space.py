"""A linear state space model: estimates with honest intervals, and its parameters learned.

Two positions and two velocities are seen through three noisy sensors, one reading in five missing.
The filter, the smoother and the prediction with the true parameters are compared with the truth:
error, and how many true states lie in their 90 % intervals. Then the parameters are forgotten and
learned by expectation maximisation, then by gradients with an optimiser of optax, and the held-out
log evidence says what that is worth.

    python examples/linear_state_space.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vfejax.dynamics.gradient_flow import gradient_flow
from vfejax.dynamics.rollout import rollout
from vfejax.inference.chains import (
    LinearGaussian,
    coordinates,
    kalman_filter,
    kalman_smoother,
    learning,
)
from vfejax.inference.chains.linear_gaussian import check_model, predict

WIDTH = 1.6449  # standard deviations of a 90 % interval
MISSING = 0.2


def true_model(dt: float = 0.2) -> LinearGaussian:
    """Damped motion in a plane, observed from three directions."""
    eye, zero = np.eye(2), np.zeros((2, 2))
    transition = np.block([[eye, dt * eye], [-0.1 * dt * eye, (1 - 0.2 * dt) * eye]])
    noise = np.block([[1e-4 * eye, zero], [zero, dt * eye]])
    angles = np.array([0.0, 2.0, 4.0])
    seen = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    emission = np.concatenate([seen, np.zeros((3, 2))], axis=1)
    return LinearGaussian(np.zeros(4), np.eye(4), transition, noise, emission, 0.5 * np.eye(3))


def simulate(rng: np.random.Generator, model: LinearGaussian, num_steps: int):
    """True states ``[t, n]``, observations ``[t, o]``, and which entries were observed."""
    roots = [np.linalg.cholesky(x) for x in (model.initial_cov, model.transition_cov)]
    x = model.initial_mean + roots[0] @ rng.normal(size=4)
    states = []
    for _ in range(num_steps):
        states.append(x)
        x = model.transition @ x + roots[1] @ rng.normal(size=4)
    states = np.stack(states)
    noise = rng.normal(size=(num_steps, 3)) @ np.linalg.cholesky(model.emission_cov).T
    mask = rng.random((num_steps, 3)) >= MISSING
    return states, states @ model.emission.T + noise, mask


def score(mean, cov, states) -> tuple[float, float]:
    """Root mean square error, and the part of true numbers inside their 90 % intervals."""
    deviation = np.sqrt(np.diagonal(np.asarray(cov), axis1=1, axis2=2))
    away = np.abs(np.asarray(mean) - states)
    return float(np.sqrt(np.mean(away**2))), float(np.mean(away <= WIDTH * deviation))


def learn(start: LinearGaussian, y, mask, num_steps: int):
    """Expectation maximisation: the model, and the log evidence before each step."""

    def step(model, _):
        found = learning.expect(model, y, mask)
        return learning.maximize(model, found), found.log_evidence

    run = jax.jit(lambda model: jax.lax.scan(step, model, None, length=num_steps))
    return run(jax.tree.map(jnp.asarray, start))


def learn_by_gradients(start: LinearGaussian, y, mask, num_steps: int) -> LinearGaussian:
    """Descent on the negative log evidence in free coordinates, by Adam."""

    def energy(free):
        return coordinates.negative_log_evidence(free, y, mask)

    flow = gradient_flow(energy, optax.adam(0.03))
    run = jax.jit(lambda free: rollout(flow, flow.init(free), num_steps)[0].position)
    return coordinates.constrain(run(coordinates.unconstrain(jax.tree.map(jnp.asarray, start))))


def main(num_steps: int = 600, num_em: int = 60, ahead: int = 5) -> dict:
    """Print errors and coverage, and what learning finds.

    Args:
        num_steps: observations, the second half of which is held out from learning.
        num_em: steps of expectation maximisation.
        ahead: steps of the prediction.

    Returns:
        ``{method: (error, coverage)}``, and under "log evidence" those of the held-out half under
        the truth, under the start and under what was learned, in both ways.
    """
    rng = np.random.default_rng(0)
    model = true_model()
    check_model(model)
    states, y, mask = simulate(rng, model, num_steps)
    filtered = jax.jit(kalman_filter)(model, y, mask)
    smoothed = jax.jit(kalman_smoother)(model, y, mask)
    starts = np.arange(0, num_steps - ahead)
    last = jax.jit(jax.vmap(lambda m, p: predict(model, m, p, ahead)))(
        filtered.mean[starts], filtered.cov[starts]
    )
    rows = {
        "filter": score(filtered.mean, filtered.cov, states),
        "smoother": score(smoothed.mean, smoothed.cov, states),
        f"prediction, {ahead} ahead": score(last.mean[:, -1], last.cov[:, -1], states[ahead:]),
    }
    half = num_steps // 2
    start = model._replace(
        transition=0.9 * np.eye(4),
        transition_cov=0.3 * np.eye(4),
        emission=model.emission + 0.3 * rng.normal(size=(3, 4)),
        emission_cov=np.eye(3),
    )
    learned, evidence = learn(start, y[:half], mask[:half], num_em)
    # Given the first half: the model of one series knows its first state alone.
    held = jax.jit(lambda m: jnp.sum(kalman_filter(m, y, mask).step_log_evidence[half:]))
    climbed = learn_by_gradients(start, y[:half], mask[:half], 4 * num_em)
    models = (jax.tree.map(jnp.asarray, m) for m in (model, start, learned, climbed))
    rows["log evidence"] = tuple(float(held(m)) for m in models)

    print(f"{'states':<24}{'rms error':>12}{'in 90 % interval':>20}")
    for name, (error, coverage) in list(rows.items())[:3]:
        print(f"{name:<24}{error:>12.3f}{100 * coverage:>18.1f} %")
    print(f"log evidence in learning: {float(evidence[0]):.1f} -> {float(evidence[-1]):.1f} nats")
    truth, before, after, other = rows["log evidence"]
    print(
        f"held-out half: truth {truth:.1f}, start {before:.1f}, learned {after:.1f}, by gradients "
        f"{other:.1f} nats"
    )
    return rows


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
