"""The Pure-FEP transformer: every option changes what it claims to change, in perception and in
learning; layers learn without each other's gradients.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.models.blocks import OptionError
from vfejax.models.pure_fep.config import PureFEPConfig
from vfejax.models.pure_fep.learning import Observed
from vfejax.models.pure_fep.model import build, maps, perceive, surroundings
from vfejax.models.pure_fep.parameters import anatomy
from vfejax.models.pure_fep.trainer import learn, slow_slopes, trainer
from vfejax.training.losses import next_token_loss
from vfejax.types import Batch

pytestmark = pytest.mark.usefixtures("library_promotion")

VOCABULARY, LENGTH = 7, 6
TINY = PureFEPConfig(layers=2, max_layers=2, dim=8, spins=(0, 1), hidden=6, inference_steps=1)
QUICK = {"xla_backend_optimization_level": 0}  # compilation is all the cost


def _jit(function):
    return jax.jit(function, compiler_options=QUICK)


def _built(**options):
    return build(dataclasses.replace(TINY, **options), VOCABULARY, LENGTH, jnp.float64)


def _drawn(model):
    """Weights of which none is a special one; all layers are there."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.uniform(-1, 1, x.shape)), shapes)
    return params._replace(alive=jnp.ones_like(params.alive))


@functools.cache
def _logits(**options):
    model = _built(**options)
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (2, LENGTH))
    return np.asarray(_jit(lambda p: model.apply(p, tokens).logits)(_drawn(model)))


# What perception makes of its options. Parameters of the same shapes are the same numbers.
PERCEIVED = {
    "inference_steps": 3,
    "self_weight": 2.0,
    "belief_weight": 0.3,
    "temperature": 3.0,
    "output_temperature": 2.0,
    "log_variance_bound": 0.3,
    "position": "none",
    "spins": (1, 0),
    "tower_depth": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PERCEIVED)
def test_an_option_of_perception_changes_predictions(name):
    assert not np.allclose(_logits(**{name: PERCEIVED[name]}), _logits(), rtol=1e-3)


@pytest.mark.slow
def test_further_options_of_perception_change_predictions():
    for options in ({"position": "sinusoidal"}, {"tower_depth": 1, "tower_weight": 1.0}):
        assert not np.allclose(_logits(**options), _logits(), rtol=1e-3)
    deep = {"layers": 3, "max_layers": 3}
    two = _logits(**deep, tower_depth=2)
    assert not np.allclose(two, _logits(**deep, tower_depth=1), rtol=1e-3)
    assert not np.allclose(two, _logits(**deep, tower_depth=2, tower_decay=0.9), rtol=1e-3)


@pytest.mark.slow
def test_without_alignment_nobody_hears_of_another_token():
    logits = _logits(belief_weight=0.0)
    model = _built(belief_weight=0.0, position="none")
    params = _drawn(model)
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (2, LENGTH))
    alone = _jit(lambda t: model.apply(params, t).logits)(tokens[:, -1:])
    np.testing.assert_allclose(logits[:, -1:], alone, rtol=1e-9)


@pytest.mark.slow
def test_modes_of_embedding_and_output_are_made_of_each_other():
    """A hybrid without offsets is the bank, and so is a table that holds the bank; without a linear
    map, both outputs are divergences, and what it adds is the linear output.
    """
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (2, LENGTH))
    params = _drawn(_built(embedding="learned", output="both"))
    nothing = jax.tree.map(jnp.zeros_like, params.table)

    def logits(params, **options):
        model = _built(**options)
        return np.asarray(_jit(lambda p: model.apply(p, tokens).logits)(params))

    def outputs(**changes):
        return params._replace(readout=params.readout._replace(**changes))

    bank = logits(params._replace(table=None), embedding="bank", output="both")
    hybrid = logits(params._replace(table=nothing), embedding="hybrid", output="both")
    np.testing.assert_allclose(hybrid, bank, rtol=1e-12)
    copied = params._replace(table=params.readout.bank)
    np.testing.assert_allclose(logits(copied, output="both"), bank, rtol=1e-12)
    both, kl = logits(params, output="both"), logits(outputs(weights=None))
    np.testing.assert_allclose(
        logits(outputs(weights=nothing.mean.reshape(7, -1).T), output="both"), kl
    )
    linear = logits(outputs(bank=None), output="linear")
    np.testing.assert_allclose(both, kl + linear - params.readout.prevalence, rtol=1e-9, atol=1e-11)
    for other in (both, kl, linear):
        assert not np.allclose(other, bank, rtol=1e-3)


