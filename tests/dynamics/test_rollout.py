"""What every integrator promises, in one table, and the compiled loop over any of them."""

from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vfejax.dynamics.gradient_flow import gradient_flow, scale_by_tree
from vfejax.dynamics.hamiltonian import symplectic, velocity_verlet, yoshida4
from vfejax.dynamics.langevin import overdamped, underdamped
from vfejax.dynamics.natural_gradient import natural_gradient
from vfejax.dynamics.rollout import rollout
from vfejax.types import Integrator

KEY = jax.random.key(0)

MASS = {"x": 0.5, "y": 2.0}
RATES = {"x": 0.2, "y": 0.05}


def energy_fn(position):
    """One ``cos`` per value and one ``sin`` per gradient, which the jaxpr can be asked to count."""
    x, y = position["x"], position["y"]
    return jnp.sum(1.0 - jnp.cos(x)) + 0.5 * jnp.sum(y * y) + 0.3 * jnp.sum(x) * jnp.sum(y)


def lenient(optimizer):
    """Optax's Adam mixes a Python float with an int32 count: let it, and hold only our own code to
    strict promotion.
    """

    def update(gradient, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(gradient, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def metric(_position, gradient):
    return {"x": 2.0 * gradient["x"], "y": 0.5 * gradient["y"]}


def natural(rates):
    return optax.chain(natural_gradient(metric, max_norm=0.5), scale_by_tree(rates))


# A new integrator joins every test below by one line: integrator and gradient evaluations per step.
INTEGRATORS = [
    pytest.param(gradient_flow(energy_fn, optax.sgd(0.1)), 1, id="sgd"),
    pytest.param(gradient_flow(energy_fn, scale_by_tree(RATES)), 1, id="scale_by_tree"),
    pytest.param(gradient_flow(energy_fn, lenient(optax.adam(0.1))), 1, id="adam"),
    pytest.param(gradient_flow(energy_fn, natural(RATES)), 1, id="natural_gradient"),
    pytest.param(velocity_verlet(energy_fn, 0.1), 1, id="velocity_verlet"),
    pytest.param(velocity_verlet(energy_fn, 0.1, MASS, 0.3), 1, id="velocity_verlet_damped"),
    pytest.param(yoshida4(energy_fn, 0.1, MASS, 0.3), 3, id="yoshida4"),
    pytest.param(symplectic(energy_fn, 0.1, (0.3, 0.4, 0.3)), 3, id="symplectic"),
    pytest.param(overdamped(energy_fn, 0.1, 0.5, RATES), 1, id="langevin_overdamped"),
    pytest.param(underdamped(energy_fn, 0.1, 0.5, MASS, 0.3), 1, id="langevin_underdamped"),
]
each_integrator = pytest.mark.parametrize(
    "integrator", [pytest.param(p.values[0], id=p.id) for p in INTEGRATORS]
)


@cache
def jitted_init(integrator):
    return jax.jit(integrator.init)


@cache
def jitted_step(integrator):
    """One compilation for all tests that need a step in float64; it refuses to be traced twice."""
    chex.clear_trace_counter()  # chex counts by name, and every integrator calls it "step"
    return jax.jit(chex.assert_max_traces(integrator.step, n=1))


def position(dtype, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=3).astype(dtype),
        "y": rng.normal(size=(2, 2)).astype(dtype),
    }


def assert_trees_close(got, expected, *, ulps):
    """Equal up to so many roundings in float64 of numbers of order 1 (one program may fuse what
    another does not).
    """
    chex.assert_trees_all_equal_shapes_and_dtypes(got, expected)
    tolerance = ulps * float(jnp.finfo(jnp.float64).eps)
    chex.assert_trees_all_close(got, expected, rtol=tolerance, atol=tolerance)


def stacked(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def count(jaxpr, name):
    """How often a primitive runs, inner programs included and loops multiplied by their length."""
    total = 0
    for equation in jaxpr.eqns:
        repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
        inner = [
            getattr(p, "jaxpr", p)
            for p in equation.params.values()
            if hasattr(getattr(p, "jaxpr", p), "eqns")
        ]
        total += (equation.primitive.name == name) + repeats * sum(count(j, name) for j in inner)
    return total


@pytest.mark.parametrize(("integrator", "evaluations"), INTEGRATORS)
def test_gradient_evaluations_per_step(integrator, evaluations):
    start = position(jnp.float64)
    state = jax.eval_shape(integrator.init, start)
    for num_steps in (1, 7):
        jaxpr = jax.make_jaxpr(lambda s, num=num_steps: rollout(integrator, s, num, KEY))(
            state
        ).jaxpr
        assert count(jaxpr, "cos") == num_steps * evaluations
        assert count(jaxpr, "sin") == num_steps * evaluations
    assert count(jax.make_jaxpr(integrator.init)(start).jaxpr, "sin") == 1


@each_integrator
def test_jitted_step_traces_once(integrator):
    """The state that a step returns is as good as one from ``init``."""
    for seed in range(2):
        state, _ = jitted_step(integrator)(
            jitted_init(integrator)(position(jnp.float64, seed)), KEY
        )
        jitted_step(integrator)(state, KEY)


@pytest.mark.parametrize(
    "integrator",
    [
        pytest.param(p.values[0], id=p.id, marks=() if quick else pytest.mark.slow)
        for p in INTEGRATORS
        for quick in [p.id == "velocity_verlet_damped"]
    ],
)
def test_a_step_is_the_same_without_compilation(integrator):
    state = jitted_init(integrator)(position(jnp.float64))
    assert_trees_close(jitted_step(integrator)(state, KEY), integrator.step(state, KEY), ulps=20)


@each_integrator
def test_state_keeps_structure_shapes_and_precision(integrator, dtype):
    state = jax.eval_shape(integrator.init, position(dtype))
    after, info = jax.eval_shape(integrator.step, state, KEY)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    weak = [jax.tree.map(lambda x: x.weak_type, tree) for tree in (after, state)]
    chex.assert_trees_all_equal(*weak)
    chex.assert_type(jax.tree.leaves((state.position, info)), dtype)
    chex.assert_shape(jax.tree.leaves(info), ())


@pytest.mark.parametrize(
    "integrator",
    [
        # Those with a near relative in the table are slow.
        pytest.param(p.values[0], id=p.id, marks=pytest.mark.slow if relative else ())
        for p in INTEGRATORS
        for relative in [
            p.id in ("scale_by_tree", "velocity_verlet", "symplectic", "langevin_overdamped")
        ]
    ],
)
def test_rollouts_of_a_stack_are_python_loops(integrator):
    """``rollout`` is a loop over steps, and ``vmap`` a loop over states, without steps too."""
    num_steps, seeds = 5, range(3)
    starts = [jitted_init(integrator)(position(jnp.float64, seed)) for seed in seeds]
    trajectories = []
    for state in starts:
        infos = []
        for index in range(num_steps):
            state, info = jitted_step(integrator)(state, jax.random.fold_in(KEY, index))
            infos.append(info)
        trajectories.append((state, stacked(infos)))

    @jax.jit
    @jax.vmap
    def roll(state):
        return rollout(integrator, state, num_steps, KEY), rollout(integrator, state, 0, KEY)

    got, (still, nothing) = roll(stacked(starts))
    # Five steps of three gradients, and Adam divides by moments that start small.
    assert_trees_close(got, stacked(trajectories), ulps=200)
    chex.assert_shape(jax.tree.leaves(got[1]), (len(seeds), num_steps))
    chex.assert_trees_all_equal(still, stacked(starts))
    chex.assert_shape(jax.tree.leaves(nothing), (len(seeds), 0))


@pytest.mark.parametrize(
    "name", [pytest.param("yoshida4", marks=pytest.mark.slow), "langevin_overdamped"]
)
def test_rollouts_compose(name):
    """``m`` steps and then ``n`` are ``m + n``: a run may be cut into chunks."""
    integrator = next(p.values[0] for p in INTEGRATORS if p.id == name)
    start = jitted_init(integrator)(position(jnp.float64))

    @jax.jit
    def run(state, first_step):
        return rollout(integrator, state, 3, KEY, first_step=first_step)

    whole, infos = jax.jit(lambda s: rollout(integrator, s, 6, KEY))(start)
    half, first = run(start, 0)
    end, second = run(half, 3)
    joined = jax.tree.map(lambda a, b: np.concatenate([a, b]), first, second)
    assert_trees_close((end, joined), (whole, infos), ulps=20)


def test_a_deterministic_integrator_ignores_the_key():
    integrator = gradient_flow(energy_fn, optax.sgd(0.1))
    start = jitted_init(integrator)(position(jnp.float64))
    roll = jax.jit(lambda s: [rollout(integrator, s, 3, key) for key in (KEY, None)])
    chex.assert_trees_all_equal(*roll(start))


def test_a_step_without_a_key_serves_as_an_integrator():
    """A user's own ``step(state)`` may leave the key out."""
    halving = Integrator(lambda x: x, lambda x: (x / 2, x))
    end, seen = jax.jit(lambda x: rollout(halving, x, 3))(np.ones(()))
    np.testing.assert_array_equal(end, 0.125)
    np.testing.assert_array_equal(seen, [1.0, 0.5, 0.25])


def test_a_negative_number_of_steps_is_no_empty_trajectory():
    with pytest.raises(ValueError, match="num_steps must be at least 0, got -1"):
        rollout(None, jnp.zeros(()), -1)


def test_arguments_in_another_order_and_a_position_for_a_state_are_named():
    fall = velocity_verlet(lambda x: jnp.sum(x), 0.1)
    state = fall.init(jnp.ones(2))
    with pytest.raises(ValueError, match=r"num_steps must be .* got HamiltonianState; the order"):
        rollout(fall, 3, state)
    with pytest.raises(ValueError, match="num_steps must be a static whole number, got float"):
        rollout(fall, state, 1.5)
    with pytest.raises(ValueError, match=r"ArrayImpl for its momentum.* integrator\.init"):
        rollout(fall, state.position, 3)


def test_an_attribute_that_a_step_misses_elsewhere_is_no_fault_of_the_state():
    broken = Integrator(lambda x: (x,), lambda x: (x, jnp.absent))
    with pytest.raises(AttributeError, match="absent"):
        rollout(broken, (jnp.zeros(()),), 3)
