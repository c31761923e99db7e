"""Optimisers on four losses: AdamW, Nesterov's method, leapfrog momentum, relativistic descent.

Functions without noise (Rosenbrock's, a quadratic of condition 1e4) take 500 gradients from one
start, at every setting of a grid; the best value stands beside the median over other starts at the
same setting. Digits and text choose a rate on training data at seed 0, from a grid in factors of
two that grows while the best is at its edge, and are judged on three seeds by data never seen.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import language_models as texts
import numpy as np
import optax

from vfejax.data.batches import Batches, evaluation_windows
from vfejax.models import table
from vfejax.training.evaluate import evaluate
from vfejax.training.momentum import eval_params, leapfrog, relativistic
from vfejax.training.optimizer import adamw, decays, warmup_cosine
from vfejax.training.step import trainer

GRADIENTS, STARTS, DIMENSION = 500, 20, 50
STEPS, DIGIT_STEPS, WARMUP = 400, 600, 40
SEEDS = (0, 1, 2)
MOMENTUM, DECAY = 0.9, 1e-4
SMALL = {"dim": 48, "hidden": 44, "experts": 2, "layers": 3}  # of ResNet-BK
FIRST_RATES = {
    "AdamW": (1e-3, 2e-3, 4e-3, 8e-3),
    "Nesterov": (0.1, 0.2, 0.4, 0.8),
    "leapfrog": (0.1, 0.2, 0.4, 0.8),
    "relativistic": (0.1, 0.2, 0.4, 0.8),
}
DELTAS = {"relativistic": (1.0, 10.0, 100.0)}  # of networks

Row = dict[str, Any]
Result = Callable[[Row, Callable[[], Row]], Row]
"""The line of a run that is there, or that is made."""


def descent(arm: str, rate: Any, momentum: Any, delta: Any) -> optax.GradientTransformation:
    """An arm without weight decay and clip; for AdamW momentum is b1."""
    if arm == "AdamW":
        return optax.adam(rate, b1=momentum)
    if arm == "Nesterov":
        return optax.sgd(rate, momentum, nesterov=True)
    if arm == "leapfrog":
        return leapfrog(rate, momentum=momentum)
    return relativistic(rate, momentum=momentum, delta=delta)


def of_network(arm: str, rate: Any, delta: Any) -> optax.GradientTransformation:
    """An arm as `vfejax train` has it by default, with its own decay of matrices and gradients
    clipped at norm 1.
    """
    if arm == "AdamW":
        return adamw(rate)
    parts = (optax.clip_by_global_norm(1.0), optax.add_decayed_weights(DECAY, mask=decays))
    return optax.chain(*parts, descent(arm, rate, MOMENTUM, delta))


# --- functions without noise ---


def rosenbrock(x: jax.Array) -> jax.Array:
    """The banana valley: least at (1, 1)."""
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def quadratic(x: jax.Array) -> jax.Array:
    """Curvatures from 1e-4 to 1, evenly in the logarithm, in a basis that is none of the axes."""
    basis = np.linalg.qr(np.random.default_rng(1).standard_normal((DIMENSION, DIMENSION)))[0]
    return 0.5 * jnp.sum(jnp.logspace(-4, 0, DIMENSION) * (basis @ x) ** 2)


FUNCTIONS = {"rosenbrock": rosenbrock, "quadratic": quadratic}


def _grid(arm: str) -> np.ndarray:
    """Settings ``[n, 3]``: rate, momentum, delta."""
    rates = 2.0 ** np.arange(-16, 3) if arm != "AdamW" else 2.0 ** np.arange(-12, 2)
    momenta = (0.8, 0.9, 0.95, 0.98, 0.99)
    deltas = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4) if arm == "relativistic" else (0.0,)
    return np.array(list(itertools.product(rates, momenta, deltas)))


def _starts(name: str) -> np.ndarray:
    """The first start is the one that settings are chosen on."""
    rng = np.random.default_rng(0)
    if name == "rosenbrock":
        return np.concatenate([[[-2.0, 2.0]], rng.uniform(-2, 2, (STARTS, 2))])
    return rng.standard_normal((1 + STARTS, DIMENSION))


def function_row(name: str, arm: str) -> Row:
    """The best of a grid from one start, and what its setting does from others."""
    with jax.enable_x64(True):
        return _function_row(FUNCTIONS[name], arm, _starts(name))


def _function_row(loss_fn: Callable, arm: str, starts: np.ndarray) -> Row:
    def reached(setting: jax.Array, start: jax.Array) -> jax.Array:
        optimizer = descent(arm, *setting)

        def step(carry: Any, _: None) -> tuple[Any, None]:
            x, state = carry
            moves, state = optimizer.update(jax.grad(loss_fn)(x), state, x)
            return (x + moves, state), None

        (x, state), _ = jax.lax.scan(step, (start, optimizer.init(start)), None, length=GRADIENTS)
        value = loss_fn(eval_params(x, state))
        return jnp.where(jnp.isfinite(value), value, jnp.inf)

    grid = _grid(arm)
    values = np.asarray(jax.jit(jax.vmap(reached, (0, None)))(grid, starts[0]))
    best = grid[np.argmin(values)]
    others = np.asarray(jax.jit(jax.vmap(reached, (None, 0)))(best, starts[1:]))
    setting = dict(zip(("rate", "momentum", "delta"), map(float, best), strict=True))
    found = {"best": float(values.min()), "median of starts": float(np.median(others))}
    return {"setting": setting, "settings tried": len(grid), **found}


# --- networks ---


@cache
def digits(seed: int) -> tuple[np.ndarray, ...]:
    """Training, validation and test halves of scikit-learn's digits: pixels and classes of each."""
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(classes))
    pixels, classes = pixels[order].astype(np.float32) / 16, classes[order].astype(np.int32)
    cuts = (1077, 1437)  # 60 %, 20 %, 20 %
    return tuple(part for pair in zip(*(np.split(x, cuts) for x in (pixels, classes)), strict=True)
                 for part in pair)  # fmt: skip