def test_the_bank_is_embedding_and_output_in_one():
    shapes = {
        name: jax.eval_shape(_built(embedding=name).init, jax.random.key(0))
        for name in ("bank", "learned", "hybrid")
    }
    assert shapes["bank"].table is None
    assert shapes["learned"].table is not None
    linear = jax.eval_shape(_built(output="linear").init, jax.random.key(0)).readout
    assert linear.bank is None
    assert linear.weights.shape == (TINY.dim, VOCABULARY)
    both = jax.eval_shape(_built(output="both").init, jax.random.key(0)).readout
    assert both.bank is not None
    assert both.weights is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 10}, r"dim must be a multiple of 4, the width of the irreps \(0, 1\): 8 or 12"),
        ({"dim": 3}, r"the width of the irreps \(0, 1\): 4, got 3"),
        ({"layers": 5}, "layers must be at most max_layers 2, got 5"),
        ({"spins": ()}, "spins must be one or more integers"),
        ({"spins": (-1,)}, "spins must be one or more integers of at least 0"),
        ({"embedding": "word"}, "embedding must be one of bank, learned, hybrid, got 'word'"),
        ({"output": "none"}, "output must be one of kl, linear, both"),
        ({"position": "rotary"}, "position must be one of frame, sinusoidal, none"),
        ({"prior_update": "both"}, "prior_update must be one of gradient, average"),
        ({"scaling": "adam"}, "scaling must be one of plain, fisher, rms"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1"),
        ({"momentum": 0.9, "memory": 0.8}, "memory must be above the square of momentum 0.9"),
        ({"spins": (0,)}, "position must be sinusoidal or none where all spins are 0"),
        ({"nudge": 0.0}, "nudge must be positive"),
        ({"temperature": -1.0}, "temperature must be positive"),
        ({"self_weight": 1e-30}, "self_weight must be between 1e-06 and 1e\\+06, got 1e-30"),
        ({"nudge": 1e30}, "nudge must be between 1e-06 and 1e\\+06, got 1e\\+30"),
        ({"tower_weight": 1e30}, "tower_weight must be at most 1e\\+06, got 1e\\+30"),
        ({"tower_decay": 2.0}, "tower_decay must be at most 1, got 2.0"),
        ({"log_variance_bound": 0.0}, "log_variance_bound must be above 0 and at most 20, got 0"),
    ],
)
def test_an_option_that_does_not_fit_is_named(options, message):
    with pytest.raises(OptionError, match=message):
        _built(**options)


@pytest.mark.parametrize(("vocabulary", "length"), [(0, 5), (5, 0)])
def test_nothing_to_read_is_refused(vocabulary, length):
    with pytest.raises(ValueError, match=r"(vocab_size|length) must be at least 1, got 0"):
        build(TINY, vocabulary, length)


@pytest.fixture(scope="module")
def slopes(library_promotion):
    """What is learned from one batch, as a function of the parameters: one program."""
    parts = anatomy(TINY, VOCABULARY, LENGTH, jnp.float64)
    tokens, targets = np.random.default_rng(2).integers(0, VOCABULARY, (2, 2, LENGTH))
    around = surroundings(jnp.asarray(tokens), jnp.arange(LENGTH)[None])
    observed = Observed(jnp.asarray(targets), jnp.ones((2, LENGTH)))

    @_jit
    def found(params):
        lessons, _ = learn(parts, params, around, observed)
        return slow_slopes(parts, params, around, lessons), lessons.terms.observation

    return found, Batch(tokens, None, None, targets)


def test_layers_learn_without_the_gradients_of_layers_above(slopes):
    """Another second layer: the first learns the same to the bit. Another first: the second does
    not, since it sees other beliefs.
    """
    params = _drawn(_built())
    plain, contract = jax.device_get((slopes[0](params)[0], params.layers.contract))

    def changed(index):
        scaled = contract.copy()
        scaled[index] *= 1.5
        layers = params.layers._replace(contract=scaled)
        return jax.device_get(slopes[0](params._replace(layers=layers))[0])

    def layer(tree, index):
        return jax.tree.map(lambda x: x[index], tree.layers)

    above, below = changed(1), changed(0)
    chex.assert_trees_all_equal(layer(above, 0), layer(plain, 0))
    chex.assert_trees_all_equal(above.table, plain.table)
    assert not np.allclose(layer(below, 1).contract, layer(plain, 1).contract)


