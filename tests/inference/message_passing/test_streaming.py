import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.inference.message_passing import couplings, graph, nodes
from vfejax.inference.message_passing.coordinate_ascent import fit, message_passing
from vfejax.inference.message_passing.streaming import robbins_monro, stream

NUM, BATCH, EPOCHS = 200, 40, 15


def mixture(num_points):
    """A mixture of two Gaussians in one dimension."""
    model = graph.graph(
        weights=nodes.dirichlet(jnp.ones(2)),
        mean=nodes.gaussian(0.0, 0.01, plates=(2,)),
        precision=nodes.gamma(1.0, 1.0, plates=(2,)),
        label=nodes.categorical("weights", plates=(num_points,)),
        point=couplings.mixture("label", nodes.gaussian("mean", "precision")),
    )
    return message_passing(model, ("point",))


@pytest.mark.slow
def test_batches_find_the_fit_of_all_data():
    rng = np.random.default_rng(1)
    points = rng.normal(size=NUM) + 6 * rng.integers(0, 2, size=NUM)
    whole = mixture(NUM)
    start = {"label": (jnp.asarray(np.stack([points, 4 - points], axis=1)),)}
    data = {"point": jnp.asarray(points)}
    exact, _ = jax.jit(lambda: fit(whole, whole.init(None, data, start=start), data, 30))()
    online = stream(mixture(BATCH), ("label", "point"), BATCH / NUM, robbins_monro(10.0))
    batches = jnp.asarray(rng.permuted(np.tile(np.arange(NUM), (EPOCHS, 1)), axis=1))
    batches = batches.reshape(-1, BATCH)

    @jax.jit
    def run():
        first = {"point": data["point"][batches[0]]}
        near = {"label": tuple(x[batches[0]] for x in start["label"])}
        state = online.init(None, first, near)
        return jax.lax.scan(
            lambda s, i: online.step(s, {"point": data["point"][i]}), state, batches
        )

    state, infos = run()
    means, wanted = (b.statistics["mean"][0].ravel() for b in (state.beliefs, exact))
    order = np.argsort(means), np.argsort(wanted)
    # the mean of 100 points is known to 0.1; the last batches weigh a fiftieth
    np.testing.assert_allclose(means[order[0]], wanted[order[1]], rtol=0, atol=0.07)
    # what a batch of 40 says of the ELBO of 200 scatters
    assert abs(np.mean(infos.elbo[-10:]) - float(exact.elbo)) < 20


@pytest.mark.slow
def test_a_batch_that_is_everything_is_a_sweep():
    points = {"point": jnp.linspace(-2.0, 3.0, 6)}
    method = mixture(6)
    online = stream(method, ("label", "point"), 1.0, lambda step: jnp.ones_like(step))

    @jax.jit
    def run():
        state = online.init(jax.random.key(0), points)
        one, _ = online.step(state, points)
        # The schedule from the middle: first the labels, then what all points share.
        other = state.beliefs
        for names in (("label",), ("weights",), ("mean",), ("precision",)):
            other = method.update(other, points, names)
        return one.beliefs.statistics["mean"][0], other.statistics["mean"][0]

    np.testing.assert_allclose(*run(), rtol=1e-12)


@pytest.mark.parametrize(
    ("local", "fraction", "message"),
    [
        (("z",), 0.5, "local: no node 'z', there are weights"),
        (("label",), 0.0, "fraction must be above 0 and at most 1, got 0.0"),
    ],
)
def test_what_does_not_fit_is_refused(local, fraction, message):
    with pytest.raises(ValueError, match=message):
        stream(mixture(6), local, fraction)