def _classifier(params: Any, pixels: jax.Array) -> jax.Array:
    hidden = jnp.tanh(pixels @ params["kernel_in"] + params["bias_in"])
    return hidden @ params["kernel_out"] + params["bias_out"]


@cache
def _digits_program(arm: str) -> Callable:
    def run(key: jax.Array, rate: Any, delta: Any, parts: tuple[jax.Array, ...]) -> Any:
        pixels, classes, *held = parts
        optimizer = of_network(arm, warmup_cosine(rate, WARMUP, DIGIT_STEPS, 0.1), delta)
        first, draws = jax.random.split(key)
        keys = jax.random.split(first)
        params = {
            "kernel_in": jax.random.normal(keys[0], (64, 64)) / 8,
            "bias_in": jnp.zeros(64),
            "kernel_out": jax.random.normal(keys[1], (64, 10)) / 8,
            "bias_out": jnp.zeros(10),
        }

        def loss_fn(params: Any, pixels: jax.Array, classes: jax.Array) -> jax.Array:
            logits = _classifier(params, pixels)
            return optax.softmax_cross_entropy_with_integer_labels(logits, classes).mean()

        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            params, state = carry
            rows = jax.random.randint(key, (64,), 0, len(classes))
            slope = jax.grad(loss_fn)(params, pixels[rows], classes[rows])
            moves, state = optimizer.update(slope, state, params)
            return (optax.apply_updates(params, moves), state), None

        start = (params, optimizer.init(params))
        (params, state), _ = jax.lax.scan(step, start, jax.random.split(draws, DIGIT_STEPS))
        params = eval_params(params, state)

        def judged(pixels: jax.Array, classes: jax.Array) -> jax.Array:
            right = jnp.argmax(_classifier(params, pixels), axis=-1) == classes
            return jnp.stack([loss_fn(params, pixels, classes), jnp.mean(right)])

        return jnp.stack([judged(*held[i : i + 2]) for i in (0, 2)])

    return jax.jit(run)


def digits_run(arm: str, rate: float, delta: float, seed: int, text: None) -> Row:
    """Loss on validation and test digits, and the share of test digits that is right."""
    key, parts = jax.random.key(seed), digits(seed)
    (valid, _), (test, right) = np.asarray(_digits_program(arm)(key, rate, delta, parts)).tolist()
    return {"chosen by": valid, "loss": test, "accuracy": right}