def test_every_parameter_learns_and_layers_that_are_not_there_do_not(slopes):
    params = _drawn(_built())
    found = jax.device_get(slopes[0](params)[0])
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        assert np.any(leaf != 0) != ("alive" in jax.tree_util.keystr(path)), path
    found, _ = jax.device_get(slopes[0](params._replace(alive=np.asarray([1.0, 0.0]))))
    for leaf in jax.tree.leaves(found.layers):
        assert np.any(leaf[0] != 0)
        assert np.all(leaf[1] == 0)


def test_a_layer_learns_from_the_loss_of_its_prediction_before_targets_are_shown(slopes):
    params, model = _drawn(_built()), _built()
    _, losses = slopes[0](params)
    expected, _ = _jit(lambda p: next_token_loss(model, p, slopes[1]))(params)
    np.testing.assert_allclose(losses[-1], expected, rtol=1e-9)


@functools.cache
def _update(**options):
    """A compiled update, and the state that it starts from, without compiling what draws another
    start.
    """
    config = dataclasses.replace(TINY, **options)
    model = build(config, VOCABULARY, LENGTH, jnp.float64)
    method = trainer(model, config, lambda step: 1e-2, jax.random.key(1))
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return _jit(method.step), nothing._replace(params=_drawn(model))


def _stepped(windows, steps=1, **options):
    """Parameters after updates from one start, and the info of the last."""
    step, state = _update(**options)
    for _ in range(steps):
        state, info = step(state, windows)
    return state, info


@pytest.mark.slow
def test_the_loss_that_is_reported_is_of_predictions_made_before_targets_are_shown(rng):
    tokens, targets = rng.integers(0, VOCABULARY, (2, 2, LENGTH))
    mask = np.ones((2, LENGTH), bool)
    mask[1, :3] = False  # padding in front, which is moved behind
    batch, model = Batch(tokens, mask, None, targets), _built()
    state, info = _stepped(batch)
    expected, _ = _jit(lambda p: next_token_loss(model, p, batch))(_drawn(model))
    np.testing.assert_allclose(info.loss, expected, rtol=1e-9)
    assert info.loss == info.parts.cross_entropy
    assert (int(info.parts.num_tokens), int(state.step)) == (2 * LENGTH - 3, 1)


LEARNED = {
    "momentum": 0.5,
    "scaling": "fisher",
    "memory": 0.5,
    "prior_weight": 0.5,
    "prior_update": "average",
    "nudge": 1.0,
    "nudge_steps": 3,
    "average_gain": 1e9,  # one update goes all the way to the moments
}
# Where an option has something to act on.
STARTS = {"nudge_steps": {"nudge": 0.01}, "average_gain": {"prior_update": "average"}}
ELSEWHERE = {
    *("layers", "max_layers", "spawn_pressure", "merge_divergence", "cool_down"),  # test_growth.py
    *("dim", "hidden"),  # shapes
    *("embedding", "output", "tower_weight", "tower_decay"),  # tests of their own
}


def test_every_option_has_a_test_of_what_it_changes():
    names = {field.name for field in dataclasses.fields(PureFEPConfig)}
    assert names == PERCEIVED.keys() | LEARNED.keys() | ELSEWHERE


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNED)
def test_an_option_of_learning_changes_what_is_learned_and_no_prediction(name, rng):
    windows = rng.integers(0, VOCABULARY, (4, LENGTH + 1))
    steps = 3  # momentum and memory are what is kept of earlier ones
    start = STARTS.get(name, {})
    changed = start | {name: LEARNED[name]}
    (plain, _), (state, info) = (_stepped(windows, steps, **x) for x in (start, changed))
    (_, before), (_, first) = (_stepped(windows, **x) for x in (start, changed))
    np.testing.assert_allclose(first.loss, before.loss, rtol=1e-9)
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), plain.params, state.params)
    assert max(jax.tree.leaves(apart)) > 1e-6
    if name == "prior_weight":
        assert info.parts.diagnostics["prior_alignment"] > 0
    if name == "prior_update":
        assert max(jax.tree.leaves(apart.table)) > 1e-3
        assert max(jax.tree.leaves(apart.readout.bank)) > 1e-3


