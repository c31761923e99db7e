import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.inference.message_passing import chains, couplings, graph, nodes, non_conjugate
from vfejax.inference.message_passing.coordinate_ascent import check_start, fit, message_passing
from vfejax.inference.worked_models import factors, mixture, state_space, topics

RNG = np.random.default_rng(3)
POINTS = RNG.normal(size=(12, 2)) + 4 * RNG.integers(0, 2, size=(12, 1))
MATRIX = RNG.normal(size=(4, 6))
MASK = (RNG.uniform(size=(4, 6)) < 0.7).astype(float)
SERIES = RNG.normal(size=(3, 7))


def logistic_and_rates():
    """Two nodes that are not conjugate, with a learned precision above them."""
    model = graph.graph(
        precision=nodes.gamma(2.0, 2.0),
        u=nodes.gaussian(0.5, "precision", plates=(6,)),
        x=non_conjugate.bernoulli_logit("u"),
        n=non_conjugate.poisson_log_rate("u"),
    )
    data = {"x": RNG.integers(0, 2, 6) + 0.0, "n": RNG.poisson(3.0, 6) + 0.0}
    return message_passing(model, ("x", "n")), data, {}


def states():
    model = graph.graph(
        initial=nodes.dirichlet(jnp.ones(2)),
        transition=nodes.dirichlet(jnp.ones(2), plates=(2,)),
        mean=nodes.gaussian(0.0, 0.1, plates=(2,)),
        precision=nodes.gamma(1.0, 1.0, plates=(2,)),
        z=chains.categorical_chain("initial", "transition", 7),
        x=couplings.mixture("z", nodes.gaussian("mean", "precision")),
    )
    return message_passing(model, ("x",)), {"x": SERIES[0]}, {}


CASES = {
    "mixture": lambda: (mixture.gaussian_mixture(12, 2, 2), {"point": POINTS}, {}),
    "factors with gaps": lambda: (
        factors.incomplete_principal_components(4, 6, 2),
        {"data": MATRIX},
        {"data": MASK},
    ),
    "state space": lambda: (
        state_space.linear_state_space(3, 2, 7),
        {"data": SERIES},
        {"data": np.arange(21).reshape(3, 7) % 5 > 0},
    ),
    "states": states,
    "topics": lambda: (
        topics.latent_dirichlet_allocation(5, 4, 2),
        {"counts": RNG.poisson(2.0, (5, 4)) + 0.0},
        {},
    ),
    "not conjugate": logistic_and_rates,
}
FAST = ("not conjugate",)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in CASES]
)
def test_no_update_lowers_the_elbo(name):
    method, data, weights = CASES[name]()
    data = {key: jnp.asarray(value) for key, value in data.items()}
    weights = {key: jnp.asarray(value, float) for key, value in weights.items()}

    # Compiled apart: one program for the ELBO after every update.
    elbo = jax.jit(lambda beliefs: method.elbo(beliefs, data, weights))
    update = jax.jit(
        lambda beliefs, names: method.update(beliefs, data, names, weights), static_argnums=1
    )
    beliefs = jax.jit(lambda key: method.init(key, data, weights))(jax.random.key(2))
    values = [beliefs.elbo]
    for names in 8 * method.schedule:
        beliefs = update(beliefs, names)
        values.append(elbo(beliefs))
    values = np.array(values)
    # sums of at most a hundred numbers below 100
    assert np.diff(values).min() > -1e-11
    assert values[-1] > values[0] + 1


@functools.cache
def mixture_of_points():
    return mixture.gaussian_mixture(12, 2, 2), {"point": jnp.asarray(POINTS)}


def test_a_uniform_start_of_a_mixture_is_refused():
    method, data = mixture_of_points()
    with pytest.raises(ValueError, match="label cannot start at a uniform belief: components"):
        method.init(None, data)


