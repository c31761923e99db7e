"""Values that cannot be: refused where they are known, NaN where they are traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.beliefs import supports
from vfejax.inference.message_passing import chains, couplings, graph, nodes, non_conjugate
from vfejax.inference.message_passing.coordinate_ascent import message_passing

EYE, SKEW = np.eye(2), np.array([[1.0, 0.5], [0.0, 1.0]])
ROWS = np.array([[0.5, 0.5], [0.9, 0.2]])


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: nodes.gamma(-1.0, 1.0), "shape of x must be positive, got -1"),
        (lambda: nodes.gamma(1.0, [1.0, 0.0]), r"rate of x must be positive, got 0 at \[1\]"),
        (lambda: nodes.gaussian(0.0, -2.0), "precision of x must be positive, got -2"),
        (lambda: nodes.relevance([1, -1]), r"precisions of x must be positive, got -1 at \[1\]"),
        (
            lambda: nodes.dirichlet(np.array([[1.0, 1.0], [1.0, 0.0]])),
            r"concentration of x must be positive, got 0 at \[1, 1\]",
        ),
        (lambda: nodes.beta(1.0, 0.0), "b of x must be positive, got 0"),
        (lambda: nodes.wishart(1.0, EYE), "dof of x must be above 1, got 1"),
        (
            lambda: nodes.wishart(3.0, -EYE),
            r"rate of x must be symmetric and positive definite, got \[\[-1., -0.\], \[",
        ),
        (lambda: nodes.wishart(3.0, np.stack([EYE, SKEW])), r"rate of x .* 1. \]\] at \[1\]"),
        (lambda: nodes.multivariate_gaussian(np.zeros(2), 0 * EYE), "precision of x .* definite"),
        (lambda: nodes.categorical(ROWS), r"must be probabilities .* got \[0.9, 0.2\] at \[1\]"),
        (lambda: nodes.bernoulli(1.5), "probability of x must be between 0 and 1, got 1.5"),
        (lambda: nodes.poisson(-1.0), "rate of x must be positive, got -1"),
        (lambda: chains.categorical_chain([1.0, 0.0], ROWS, 3), "transition of x .* sum to 1"),
        (
            lambda: chains.gaussian_chain(np.zeros(2), EYE, EYE, np.array([1.0, -3.0]), 3),
            r"precisions of x must be positive, got -3 at \[1\]",
        ),
        (lambda: couplings.gain(EYE, EYE, [[1.0], [-1.0]]), r"precision of x .* at \[1, 0\]"),
    ],
)
def test_constants_are_refused(declare, message):
    with pytest.raises(ValueError, match=message):
        graph.graph(x=declare())


DATA = {
    "poisson": (nodes.poisson(2.0, (3,)), [0.0, -1.0, 2.0], r"whole numbers .* got -1 at \[1\]"),
    "half": (nodes.poisson(2.0, (2,)), [0.0, 1.5], r"whole numbers from 0, got 1.5 at \[1\]"),
    "logit": (non_conjugate.bernoulli_logit(np.zeros(2)), [0.0, 2.0], r"0 or 1, got 2 at \[1\]"),
    "state": (
        nodes.categorical([0.5, 0.5], (2,)),
        # What `one_hot` makes of the label 2 of 2.
        [[0.0, 1.0], [0.0, 0.0]],
        r"one-hot rows: .* got \[0., 0.\] at \[1\]",
    ),
    "trials": (
        nodes.multinomial(3.0, [0.5, 0.5], (2,)),
        [[1.0, 2.0], [2.0, 2.0]],
        r"that sum to 3.0, got \[2., 2.\] at \[1\]",
    ),
    "gamma": (nodes.gamma(1.0, 1.0, (2,)), [1.0, -0.5], r"positive, got -0.5 at \[1\]"),
    "beta": (nodes.beta(1.0, 1.0, (2,)), [0.5, 1.5], r"between 0 and 1, got 1.5 at \[1\]"),
}


@pytest.mark.parametrize("name", DATA)
def test_data_are_refused_or_become_nan_unless_they_do_not_count(name):
    node, values, message = DATA[name]
    model, values = graph.graph(x=node), jnp.asarray(values)
    with pytest.raises(ValueError, match=rf"data\['x'\] must be .*{message}"):
        graph.observe(model, {"x": values})
    traced = jax.jit(lambda x, w: graph.observe(model, {"x": x}, w)["x"][0])
    weights = np.ones(len(values))
    assert np.isnan(traced(values, {"x": weights})[-2:]).any()
    weights[1] = 0.0
    found = graph.observe(model, {"x": values}, {"x": weights})["x"][0]
    np.testing.assert_array_equal(traced(values, {"x": weights}), found)
    assert np.isfinite(found).all()


def test_a_traced_shape_below_0_gives_nan():
    def elbo(shape):
        model = graph.graph(q=nodes.gamma(shape, 1.0), x=nodes.gaussian(0.0, "q", plates=(2,)))
        method, data = message_passing(model, ("x",)), {"x": jnp.ones(2)}
        return method.sweep(method.init(None, data), data)[0].elbo

    found = jax.jit(jax.vmap(elbo))(jnp.array([1.0, -1.5]))
    assert np.isfinite(found[0])
    assert np.isnan(found[1])


def test_nan_is_not_refused():
    for support in (supports.COUNTS, supports.BINARY, supports.POSITIVE, supports.PROBABILITY):
        supports.check_inside(np.array([np.nan, 1.0]), support, "x")
    for support in (supports.ONE_HOT, supports.PROBABILITIES, supports.counts_of(1.0)):
        supports.check_inside(np.array([np.nan, 1.0]), support, "x")
    supports.check_inside(np.array([[np.nan, 0.0], [0.0, 1.0]]), supports.POSITIVE_DEFINITE, "x")