@pytest.mark.slow
def test_a_moving_average_takes_the_bank_to_the_moments_of_its_beliefs(rng):
    windows = rng.integers(0, VOCABULARY, (4, LENGTH + 1))
    gain = LEARNED["average_gain"]
    state, first = _stepped(windows, prior_update="average", average_gain=gain)
    model = _built()
    after, _ = _jit(lambda p: next_token_loss(model, p, windows))(state.params)
    assert after < first.loss


@pytest.mark.slow
def test_a_moving_average_leaves_a_bank_that_is_no_output_to_the_tokens_that_are_read():
    """Token 6 is only ever predicted."""
    windows = np.array([[0, 1, 2, 3, 4, 5, 6], [5, 3, 1, 0, 2, 4, 6]])
    options = {"prior_update": "average", "embedding": "bank", "output": "linear"}
    state, _ = _stepped(windows, **options)
    before = _drawn(_built(**options)).readout.bank
    for old, new in zip(before, state.params.readout.bank, strict=True):
        np.testing.assert_array_equal(new[6], old[6])
        assert np.all(np.any(new[:6] != old[:6], axis=(1, 2)))


@pytest.mark.slow
def test_a_report_shows_where_heads_look():
    shown = maps(TINY, VOCABULARY, LENGTH, jnp.float64)
    params = _drawn(_built())._replace(alive=jnp.asarray([1.0, 0.0]))
    panels = _jit(shown.values)(params, np.zeros((3, LENGTH), np.int32))
    assert {name: x.shape for name, x in panels.items()} == {
        "layer 0": (2, LENGTH - 1),
        "layer 1": (2, LENGTH - 1),
    }
    np.testing.assert_allclose(panels["layer 0"].sum(axis=1), 1.0, rtol=1e-9)
    assert np.all(panels["layer 1"] == 0)


@pytest.mark.slow
def test_a_tower_visits_layers_twice_and_draws_priors_to_ancestors():
    parts = anatomy(dataclasses.replace(TINY, tower_depth=1), VOCABULARY, LENGTH, jnp.float64)
    params = _drawn(_built(tower_depth=1))
    around = surroundings(jnp.zeros((1, LENGTH), jnp.int32), jnp.arange(LENGTH)[None])
    seen, _ = _jit(lambda p: perceive(parts, p, around))(params)
    assert seen.ancestors is not None
    first, second = (jax.tree.map(lambda x: x[0], q) for q in (seen.ancestors, seen.common))
    parent = jax.tree.map(lambda x: x[1], seen.ancestors)
    before, after = (np.abs(q.mean - parent.mean).mean() for q in (first, second))
    assert after < before


@pytest.mark.slow
@pytest.mark.parametrize("embedding", ["learned", "bank", "hybrid"])
def test_it_copies_what_it_has_read(embedding):
    """The second half of every text repeats the first: nothing but the past tells the answer."""
    half, vocabulary, steps = 4, 6, 200
    config = PureFEPConfig(
        layers=2, max_layers=2, dim=16, spins=(0, 0, 1, 1), hidden=32, embedding=embedding
    )
    rng = np.random.default_rng(0)
    first = rng.integers(0, vocabulary, (steps + 1, 16, half))
    windows = np.concatenate([first, first], axis=2).astype(np.int32)
    model = build(config, vocabulary, 2 * half - 1)
    method = trainer(model, config, lambda step: 2e-2, jax.random.key(1))

    @jax.jit
    def nats_after_training(windows):
        state = method.init(jax.random.key(0))
        state, _ = jax.lax.scan(method.step, state, windows[:-1])
        logits = model.apply(state.params, windows[-1, :, :-1]).logits
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), windows[-1, :, 1:, None], axis=-1)

    nats = np.asarray(nats_after_training(windows))
    assert nats[:, half - 1 :].mean() < 0.3  # guessing costs ln 6 = 1.8
    assert nats[:, : half - 1].mean() > np.log(vocabulary) - 0.3  # nobody knows these