@pytest.mark.slow
def test_a_given_start_that_is_uniform_is_found():
    method, data = mixture_of_points()
    init = jax.jit(lambda label: method.init(None, data, start={"label": (label,)}))
    with pytest.raises(ValueError, match="every member of label starts with the same belief"):
        check_start(method, init(jnp.zeros((12, 2))))
    check_start(method, init(jnp.arange(24.0).reshape(12, 2) ** 2))


def test_a_missing_observation_counts_as_if_it_were_not_there():
    full, part = (
        message_passing(
            graph.graph(
                mean=nodes.gaussian(0.0, 0.1),
                precision=nodes.gamma(1.0, 1.0),
                x=nodes.gaussian("mean", "precision", plates=(n,)),
            ),
            ("x",),
        )
        for n in (5, 3)
    )
    values, mask = np.array([1.0, np.nan, 3.0, 2.5, np.inf]), np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    masked = fit_beliefs(full, {"x": jnp.asarray(values)}, {"x": jnp.asarray(mask)})
    left = fit_beliefs(part, {"x": jnp.asarray(values[mask > 0])}, {})
    chex.assert_trees_all_close(masked, left, rtol=1e-12)


def fit_beliefs(method, data, weights):

    def run():
        return fit(method, method.init(None, data, weights), data, 5, -1.0, weights)[0]

    return jax.jit(run)()


def test_rows_that_share_a_precision_refuse_gaps():
    method, data = factors.principal_components(4, 6, 2), {"data": jnp.asarray(MATRIX)}
    with pytest.raises(ValueError, match="loadings shares one precision"):
        jax.eval_shape(lambda: method.init(jax.random.key(0), data, {"data": MASK}))


@pytest.mark.slow
def test_a_damped_step_is_the_mean_of_natural_parameters():
    model = graph.graph(mean=nodes.gaussian(0.0, 1.0), x=nodes.gaussian("mean", 2.0, plates=(3,)))
    data = {"x": jnp.ones(3)}
    full, half = message_passing(model, ("x",)), message_passing(model, ("x",), None, {"mean": 0.5})
    start = jax.jit(lambda: full.init(None, data))()
    there, halfway = (
        jax.jit(m.update, static_argnums=2)(start, data, ("mean",)).natural["mean"]
        for m in (full, half)
    )
    expected = tuple(0.5 * (x + y) for x, y in zip(start.natural["mean"], there, strict=True))
    chex.assert_trees_all_close(halfway, expected, rtol=1e-14)


@pytest.mark.slow
def test_copies_are_repeated_observations():
    def method(n):
        model = graph.graph(
            weights=nodes.dirichlet(jnp.ones(2)),
            z=nodes.categorical("weights", plates=(n,)),
            x=couplings.mixture("z", nodes.gaussian(jnp.array([-1.0, 1.0]), 1.0)),
        )
        return message_passing(model, ("x",))

    values, copies = np.array([0.3, -2.0]), np.array([3, 1])
    weight = jnp.asarray(copies, float)
    few = fit_beliefs(method(2), {"x": jnp.asarray(values)}, {"z": weight, "x": weight})
    many = fit_beliefs(method(4), {"x": jnp.asarray(np.repeat(values, copies))}, {})
    np.testing.assert_allclose(few.elbo, many.elbo, rtol=1e-13)
    chex.assert_trees_all_close(few.natural["weights"], many.natural["weights"], rtol=1e-12)


@pytest.mark.slow
def test_float32_stays_float32():
    method, data = mixture_of_points()
    data = jax.tree.map(lambda x: x.astype(jnp.float32), data)
    beliefs = jax.eval_shape(lambda: method.sweep(method.init(jax.random.key(0), data), data))
    assert {x.dtype for x in jax.tree.leaves(beliefs)} == {jnp.dtype(jnp.float32)}


