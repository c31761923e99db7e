import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.inference.message_passing.coordinate_ascent import fit
from vfejax.inference.message_passing.streaming import robbins_monro, stream
from vfejax.inference.worked_models import mixture

NUM, BATCH = 400, 40


@pytest.mark.slow
def test_batches_find_the_fit_of_all_data():
    rng = np.random.default_rng(1)
    points = rng.normal(size=(NUM, 1)) + 6 * rng.integers(0, 2, size=(NUM, 1))
    whole = mixture.gaussian_mixture(NUM, 1, 2)
    start = mixture.start_from_points(jax.random.key(0), jnp.asarray(points), 2)
    data = {"point": jnp.asarray(points)}
    exact, _ = jax.jit(lambda: fit(whole, whole.init(None, data, start=start), data, 50))()
    online = stream(
        mixture.gaussian_mixture(BATCH, 1, 2), ("label", "point"), BATCH / NUM, robbins_monro(10.0)
    )
    batches = jnp.asarray(rng.permuted(np.tile(np.arange(NUM), (20, 1)), axis=1))
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
    # the mean of 200 points is known to 0.07; the last batches weigh a fiftieth
    np.testing.assert_allclose(means[order[0]], wanted[order[1]], atol=0.05)
    # what a batch of 40 says of the ELBO of 400 scatters
    assert abs(np.mean(infos.elbo[-10:]) - float(exact.elbo)) < 20


@pytest.mark.slow
def test_a_batch_that_is_everything_is_a_sweep():
    points = {"point": jnp.linspace(-2.0, 3.0, 6)[:, None]}
    method = mixture.gaussian_mixture(6, 1, 2)
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
        stream(mixture.gaussian_mixture(6, 1, 2), local, fraction)