@cache
def _text_program(arm: str, argument: str) -> tuple[Callable, Callable, Callable]:
    """First state, a chunk of updates at a rate, the loss of a split."""
    corpus = texts.load(argument).corpus
    config = table.MODELS["resnet-bk"].config(**SMALL)
    model = table.build("resnet-bk", config, corpus.vocabulary.size, texts.LENGTH)

    def method(rate: Any, delta: Any) -> Any:
        schedule = warmup_cosine(rate, WARMUP, STEPS, 0.1)
        return trainer(model, of_network(arm, schedule, delta), jax.random.key(1))

    def advance(state: Any, windows: jax.Array, rate: Any, delta: Any) -> Any:
        return jax.lax.scan(method(rate, delta).step, state, windows)[0]

    def init(key: jax.Array, delta: Any) -> Any:
        return method(1.0, delta).init(key)

    def loss(state: Any, windows: jax.Array) -> jax.Array:
        params = method(1.0, 0.0).weights(state)
        sums = evaluate(model, params, windows, corpus.vocabulary.padding_id)
        return sums.nats / sums.num_tokens

    return jax.jit(init), jax.jit(advance), jax.jit(loss)


def text_run(arm: str, rate: float, delta: float, seed: int, text: str) -> Row:
    """Loss on the last tenth of the training text, which is not trained on, and on validation."""
    corpus = texts.load(text).corpus
    init, advance, loss = _text_program(arm, text)
    tokens = corpus.train.tokens
    cut = len(tokens) * 9 // 10
    sampler = Batches(tokens[:cut], texts.BATCH, texts.LENGTH, seed=seed)
    state = init(jax.random.key(seed), jnp.float32(delta))
    for step in range(0, STEPS, texts.CHUNK):
        windows = sampler.at(step, texts.CHUNK)
        state = advance(state, windows, jnp.float32(rate), jnp.float32(delta))
    losses = []
    for part in (tokens[cut:], corpus.valid.tokens):
        padding = corpus.vocabulary.padding_id
        windows = evaluation_windows(part, texts.LENGTH, texts.BATCH, padding, limit=240)
        losses.append(float(loss(state, windows)))
    return {"chosen by": losses[0], "loss": losses[1]}


NETWORKS = {"digits": digits_run, "text": text_run}


def _job(task: str, arm: str, rate: float, delta: float, seed: int, text: str | None) -> Row:
    """What identifies a run: the text by its name and content, not by where it is."""
    named = {} if text is None else {"text": texts.load(text).name}
    digest = {} if text is None else {"digest": texts.load(text).digest}
    return {
        "piece": task,
        **named,
        **digest,
        "arm": arm,
        "rate": rate,
        "delta": delta,
        "seed": seed,
    }


def _chosen(task: str, arm: str, text: str | None, result: Result) -> tuple[float, float]:
    """The rate and delta of the least loss on data to choose by, at seed 0."""
    run = NETWORKS[task]

    def tried(rate: float, delta: float) -> float:
        job = _job(task, arm, rate, delta, 0, text)
        found = result(job, lambda: run(arm, rate, delta, 0, text))["chosen by"]
        return found if np.isfinite(found) else float("inf")

    best: tuple[float, float, float] | None = None
    for delta in DELTAS.get(arm, (0.0,)):
        losses = {rate: tried(rate, delta) for rate in FIRST_RATES[arm]}
        while (rate := min(losses, key=losses.__getitem__)) in (min(losses), max(losses)):
            beyond = rate / 2 if rate == min(losses) else rate * 2
            losses[beyond] = tried(beyond, delta)
        best = min(best or (np.inf, 0.0, 0.0), (losses[rate], rate, delta))
    assert best is not None
    return best[1:]


def runs(pieces: list[str], text: str, result: Result) -> Iterator[Row]:
    """Every run that was asked for; most are lines that are there already the next time."""
    for name in FUNCTIONS:
        for arm in FIRST_RATES if name in pieces else ():
            yield result({"piece": name, "arm": arm}, partial(function_row, name, arm))
    for task, run in NETWORKS.items():
        source = text if task == "text" else None
        for arm in FIRST_RATES if task in pieces else ():
            rate, delta = _chosen(task, arm, source, result)
            for seed in SEEDS:
                job = _job(task, arm, rate, delta, seed, source)
                yield result(job, partial(run, arm, rate, delta, seed, source))
