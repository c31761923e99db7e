"""Claims of ResNet-BK, and the product of all that it promises."""

import itertools
import math
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from claim_rows.agents import training_loss
from claim_rows.measure import (
    KEPT,
    PART,
    REFUTED,
    UNTESTED,
    Found,
    Spread,
    call_of,
    interval,
    judged,
    published,
    ratio,
    runs,
    short,
    spread,
    turns,
)
from language_models import ARMS
from resolvent_gradients import blended, compare, gradient

from vfejax import routing
from vfejax.models import table
from vfejax.spectral.resolvent import resolvent_diagonal
from vfejax.training.losses import next_token_loss

SETTINGS = "default", "one narrow expert, int3", "small", "smallest"
KEPT_FILES = "benchmarks/measured/compression/runs.jsonl"
CHAINS, LENGTH, WIDTH, Z = 8, 2048, 64, 1j


def diagonal(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    """The library's."""
    return resolvent_diagonal(a, b, c, Z)


def plain_diagonal(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    """The same two recursions without a rule for their derivative."""
    d = (a - Z).T
    k = jnp.pad((b * c).T, ((1, 0), (0, 0))).astype(d.dtype)

    def step(g, x):
        site, coupling = x
        g = 1 / (site - coupling * g)
        return g, g

    start = jnp.zeros_like(d[0])
    left = jax.lax.scan(step, start, (d, k))[1]
    after = jnp.roll(k, -1, axis=0)
    right = jax.lax.scan(step, start, (d, after), reverse=True)[1]
    before = jnp.pad(left[:-1], ((1, 0), (0, 0)))
    behind = jnp.pad(right[1:], ((0, 1), (0, 0)))
    return (1 / (d - k * before - after * behind)).T


def with_gradient(function: Any, weights: np.ndarray, *arrays: np.ndarray) -> Any:
    """Value and gradient of ``sum Re(conj(w) f)``, compiled."""

    def readout(*x):
        return jnp.sum(jnp.real(jnp.conj(weights) * function(*x)))

    return call_of(jax.value_and_grad(readout, argnums=tuple(range(len(arrays)))), *arrays)[0]


@cache
def resolvent_times() -> tuple[dict[str, np.ndarray], float]:
    """Seconds of value and gradient at 2,048 sites: exact, differentiated, by the empirical rule,
    and attention; and how far the first two are apart.
    """
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((CHAINS, LENGTH)), rng.uniform(0.5, 1.5, (CHAINS, LENGTH - 1))
    a, b = a.astype(np.float32), b.astype(np.float32)
    w = (rng.standard_normal((2, CHAINS, LENGTH)) * [[[1]], [[1j]]]).sum(0).astype(np.complex64)
    heads = [rng.standard_normal((CHAINS, LENGTH, 1, WIDTH)).astype(np.float32) for _ in range(4)]

    def attention(query, key, value):
        return jax.nn.dot_product_attention(query, key, value, is_causal=True)

    calls = {
        "exact": with_gradient(diagonal, w, a, b, b),
        "differentiated": with_gradient(plain_diagonal, w, a, b, b),
        "rule": with_gradient(lambda a, b, c: blended(a, b, c, Z, 1.0), w, a, b, b),
        "value": call_of(diagonal, a, b, b)[0],
        "attention": with_gradient(attention, heads[3], *heads[:3]),
    }
    pairs = zip(calls["exact"]()[1], calls["differentiated"]()[1], strict=True)
    error = max(float(jnp.linalg.norm(x - y) / jnp.linalg.norm(x)) for x, y in pairs)
    return turns(calls, rounds=7), error


@cache
def updates() -> dict[str, np.ndarray]:
    """Seconds of loss and gradient of models of equal size on one window of 2,048 tokens, one
    change after the other.
    """
    windows = np.random.default_rng(0).integers(0, 96, (1, LENGTH + 1), np.int32)
    arms = {
        "attention": ("gpt-modern", {}, jnp.float32),
        "gates": (*ARMS["gate, one expert"], jnp.float32),
        "experts": (*ARMS["gate"], jnp.float32),
        "bfloat16": (*ARMS["gate"], jnp.bfloat16),
    }
    calls = {}
    for name, (kind, options, dtype) in arms.items():
        model = table.build(kind, table.MODELS[kind].config(**options), 96, LENGTH, dtype)
        params = jax.jit(model.init)(jax.random.key(0))

        def loss(p, x, model=model):
            return next_token_loss(model, p, x, None, None)[0]

        calls[name] = call_of(jax.value_and_grad(loss), params, windows)[0]
    return turns(calls, rounds=7)


def attention() -> Found:
    """The resolvent, and the whole model, beside attention at 2,048 tokens."""
    core = ratio(resolvent_times()[0], "attention", "exact")
    model = ratio(updates(), "attention", "gates")
    figure = f"resolvent alone {core} times, whole model {model} times"
    least = min(core.median, model.median)
    reason = "the operator is, the model is not" if core.median >= 6.7 > least else ""
    return Found(figure, judged(least, 6.7, reason))


def analytic() -> Found:
    """The exact adjoint and the empirical rule beside automatic differentiation."""
    seconds, error = resolvent_times()
    exact = ratio(seconds, "differentiated", "exact")
    rule = ratio(seconds, "differentiated", "rule")
    rng = np.random.default_rng(0)
    a, readout = rng.standard_normal((32, 512)), rng.standard_normal((2, 32, 512))
    with jax.enable_x64(True):
        truth = gradient(resolvent_diagonal, a, Z, readout)
        wrong = [
            gradient(lambda *x, blend=blend: blended(*x, grad_blend=blend), a, Z, readout)
            for blend in (0.0, 1.0)
        ]
    errors = [spread(compare(x, truth)[1]) for x in wrong]
    loop = float(published("resolvents", "Resolvents", "512")[7].rstrip("x"))
    figure = (
        f"exact adjoint {exact} times as fast (they agree to {error:.0e}), and beside a loop in "
        f"PyTorch at 512 sites {loop:.0f} times; the empirical rule {rule} times, {errors[1]} off "
        f"in relative norm; -G^2 is {errors[0]} off"
    )
    if exact.median >= 50:
        return Found(figure, KEPT)
    reason = "over a loop in Python, not over compiled differentiation"
    return Found(figure, f"{PART}: {reason}" if loop >= 50 else REFUTED)


def experts() -> Found:
    """One of ten experts beside one of ten times the width, and in the whole model one of four."""
    rng, num, dim, hidden = np.random.default_rng(0), 10, 128, 128
    x = rng.standard_normal((4096, dim)).astype(np.float32)
    inner = (0.05 * rng.standard_normal((num, dim, hidden))).astype(np.float32)
    outer = (0.05 * rng.standard_normal((num, hidden, dim))).astype(np.float32)
    logits = rng.standard_normal((4096, num)).astype(np.float32)

    def sparse(x, inner, outer, logits):
        chosen = routing.top_k(logits, 1)
        return jnp.sum(routing.expert_feed_forward(x, chosen, inner, outer) ** 2)

    def whole(x, inner, outer, logits):
        first = jnp.moveaxis(inner, 0, 1).reshape(dim, num * hidden)
        return jnp.sum((jax.nn.gelu(x @ first) @ outer.reshape(num * hidden, dim)) ** 2)

    def slope(function):
        return call_of(jax.value_and_grad(function, argnums=(0, 1, 2)), x, inner, outer, logits)[0]

    layer = ratio(turns({"whole": slope(whole), "sparse": slope(sparse)}), "whole", "sparse")
    model = ratio(updates(), "gates", "experts")
    figure = (
        f"one of ten in a layer alone {layer} times, one of four in the whole model {model} times"
    )
    return Found(figure, judged(model, 10, "mixers, head and embedding have no experts"))


def file_sizes() -> dict[tuple[str, str], tuple[list[float], list[float]]]:
    """For every setting and text of the kept files: how many times smaller they are than their
    teacher's, and the change of the loss in per cent, by seed.
    """
    kept = [run for run in runs(KEPT_FILES) if not run["job"]["setting"].endswith("alone")]
    teachers = {
        (run["job"]["text"], run["job"]["seed"]): run
        for run in kept
        if run["job"]["setting"] == "teacher"
    }
    found = {}
    for setting, text in itertools.product(SETTINGS, ("topics", "shakespeare")):
        mine = [
            run for run in kept if (run["job"]["setting"], run["job"]["text"]) == (setting, text)
        ]
        # Several rates were tried with the first seed; the loss on the training text chose.
        first = min((run for run in mine if run["job"]["seed"] == 0), key=_training_loss)
        mine = [run for run in mine if run["job"]["rate"] == first["job"]["rate"]]
        beside = [teachers[text, run["job"]["seed"]] for run in mine]
        pairs = list(zip(beside, mine, strict=True))
        sizes = [teacher["size"] / run["size"] for teacher, run in pairs]
        found[setting, text] = sizes, [100 * (x["loss"] / t["loss"] - 1) for t, x in pairs]
    return found


def _training_loss(run: dict[str, Any]) -> float:
    """What a rate is chosen by; training that diverged comes last."""
    return math.inf if math.isnan(run["training_loss"]) else run["training_loss"]


def compression() -> Found:
    """Bytes against loss, from the kept files."""
    found = file_sizes()
    figures = [
        f"{np.mean(sizes):.1f} times at {interval(losses, 1)} % ({text})"
        for (_, text), (sizes, losses) in found.items()
    ]
    free = [np.mean(s) for s, loss in found.values() if np.mean(loss) <= 0]
    most = max(np.mean(s) for s, _ in found.values())
    reason = f"{max(free):.0f} times is free, {most:.0f} times costs loss"
    return Found("; ".join(figures), judged(max(free), 100, reason))


def kernels() -> Found:
    """What fusion and half precision make of the default model's update, together."""
    fused, _ = training_loss(jnp.float32)
    plain, _ = training_loss(jnp.float32, "fusion")
    half, _ = training_loss(jnp.bfloat16)
    seconds = turns({"plain": plain, "fused": fused, "half": half})
    both = ratio(seconds, "plain", "half")
    figure = (
        f"fusion {ratio(seconds, 'plain', 'fused')} times, bfloat16 "
        f"{ratio(seconds, 'fused', 'half')} times, both {both} times"
    )
    if jax.devices()[0].platform == "cpu":
        return Found(figure, f"{UNTESTED}: no accelerator; on a CPU fusion is all that there is")
    return Found(figure, judged(both, 10))


def overall() -> Found:
    """The product of the measured factors on one workload."""
    seconds = updates()
    factors: dict[str, Spread] = {
        "recurrence for attention": ratio(seconds, "attention", "gates"),
        "experts": ratio(seconds, "gates", "experts"),
        "half precision": ratio(seconds, "experts", "bfloat16"),
    }
    whole = spread(seconds["attention"] / np.minimum(seconds["experts"], seconds["bfloat16"]))
    smaller = max(np.mean(s) for s, loss in file_sizes().values() if np.mean(loss) <= 0)
    product = whole.median * float(smaller)
    figure = (
        ", ".join(f"{name} {short(x.median)}" for name, x in factors.items())
        + f": an update {whole} times as fast; with files {smaller:.0f} times smaller at no loss "
        f"{short(product)} in all, of 1e9"
    )
    reason = "seconds times bytes, which nobody pays as one; the other factors have no part in it"
    return Found(figure, f"{REFUTED if product < 1e6 else PART}: {reason}")
