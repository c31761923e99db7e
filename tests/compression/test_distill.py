"""Distillation: its loss by hand, in parts, with padding; a teacher that neither learns nor
guesses; a student that stays itself.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vfejax.compression import distill
from vfejax.training.step import trainer
from vfejax.types import Batch, Layers, Prediction, SequenceModel

VOCABULARY, WEIGHT, TEMPERATURE = 5, 0.6, 2.5


def _bigram(width, layers, *, noise=0.0, extra=0.0, statistics=True):
    """Logits from a table of states, turned by one matrix per layer; the states are shown. A key
    brings noise. Its own term is the square of a mean, or of a weight where it has no statistics.
    """

    def init(key):
        keys = jax.random.split(key, 3)
        shapes = {"table": (VOCABULARY, width), "turns": (layers, width, width)}
        shapes |= {"out": (width, VOCABULARY)}
        return {
            name: jax.random.normal(key, shape, float)
            for key, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def summarize(sums):
        return {"extra": extra * (sums["logits"] / sums["tokens"]) ** 2}, {}

    def watch(params, batch, key):
        x = params["table"][batch.tokens]
        _, hidden = jax.lax.scan(lambda x, turn: (jnp.tanh(x @ turn),) * 2, x, params["turns"])
        logits = hidden[-1] @ params["out"]
        if key is not None:
            logits = logits + noise * jax.random.normal(key, logits.shape, logits.dtype)
        layers = Layers(hidden, jnp.abs(hidden[..., :2]))
        if not statistics:
            return Prediction(logits, {"extra": extra * params["out"][0, 0] ** 2}, {}), layers
        mask = jnp.ones(batch.tokens.shape, bool) if batch.mask is None else batch.mask
        sums = {
            "logits": jnp.sum(jnp.where(mask, logits[..., 1], 0.0)),
            "tokens": jnp.sum(mask, dtype=float),
        }
        return Prediction(logits, *summarize(sums), sums), layers

    return SequenceModel(
        init,
        lambda *inputs: watch(*inputs)[0],
        lambda params, size: params["table"][:size],
        lambda params, state, tokens: (params["table"][tokens] @ params["out"], state),
        7,
        summarize if statistics else None,
        watch=watch,
    )


@pytest.fixture
def windows(rng):
    """Rows of unequal length, which end with the padding 0."""
    tokens = rng.integers(1, VOCABULARY, (8, 6))
    return tokens * (np.arange(6) < [[6], [2], [4], [5], [6], [3], [2], [5]])


def _log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _soft(student, teacher, temperature):
    q, p = _log_softmax(student / temperature), _log_softmax(teacher / temperature)
    return temperature**2 * (np.exp(p) * (p - q)).sum(-1)


def test_soft_nats_are_the_divergence_of_softened_predictions(rng, dtype):
    student, teacher = rng.standard_normal((2, 3, 4, VOCABULARY))
    soft = jax.jit(lambda s, t: distill.soft_nats(s, t, np.float64(3.0)))
    found = soft(student.astype(dtype), teacher)
    assert found.dtype == dtype
    # Differences of log-probabilities, summed: some units in the last place of numbers of order 1.
    np.testing.assert_allclose(
        found, _soft(student, teacher, 3.0), rtol=0, atol=30 * jnp.finfo(dtype).eps
    )


def test_the_slope_of_soft_nats_is_the_temperature_times_the_difference_of_predictions(rng):
    student, teacher = rng.standard_normal((2, VOCABULARY))
    slope = jax.jit(jax.grad(lambda x: distill.soft_nats(x, teacher, 4.0)))(student)
    difference = np.exp(_log_softmax(student / 4)) - np.exp(_log_softmax(teacher / 4))
    np.testing.assert_allclose(slope, 4 * difference, rtol=1e-13, atol=1e-15)


def test_soft_nats_at_a_large_temperature_are_half_the_variance_of_the_difference(rng):
    student, teacher = rng.standard_normal((2, VOCABULARY))
    # The next order falls as 1 / T; T^2 amplifies the rounding of a divergence of 1e-6.
    found = jax.jit(distill.soft_nats)(student, teacher, 1e3)
    np.testing.assert_allclose(found, np.var(student - teacher) / 2, rtol=5e-3)
    single = jax.jit(distill.soft_nats)(*np.float32([student, teacher]), 1e3)
    np.testing.assert_allclose(single, found, rtol=0, atol=3e-7 * 1e3**2)


def test_soft_nats_keep_nan_leave_out_padding_and_know_impossible_tokens():
    logits = np.asarray([[0.0, 1.0], [np.nan, 0.0], [np.nan, 0.0], [0.0, -np.inf]])
    counts = np.asarray([True, True, False, True])

    @jax.jit
    def told(student, logits, same):
        def padding(x):
            found = distill.soft_nats(x, logits, 1.0, counts)
            return found[2], found

        (_, found), slope = jax.value_and_grad(padding, has_aux=True)(student)
        own = jax.value_and_grad(lambda x: distill.soft_nats(x, same, 2.0))(same)
        return found, slope, *own

    same = np.asarray([0.0, -np.inf])
    found, slope, value, own_slope = jax.device_get(told(np.zeros((4, 2)), logits, same))
    np.testing.assert_array_equal(slope[2], 0)  # padding, whatever the logits are
    assert np.isnan(found).tolist() == [False, True, False, False]
    assert found[2] == 0
    np.testing.assert_allclose(found[3], np.log(2), rtol=1e-15)
    assert value == 0
    assert not own_slope.any()


def _by_hand(student, teacher, params, batch, counts, options):
    """The loss of distillation, term by term, in NumPy."""

    @jax.jit
    def watched(params, batch):
        own = student.watch(params["student"], batch, None)
        return own, teacher.watch(params["teacher"], batch._replace(targets=None), None)

    (said, shown), (told, aims) = jax.device_get(watched(params, batch))
    number = counts.sum()
    log_q = _log_softmax(said.logits)
    hard = -np.take_along_axis(log_q, batch.targets[..., None], -1)[..., 0]
    soft = _soft(said.logits, told.logits, options["temperature"])
    weight = options["weight"]
    loss = ((1 - weight) * hard + weight * soft)[counts].sum() / number
    for name, maps in (("hidden", params["projection"]["hidden"]), ("resolvent", None)):
        errors = []
        for pair, (i, j) in enumerate(((0, 1), (1, 3))):  # two layers learn from four
            own, aim = getattr(shown, name)[i][counts], getattr(aims, name)[j][counts]
            own = own if maps is None else own @ maps[pair]
            errors.append(np.square(own - aim).sum() / np.square(aim).sum())
        loss += options[f"{name}_weight"] * np.mean(errors)
    return loss + said.losses["extra"]


OPTIONS = {"temperature": TEMPERATURE, "weight": WEIGHT} | {
    "hidden_weight": 0.3,
    "resolvent_weight": 0.2,
}


@pytest.mark.parametrize("statistics", [True, False], ids=["statistics", "means"])
def test_the_loss_is_that_by_hand_in_one_piece_and_in_parts(windows, statistics):
    student = _bigram(3, 2, extra=0.1, statistics=statistics)
    teacher = _bigram(4, 4, noise=1.0, extra=0.1)
    model = distill.distillation(student, teacher, padding=0, **OPTIONS)
    key = jax.random.key(0)
    params = jax.device_get(jax.jit(model.init)(key))
    methods = [
        trainer(
            model,
            optax.sgd(0.5),
            jax.random.key(1),
            padding=0,
            accumulation=count,
            trained=distill.trainable(params),
        )
        for count in (1, 4)
    ]

    @jax.jit
    def steps(state):
        return [method.step(state, windows) for method in methods]

    state = jax.jit(methods[0].init)(key)
    (whole, info), (parts, other) = jax.device_get(steps(state))
    batch = Batch(windows[:, :-1], windows[:, :-1] != 0, None, windows[:, 1:])
    counts = windows[:, 1:] != 0
    expected = _by_hand(student, teacher, params, batch, counts, OPTIONS)
    np.testing.assert_allclose(info.loss, expected, rtol=1e-12)
    chex.assert_trees_all_close((parts, other), (whole, info), rtol=1e-10, atol=1e-13)
    chex.assert_trees_all_equal(whole.params["teacher"], state.params["teacher"])
    for name in ("student", "projection"):
        for before, after in zip(
            *map(jax.tree.leaves, (state.params[name], whole.params[name])), strict=True
        ):
            assert not np.array_equal(before, after)
    assert set(info.parts.losses) == {"extra", "distillation", "hidden", "resolvent"}


def test_a_teacher_has_no_gradient_and_no_place_in_the_optimiser():
    model = distill.distillation(_bigram(3, 1), _bigram(4, 1))
    params = jax.jit(model.init)(jax.random.key(0))
    batch = Batch(np.ones((1, 2), int), targets=np.ones((1, 2), int))
    slope = jax.jit(jax.grad(lambda p, b: model.apply(p, b, None).losses["distillation"]))(
        params, batch
    )
    slope = jax.device_get(slope)
    assert all(not x.any() for x in jax.tree.leaves(slope["teacher"]))
    method = trainer(
        model, optax.adam(0.1), jax.random.key(1), trained=distill.trainable(params, ("out",))
    )
    moments = jax.jit(method.init)(jax.random.key(0)).optimizer_state[0].mu
    assert moments["teacher"] == {"table": None, "turns": None, "out": None}
    assert moments["student"]["out"] is None
    assert moments["student"]["table"] is not None
    # Models whose weights are a single array.
    one = distill.trainable({"student": 1.0, "teacher": 1.0})
    assert one == {"student": True, "teacher": False}


def test_without_targets_a_taught_student_is_the_student():
    student = _bigram(3, 1, noise=1.0)
    model = distill.distillation(student, _bigram(4, 1)._replace(apply=None))
    params = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
    own, tokens, key = params["student"], np.asarray([[1, 2, 3]]), jax.random.key(2)
    expected = jax.jit(student.apply)(own, Batch(tokens), key)
    for batch in (tokens, Batch(tokens)):
        chex.assert_trees_all_equal(jax.jit(model.apply)(params, batch, key), expected)
    state = model.init_decode(params, 2)
    np.testing.assert_array_equal(state, student.init_decode(own, 2))
    found, _ = jax.jit(model.decode)(params, state, tokens[0])
    np.testing.assert_array_equal(found, jax.jit(student.decode)(own, state, tokens[0])[0])
    assert model.max_length == 7
    assert model.read is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0 and finite, got 0.0"),
        ({"weight": 1.5}, "weight must be at least 0 and at most 1, got 1.5"),
        ({"weight": float("nan")}, "weight must be at least 0 and at most 1, got nan"),
        ({"hidden_weight": -1.0}, "hidden_weight must be at least 0 and finite, got -1.0"),
        ({"resolvent_weight": 1.0}, "resolvent_weight needs a teacher that shows its blocks"),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        distill.distillation(_bigram(3, 1), _bigram(4, 1)._replace(watch=None), **options)


def test_pairs_that_do_not_fit_are_named():
    student, teacher = _bigram(3, 1), _bigram(3, 1)
    key = jax.random.key(0)
    blind = teacher._replace(
        watch=lambda *inputs: (teacher.apply(*inputs), Layers(jnp.zeros((1, 1, 1, 3))))
    )
    with pytest.raises(ValueError, match="needs a teacher with a resolvent in its blocks"):
        jax.eval_shape(distill.distillation(student, blind, resolvent_weight=1.0).init, key)
    params = jax.eval_shape(distill.distillation(student, teacher).init, key)
    tokens = jax.ShapeDtypeStruct((1, 9), int)
    batch = Batch(tokens, targets=tokens)
    with pytest.raises(ValueError, match="the teacher reads at most 7 tokens, got 9"):
        jax.eval_shape(distill.distillation(student, teacher).apply, params, batch)

    def narrow(params, batch, key):
        found = teacher.apply(params, batch, key)
        return found._replace(logits=found.logits[..., 1:])

    model = distill.distillation(student, teacher._replace(apply=narrow, max_length=None))
    with pytest.raises(ValueError, match="the same vocabulary, got 5 and 4 tokens"):
        jax.eval_shape(model.apply, params, batch)
