"""Claims of toroidal attention."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from claim_rows.measure import (
    KEPT,
    PART,
    REFUTED,
    Found,
    call_of,
    interval,
    judged,
    published,
    ratio,
    turns,
)

from vfejax.attention.blockwise import blockwise
from vfejax.attention.encodings import geometric, mixed, standard
from vfejax.attention.orthogonality import global_orthogonality, local_orthogonality
from vfejax.attention.rope import Encoding
from vfejax.attention.toroidal import dense, toroidal_attention
from vfejax.data import batches, corpus
from vfejax.models import table
from vfejax.training.optimizer import adamw
from vfejax.training.step import trainer

LENGTH = 64


def periodic() -> Found:
    """Perplexity beside the strongest rotary encoding, from the study's table of differences."""
    found, low = {}, {}
    for task in ("necklace", "ring", "seam", "open"):
        name = f"{task} | toroidal less rotary-short"
        row = published("toroidal_attention", "Periodic data", name)
        mean, half = (float(x) for x in re.findall(r"-?\+?[\d.]+", row[2].strip("*")))
        found[task] = 100 * (math.exp(mean) - 1)
        low[task] = 100 * math.exp(mean) * half
    figures = [f"{found[task]:+.1f} ± {low[task]:.1f} % ({task})" for task in found]
    best = -max(found["necklace"], found["ring"])
    verdict = KEPT if best >= 5 else PART if best > 0 else REFUTED
    reason = "less is gained where the data closes than is lost where it does not"
    return Found(", ".join(figures), f"{verdict}: {reason}")


def temporary(method, n: int, depth: int) -> int:
    """Bytes that attention and its gradient set aside beside arguments and results."""
    x = jax.ShapeDtypeStruct((1, n, 8, 32), jnp.float32)

    def both(query, key, value, cotangent):
        def attend(*arrays):
            return toroidal_attention(
                *arrays, depth=depth, slope=1.0, circumference=n, method=method
            )

        return jax.vjp(attend, query, key, value)[1](cotangent)

    compiled = jax.jit(both).lower(x, x, x, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def memory() -> Found:
    """How memory grows with tokens and platters."""
    ours = {(n, d): temporary(blockwise(), n, d) for n, d in ((1024, 2), (4096, 2), (1024, 8))}
    theirs = {(n, d): temporary(dense, n, d) for n, d in ((256, 2), (1024, 2), (256, 8))}
    figures = []
    for name, found, n in (("block by block", ours, 1024), ("as defined", theirs, 256)):
        along = math.log(found[4 * n, 2] / found[n, 2], 4)
        across = math.log(found[n, 8] / found[n, 2], 4)
        size = found[1024, 2] / 2**20
        figures.append(f"{name} N^{along:.2f} D^{across:.2f}, {size:,.0f} MiB for 1,024 tokens")
        if name == "block by block":
            verdict = KEPT if along <= 2 and across <= 1 else REFUTED
    return Found("; ".join(figures), verdict)


def _bare(channels: int, circumference: int, depth: int) -> Encoding:
    """Both axes in every pair, at the usual rates and without Gram-Schmidt."""
    pairs = channels // 2
    rates = np.pi * (1 + np.arange(pairs) % depth) / depth
    return standard(channels)._replace(depth=rates)


def orthogonality() -> Found:
    """One less the cosine between the axes, over sizes of heads, rings and stacks."""
    scores: dict[tuple[str, str], list[float]] = {}
    for channels in (16, 32, 64, 80):
        for n in (128, 512, 2048):
            for depth in (2, 4, 8):
                made = {"own pairs": geometric, "Gram-Schmidt": mixed, "neither": _bare}
                for name, make in made.items():
                    encoding = make(channels, n, depth)
                    small = 1 - local_orthogonality(encoding)
                    far = 1 - global_orthogonality(encoding, n, depth)
                    scores.setdefault((name, "small steps"), []).append(small)
                    scores.setdefault((name, "any steps"), []).append(far)
    figures = [
        f"{name}, {steps}: {min(x):.2f} to {max(x):.2f}" for (name, steps), x in scores.items()
    ]
    least = min(scores["own pairs", "any steps"])
    return Found("; ".join(figures), KEPT if least >= 0.98 else PART if least >= 0.88 else REFUTED)


def caching() -> Found:
    """The next token from a cache, beside reading the whole context again."""
    figures = []
    model = table.build("toroidal", table.MODELS["toroidal"].config(window=512), 96, 512)
    params = jax.jit(model.init)(jax.random.key(0))
    for n in (64, 512):
        tokens = jnp.asarray(np.random.default_rng(0).integers(0, 96, (1, n), np.int32))
        again, _ = call_of(lambda p, x: model.apply(p, x, None).logits[:, -1], params, tokens)
        state = model.init_decode(params, 1)
        cached, _ = call_of(model.decode, params, state, tokens[:, 0])
        found = ratio(turns({"again": again, "cached": cached}), "again", "cached")
        figures.append(f"{found} times at {n} tokens")
    return Found("; ".join(figures), judged(found, 2, "it grows with the context"))


def gradients(updates: int = 50) -> Found:
    """The largest norm of a gradient in the first updates, before any clip."""
    text = corpus.load_text(None, "character", length=LENGTH)
    model = table.build("toroidal", table.MODELS["toroidal"].config(), text.vocabulary.size, LENGTH)
    optimizer = adamw(2e-3, clip_norm=1e9)
    method = trainer(model, optimizer, jax.random.key(1), padding=text.vocabulary.padding_id)
    init = jax.jit(method.init)
    run = jax.jit(lambda state, windows: jax.lax.scan(method.step, state, windows)[1])
    largest, last = [], []
    for seed in range(3):
        windows = batches.Batches(text.train.tokens, 12, LENGTH, seed=seed).at(0, updates)
        norms = np.asarray(run(init(jax.random.key(seed)), windows).gradient_norm)
        largest.append(norms.max())
        last.append(norms[-10:].mean())
    figure = (
        f"largest {interval(largest, 1).lstrip('+')}, mean of the last ten of {updates} updates "
        f"{interval(last, 1).lstrip('+')}, three seeds"
    )
    return Found(figure, KEPT if max(largest) < 10 else REFUTED)