def test_convergence_is_reported():
    model = graph.graph(
        mean=nodes.gaussian(0.0, 0.1),
        precision=nodes.gamma(1.0, 1.0),
        x=nodes.gaussian("mean", "precision", plates=(3,)),
    )
    method, data = message_passing(model, ("x",)), {"x": jnp.array([0.1, 2.0, 3.0])}
    run = jax.jit(lambda tolerance: fit(method, method.init(None, data), data, 20, tolerance)[1])
    done, early = run(1e-6), run(-1.0)
    assert bool(done.converged)
    assert 2 < int(done.num_sweeps) < 20
    assert np.isnan(done.elbo[int(done.num_sweeps) :]).all()
    assert not bool(early.converged)
    assert int(early.num_sweeps) == 20
    np.testing.assert_allclose(done.elbo[:2], early.elbo[:2], rtol=1e-15)


X = nodes.gaussian("mean", 1.0, plates=(3,))
MEAN = nodes.gaussian(0.0, 1.0)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"x": X}, "mean of x: no node 'mean' is declared before it"),
        ({"mean": nodes.gamma(1.0, 1.0), "x": X}, "mean of x must be gaussian, mean is gamma"),
        (
            {"mean": nodes.gaussian(0.0, 1.0, plates=(4,)), "x": X},
            r"plates of x must take those of its parents \(4,\), got \(3,\)",
        ),
        (
            {"x": nodes.multivariate_gaussian(np.zeros(2), np.eye(3))},
            r"the parents of x do not fit: mean \(2,\), precision \(3, 3\)",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_refused(declared, message):
    with pytest.raises(ValueError, match=message):
        graph.graph(**declared)


@pytest.mark.parametrize(
    ("observed", "schedule", "message"),
    [
        (("y",), None, "observed: no node 'y', there are mean, x"),
        (("x",), (("x",),), r"schedule must name every latent node \(mean\) and no other, got x"),
        ((), (("mean", "x"),), "mean and x share the density of x"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(observed, schedule, message):
    with pytest.raises(ValueError, match=message):
        message_passing(graph.graph(mean=MEAN, x=X), observed, schedule)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "data must hold x, got none"),
        (jnp.ones(3), "data must be arrays by the name of their node, of mean, x; got ArrayImpl"),
        ({"x": jnp.ones(4)}, r"data\['x'\] must have plates \(3,\).*got shape \(4,\)"),
        ({"x": jnp.ones(3, complex)}, r"data\['x'\] must be real"),
    ],
)
def test_data_that_do_not_fit_are_refused(data, message):
    method = message_passing(graph.graph(mean=MEAN, x=X), ("x",))
    with pytest.raises(ValueError, match=message):
        method.init(None, data)


def test_constants_cannot_be_names():
    with pytest.raises(ValueError, match="parameters of a gamma node are constants"):
        nodes.gamma("a", 1.0)


def test_a_component_that_cannot_be_is_none():
    """A mixture whose third weight is 0 has the ELBO of one without the third component."""

    def fitted(shares):
        model = graph.graph(
            mean=nodes.gaussian(0.0, 0.1, plates=(len(shares),)),
            label=nodes.categorical(np.array(shares), plates=(4,)),
            x=couplings.mixture("label", nodes.gaussian("mean", 1.0)),
        )
        method, data = message_passing(model, ("x",)), {"x": np.array([-2.0, -1.9, 3.0, 3.1])}
        start = np.linspace(-1.0, 1.0, 4)[:, None] * np.array([-1.0, 1.0, 0.0])[: len(shares)]
        beliefs, sweep = method.init(None, data, start={"label": (start,)}), jax.jit(method.sweep)
        for _ in range(8):  # which forget that the start knew of a third
            beliefs, _ = sweep(beliefs, data)
        return beliefs

    without, beliefs = fitted([0.5, 0.5]), fitted([0.5, 0.5, 0.0])
    np.testing.assert_array_equal(beliefs.statistics["label"][0][:, 2], 0.0)
    chex.assert_trees_all_close(
        beliefs.statistics["mean"][0][:2], without.statistics["mean"][0], rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(beliefs.elbo, without.elbo, rtol=0, atol=1e-12)
