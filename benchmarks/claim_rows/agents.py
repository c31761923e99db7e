"""Claims of the population of Gaussian agents and of the VFE transformer."""

import ast
import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from claim_rows.measure import (
    KEPT,
    REFUTED,
    ROOT,
    UNTESTED,
    Found,
    call_of,
    interval,
    judged,
    ratio,
    runs,
    short,
    turns,
)

from vfejax.agents.free_energy import Weights, free_energy
from vfejax.agents.population import Population
from vfejax.beliefs.gaussian import Gaussian, kl_divergence, push_forward
from vfejax.geometry import irreps
from vfejax.geometry.transport import frames
from vfejax.models import table
from vfejax.training.losses import next_token_loss

GROUP, K, TEMPERATURE = irreps.so3((1,)), 3, 10.0
STUDY = "examples/free_energy_study/measured/runs.jsonl"


def population(num: int, dtype: type = np.float32) -> tuple[np.ndarray, ...]:
    """Means, factors and frames of random agents."""
    rng = np.random.default_rng(num)
    chol = np.tril(0.2 * rng.standard_normal((num, K, K)), -1) + np.eye(K)
    arrays = rng.standard_normal((num, K)), chol, rng.uniform(-1, 1, (num, 3))
    return tuple(x.astype(dtype) for x in arrays)


def energy(mean: jax.Array, chol: jax.Array, phi: jax.Array) -> jax.Array:
    """The alignment energy of all agents."""
    belief = Gaussian(mean, chol)
    agents = Population(belief, belief, phi)
    return free_energy(agents, GROUP, weights=Weights(0, 1, 0, 0), temperature=TEMPERATURE)


def own_energy(i: jax.Array, mean: jax.Array, chol: jax.Array, phi: jax.Array) -> jax.Array:
    """What agent i pays, in the straightforward way: its divergence from every other."""
    common = push_forward(Gaussian(mean, chol), frames(-phi, GROUP))
    mine = jax.tree.map(lambda x: jnp.broadcast_to(x[i], x.shape), common)
    kl = kl_divergence(mine, common)
    logits = jnp.where(jnp.arange(kl.size) == i, -jnp.inf, -kl / TEMPERATURE)
    return jax.nn.softmax(logits) @ kl


def slopes(function, first: int = 0):
    """Value and gradient by the three arrays of agents."""
    return jax.value_and_grad(function, argnums=tuple(range(first, first + 3)))


def batching() -> Found:
    """All agents in one program, beside one agent after the other."""
    num = 256
    arrays = [jnp.asarray(x) for x in population(num)]
    together, _ = call_of(slopes(energy), *arrays)
    alone = jax.jit(slopes(own_energy, 1)).lower(jnp.asarray(0), *arrays).compile()
    places = [jnp.asarray(i) for i in range(num)]

    def in_turn():
        return jax.block_until_ready([alone(i, *arrays) for i in places])

    total = sum(float(value) for value, _ in in_turn())
    assert abs(total - float(together()[0])) < 1e-4 * abs(total), total
    found = ratio(turns({"in turn": in_turn, "together": together}), "in turn", "together")
    device = jax.devices()[0].platform
    figure = f"{found} times, {num} agents, on a {device}"
    if device != "cpu":
        return Found(figure, judged(found, 50))
    text = (ROOT / "docs/results/agents.md").read_text()
    (gpu,) = re.findall(r"on the same GPU\) 512 agents.*?as long, the same", text, re.DOTALL)
    pairs = re.findall(r"pair by pair takes (\d+) times", " ".join(gpu.split()))[0]
    figure += f"; on an H200 512 agents are {pairs} times as fast as PyTorch pair by pair there"
    return Found(figure, f"{UNTESTED}: on a CPU; the row takes a GPU where there is one")


def fusion() -> Found:
    """The same program with and without XLA's fusion, and from Python."""
    figures, ratios = [], []
    for num in (64, 512):
        arrays = [jnp.asarray(x) for x in population(num)]
        fused, _ = call_of(slopes(energy), *arrays)
        plain, _ = call_of(slopes(energy), *arrays, options={"xla_disable_hlo_passes": "fusion"})
        found = ratio(turns({"plain": plain, "fused": fused}), "plain", "fused")
        figures.append(f"{found} times with {num} agents")
        ratios.append(found.median)
    call = slopes(energy)
    eager = {"eager": lambda: jax.block_until_ready(call(*arrays)), "fused": fused}
    dispatch = ratio(turns(eager, rounds=3), "eager", "fused")
    figures.append(f"beside operations sent one by one from Python {short(dispatch.median)} times")
    return Found("; ".join(figures), judged(min(ratios), 2))


