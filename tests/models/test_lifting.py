"""The learned lifting: shapes, bad sizes, and that training does not collapse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vfejax.models.lifting import LiftingConfig, lifting, loss

MODEL = lifting(1, LiftingConfig(observables=2, hidden=16, layers=1))


@pytest.mark.usefixtures("library_promotion")
def test_training_from_nearly_constant_observables_does_not_collapse():
    angle = 0.4 * np.arange(400)
    noise = np.random.default_rng(0).normal(size=400)
    x = jnp.asarray(np.cos(angle) + 0.05 * noise, jnp.float32)[:, None]
    start = MODEL.init(jax.random.key(0))
    start["layers"][1] = jax.tree.map(lambda w: 1e-3 * w, start["layers"][1])
    start["layers"][1]["bias"] = jnp.ones(2)
    optimizer = optax.adam(0.02)

    @jax.jit
    def train(params):
        def update(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(lambda p: loss(MODEL, p, x[:-1], x[1:]))(params)
            change, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, change), state), -value

        carry, scores = jax.lax.scan(update, (params, optimizer.init(params)), None, length=200)
        return carry[0], scores

    params, scores = train(start)
    z = MODEL.apply(params, x)
    # A function of x alone keeps cos^2 of the step of its own variance, 0.85, and cos(2 angle) 0.5.
    assert scores[0] < 0.6
    assert scores[-1] > 1.1
    assert np.all(np.std(z, axis=0) > 1e-2)
    assert abs(np.corrcoef(z.T)[0, 1]) < 0.999


def test_bad_sizes_and_states_are_named():
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        lifting(0)
    with pytest.raises(ValueError, match="observables"):
        lifting(1, LiftingConfig(observables=0))
    with pytest.raises(ValueError, match=r"x must be states \[\.\.\., 1\], got shape \(3, 2\)"):
        MODEL.apply(MODEL.init(jax.random.key(0)), jnp.ones((3, 2)))
