"""Momentum methods: the symplectic form, the limit of speed, Nesterov's method, and the weights
that they are evaluated at.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from vfejax.training import momentum as methods
from vfejax.training.momentum import eval_params, leapfrog, nesterov, relativistic

pytestmark = pytest.mark.usefixtures("library_promotion")

MU, RATE = 0.9, 0.05
METHODS = {
    "leapfrog": leapfrog(RATE, momentum=MU),
    "relativistic": relativistic(RATE, momentum=MU, delta=2.0),
    "half way": relativistic(RATE, momentum=MU, delta=2.0, alpha=0.5),
    "nesterov": nesterov(RATE, momentum=MU),
}
SYMPLECTIC = {"leapfrog", "relativistic"}


def _loss(params):
    """Two leaves that need one another, with a Hessian that changes."""
    x, y = params["a"], params["b"]
    return jnp.sum(jnp.cos(x @ y)) + 0.25 * jnp.sum(x**4) + 0.5 * jnp.sum(y**2)


def _params(dtype=jnp.float64):
    rng = np.random.default_rng(3)
    arrays = {"a": rng.normal(size=(2, 2)), "b": np.ones(2)}
    return jax.tree.map(lambda x: jnp.asarray(x.astype(dtype)), arrays)


def _defect(optimizer):
    """Largest entry of ``J^T Omega J - mu Omega`` of an update of weights and velocity."""
    flat, unravel = jax.flatten_util.ravel_pytree(_params())
    n = flat.size
    omega = jnp.block([[jnp.zeros((n, n)), jnp.eye(n)], [-jnp.eye(n), jnp.zeros((n, n))]])

    def update(z):
        params, velocity = unravel(z[:n]), unravel(z[n:])
        state = optimizer.init(params)._replace(velocity=velocity)
        moves, state = optimizer.update(jax.grad(_loss)(params), state, params)
        flat_of = lambda tree: jax.flatten_util.ravel_pytree(tree)[0]  # noqa: E731
        return jnp.concatenate(
            [flat_of(optax.apply_updates(params, moves)), flat_of(state.velocity)]
        )

    jacobian = jax.jacfwd(update)(jnp.concatenate([flat, jnp.sin(jnp.arange(n))]))
    return jnp.max(jnp.abs(jacobian.T @ omega @ jacobian - MU * omega))


def test_leapfrog_and_relativistic_updates_shrink_the_symplectic_form_by_mu_and_nesterov_does_not():
    defects = jax.jit(lambda: {name: _defect(method) for name, method in METHODS.items()})()
    for name, defect in defects.items():
        if name in SYMPLECTIC:
            assert defect < 1e-13, name  # a few dozen roundings of numbers near 1
        else:
            assert defect > 1e-2, name


def _path(optimizer, params, num=20):
    """Weights, parameters and moves of some updates."""

    def step(carry, _):
        params, state = carry
        moves, state = optimizer.update(jax.grad(_loss)(params), state, params)
        params = optax.apply_updates(params, moves)
        weights = eval_params(params, state)
        return (params, state), (weights, params)

    return jax.lax.scan(step, (params, optimizer.init(params)), None, length=num)[1]


def _half_steps(params, delta, alpha, num=20):
    """Algorithm 1 of the paper as it stands there, with weights and velocity at full steps."""
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    force = lambda x: jax.flatten_util.ravel_pytree(jax.grad(_loss)(unravel(x)))[0]  # noqa: E731
    root = np.sqrt(MU)

    def step(carry, _):
        x, v = carry
        half = x + root * v / jnp.sqrt(1 + delta * MU * v @ v)
        v_half = root * v - RATE * force(half)
        x = alpha * half + (1 - alpha) * x + v_half / jnp.sqrt(1 + delta * v_half @ v_half)
        return (x, root * v_half), x

    return jax.vmap(unravel)(jax.lax.scan(step, (flat, 0 * flat), None, length=num)[1])


def test_weights_are_those_of_the_published_half_steps_and_nesterov_is_that_of_optax():
    def both(params):
        found = {name: _path(method, params) for name, method in METHODS.items()}
        published = {
            "leapfrog": _half_steps(params, 0.0, 1.0),
            "relativistic": _half_steps(params, 2.0, 1.0),
            "half way": _half_steps(params, 2.0, 0.5),
            "nesterov": _half_steps(params, 0.0, 0.0),
        }
        return found, published, _path(optax.sgd(RATE, MU, nesterov=True), params)[1]

    found, published, reference = jax.jit(both)(_params())
    for name, weights in published.items():
        chex.assert_trees_all_close(found[name][0], weights, rtol=1e-10, atol=1e-12)
    chex.assert_trees_all_close(found["nesterov"][1], reference, rtol=1e-10, atol=1e-12)


def test_leapfrog_follows_the_flow_with_friction_to_second_order():
    friction, end = 0.5, 4.0

    def reached(h, num):
        optimizer = leapfrog(0.5 * h**2, momentum=np.exp(-friction * h))

        def step(carry, _):
            y, state = carry
            move, state = optimizer.update(y, state)  # the gradient of y^2 / 2
            return (y + move, state), None

        start = jnp.ones(())
        (y, state), _ = jax.lax.scan(step, (start, optimizer.init(start)), None, length=num)
        return eval_params(y, state)

    found = jax.jit(lambda: jnp.stack([reached(0.1, 40), reached(0.05, 80)]))()
    w = np.sqrt(1 - friction**2 / 4)
    fall = np.exp(-friction * end / 2)
    exact = fall * (np.cos(w * end) + friction / (2 * w) * np.sin(w * end))
    errors = np.abs(found - exact)
    assert 1.95 < np.log2(errors[0] / errors[1]) < 2.05
    assert errors[1] < 1e-3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_no_update_is_longer_than_the_limit_and_types_stay(dtype):
    params = _params(dtype)
    optimizer = relativistic(0.1, momentum=MU, delta=4.0)
    norm = jax.jit(optax.tree.norm)

    @jax.jit
    def step(gradient):
        return optimizer.update(gradient, optimizer.init(params), params)

    huge = jax.tree.map(lambda x: np.full_like(x, 1e8), params)
    moves, state = step(huge)
    chex.assert_trees_all_equal_dtypes(moves, state.velocity, params)
    # 2 / sqrt(delta) of the whole tree, from float32's rounding of a root.
    np.testing.assert_allclose(norm(moves), 1.0, rtol=1e-6)
    # Squares of these are inf in float32.
    moves, _ = step(jax.tree.map(lambda x: np.full_like(x, 1e25), params))
    np.testing.assert_allclose(norm(moves), 1.0, rtol=1e-6)
    spoiled, _ = step(huge | {"b": np.full((2,), np.nan, dtype)})
    assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(spoiled))


def test_leapfrog_moves_by_a_gradient_whose_square_overflows():
    optimizer = leapfrog(1.0, momentum=0.5)

    @jax.jit
    def moved(gradient):
        return optimizer.update(gradient, optimizer.init(jnp.zeros_like(gradient)))[0]

    moves = moved(np.full(1, 1e25, np.float32))
    np.testing.assert_allclose(moves, -1.5e25, rtol=1e-6)


def test_leaves_that_a_mask_withholds_are_their_own_weights():
    optimizer = optax.masked(leapfrog(0.1, momentum=0.5), {"a": True, "b": False})

    @jax.jit
    def moved(params, gradient):
        moves, state = optimizer.update(gradient, optimizer.init(params))
        return eval_params(optax.apply_updates(params, moves), state)

    params = {"a": np.zeros(1), "b": np.ones(1)}
    weights = moved(params, {"a": np.ones(1), "b": np.zeros(1)})
    chex.assert_trees_all_close(weights, {"a": np.full(1, -0.1), "b": np.ones(1)}, rtol=1e-6)


def test_weights_are_found_in_any_chain_and_the_rate_follows_its_schedule():
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), leapfrog(lambda step: 0.5 / (step + 1.0), momentum=0.5)
    )
    params = jnp.zeros(1)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        moves, state = optimizer.update(jnp.full(1, 7.0), state, params)
        return params + moves, state

    velocities = []
    for _ in range(2):
        params, state = step(params, state)
        velocities.append(float(state[1].velocity[0]))
    np.testing.assert_allclose(velocities, [-0.5, -0.5], rtol=1e-6)  # -0.5, then -0.25 - 0.25
    weights = eval_params(params, state)
    np.testing.assert_allclose(weights, params + 0.25, rtol=1e-6)
    plain = optax.adam(0.1).init(params)
    assert eval_params(params, plain) is params
    with pytest.raises(ValueError, match="one velocity or average, got 2"):
        eval_params(params, (state, state))


def test_momentum_and_limit_follow_their_schedules():
    """Each update is that of a method with the options of its time, whose half steps meet."""
    mus, deltas = np.array([0.5, 0.5, 0.9, 0.2, 0.7]), np.array([0.0, 2.0, 2.0, 1.0, 0.5])
    method = optax.inject_hyperparams(methods.relativistic)(
        0.3, momentum=lambda i: jnp.asarray(mus)[i], delta=lambda i: jnp.asarray(deltas)[i]
    )
    params = jnp.array([1.0, -2.0])
    state = method.init(params)
    update = jax.jit(method.update)

    def drift(v, delta):
        return v / np.sqrt(1.0 + delta * np.sum(v * v))

    x, v, mu, delta = np.asarray(params), np.zeros(2), mus[0], deltas[0]
    for i in range(5):
        y = x + drift(mu * v, delta)  # half a step, to where the gradient is
        np.testing.assert_allclose(params, y, rtol=0, atol=1e-6)
        v = mu * v - 0.3 * 3.0 * y
        mu, delta = mus[i], deltas[i]
        x = y + drift(v, delta)
        moves, state = update(3.0 * params, state, params)
        params = params + moves
    np.testing.assert_allclose(eval_params(params, state), x, rtol=0, atol=1e-6)


def test_the_average_of_a_schedule_free_method_is_what_optax_says():
    free = optax.contrib.schedule_free(optax.sgd(0.1), 0.1, b1=0.8)
    optimizer = optax.masked(optax.chain(optax.clip(1.0), free), {"a": True, "b": False})

    @jax.jit
    def moved(params):
        state = optimizer.init(params)
        for slope in (1.0, -0.5, 0.7):
            gradient = {"a": jnp.full(1, slope), "b": jnp.zeros(1)}
            moves, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, moves)
        inner = state.inner_state[1]
        known = {"a": inner.z["a"], "b": params["b"]}  # optax's own knows no masks
        return eval_params(params, state), optax.contrib.schedule_free_eval_params(
            inner._replace(z=known), params
        )

    found, expected = moved({"a": jnp.ones(1), "b": jnp.ones(1)})
    chex.assert_trees_all_close(found, expected, rtol=1e-6)
    assert float(jnp.abs(found["a"] - 1.0)[0]) > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1, got 1.0"),
        ({"momentum": float("nan")}, "momentum must be"),
        ({"delta": -1.0}, "delta must be at least 0 and finite, got -1.0"),
        ({"delta": float("inf")}, "delta must be"),
        ({"alpha": 1.5}, "alpha must be between 0 and 1, got 1.5"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        methods.relativistic(0.1, **options)