@cache
def training_loss(dtype: type, without: str = ""):
    """Loss of the default model on windows of its size, compiled with its gradient, without a pass
    of the compiler; the weights are kept in float32.
    """
    model = table.build("resnet-bk", table.MODELS["resnet-bk"].config(), 96, 64, dtype)
    params = jax.jit(model.init)(jax.random.key(0))
    windows = np.random.default_rng(0).integers(0, 96, (12, 65), np.int32)
    loss = jax.value_and_grad(lambda p, x: next_token_loss(model, p, x, None, None)[0])
    options = {"xla_disable_hlo_passes": without} if without else None
    return call_of(loss, params, windows, options=options)


def half_precision() -> Found:
    """Loss and gradient of the default model in bfloat16 beside float32."""
    calls = {d.__name__: training_loss(d)[0] for d in (jnp.float32, jnp.bfloat16)}
    found = ratio(turns(calls), "float32", "bfloat16")
    values = [float(call()[0]) for call in calls.values()]
    memory = [training_loss(d)[1].memory_analysis() for d in (jnp.float32, jnp.bfloat16)]
    less = memory[0].temp_size_in_bytes / memory[1].temp_size_in_bytes
    figure = (
        f"{found} times as fast, {less:.2f} times less memory, loss {values[1] - values[0]:+.4f}"
    )
    device = jax.devices()[0].platform
    verdict = f"{UNTESTED}: no accelerator; a CPU gains nothing" if device == "cpu" else ""
    return Found(f"{figure}, on a {device}", verdict or judged(found, 2))


def _rules(source: str) -> int:
    """Lines of functions that are derivatives written by hand."""
    written = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        and re.search(r"_jvp|_vjp|_backward|value_and_grad", node.name)
    ]
    return sum(node.end_lineno - node.lineno + 1 for node in written)


def autodiff() -> Found:
    """Lines of derivatives, and the gradient against differences in float64."""
    package = ROOT / "vfejax"
    modules = [*package.glob("*.py"), *package.glob("agents/*.py"), *package.glob("beliefs/*.py")]
    lines = sum(_rules(path.read_text()) for path in [*modules, *package.glob("geometry/*.py")])
    with jax.enable_x64(True):
        arrays = [jnp.asarray(x) for x in population(16, np.float64)]
        gradient = jax.jit(jax.grad(energy, argnums=(0, 1, 2)))(*arrays)
        value, errors = jax.jit(energy), []
        for seed in range(8):
            rng = np.random.default_rng(seed)
            along = [
                np.tril(rng.standard_normal(x.shape))
                if x.ndim == 3
                else rng.standard_normal(x.shape)
                for x in arrays
            ]
            sides = [
                value(*(x + h * d for x, d in zip(arrays, along, strict=True)))
                for h in (1e-6, -1e-6)
            ]
            slope = float(sides[0] - sides[1]) / 2e-6
            exact = sum(float(jnp.vdot(g, d)) for g, d in zip(gradient, along, strict=True))
            errors.append(abs(slope - exact) / abs(exact))
    figure = (
        f"{lines} lines, all of them rules for memory or for singular points; differences agree to "
        f"{max(errors):.0e} in 8 directions"
    )
    return Found(figure, KEPT if lines < 1300 and max(errors) < 1e-6 else REFUTED)


def perplexity() -> Found:
    """Perplexity of the VFE transformer over that of a transformer, from the kept study."""
    losses: dict[tuple[str, str], dict[int, float]] = {}
    for run in runs(STUDY):
        if run["job"]["stage"] == "final" and run["job"]["steps"] == 2000:
            key = run["job"]["arm"], run["job"]["text"]
            losses.setdefault(key, {})[run["job"]["seed"]] = run["loss"]
    figures, worst = [], 0.0
    for other in ("gpt-modern", "transformer"):
        for text in ("wikitext", "shakespeare"):
            mine, theirs = losses["vfe", text], losses[other, text]
            seeds = sorted(mine.keys() & theirs.keys())
            change = [mine[seed] - theirs[seed] for seed in seeds]
            worst = max(worst, float(np.exp(np.mean(change))))
            figures.append(
                f"{np.exp(np.mean(change)):.3f} of {other} on {text} ({interval(change)} nats)"
            )
    return Found("; ".join(figures), judged(183 / 178 / worst, 1.0, "by character, not by word"))
