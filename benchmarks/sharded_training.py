"""Eight devices beside one: loss and weights of every model after 50 updates, under every rule of
``vfejax train --shard``; and what ``--remat`` saves and costs.

    python benchmarks/sharded_training.py [--dtype float64] [--models NAME ...] [--rules NAME ...]
    python benchmarks/sharded_training.py --remat [--models NAME ...]

The models are the small ones of the table, on random tokens. *Loss* is the largest relative
difference of any of the 50 losses; *weights* that of any leaf, by norms. *Parts* are those of
``--accumulation``; with them blocks are computed again on the eight devices (``--remat``) and not
on the one. *Share* is what a device holds of the state, in units of an eighth. float64, because
rounding errors of float32 sums in another order grow along 50 updates of AdamW.

``--remat`` compiles the gradient of the loss of every model of default width with twelve blocks
three times: everything is kept for the backward pass, or products with weights are, as models do,
or only what blocks were given, as with ``--remat``. It prints the bytes of temporary arrays, and
beside the gradient that keeps everything the time and the norm of the difference.
"""

import argparse
import os
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

import jax
import jax.numpy as jnp
import numpy as np
from memory_per_device import LENGTH, SYMBOLS, build

from vfejax.models import table
from vfejax.models.table import MODELS
from vfejax.numerics import tree_norm
from vfejax.runs.chunk import compiled
from vfejax.training import sharding
from vfejax.training.losses import next_token_loss, training_batch
from vfejax.training.optimizer import adamw
from vfejax.training.step import trainer
from vfejax.types import Batch, PyTree, Trainer, TrainState

STEPS, BATCH, WIDTH, TOKENS = 50, 16, 8, 11  # WIDTH: tokens that are read at once
BLOCKS, SEQUENCES, ROUNDS = 12, 4, 5  # of --remat
KEPT = ("everything", "products", "inputs")  # of blocks, for the backward pass


def method_of(name: str, dtype: jnp.dtype, *, parts: int, remat: bool) -> Trainer:
    """How the small model learns."""
    entry, key = MODELS[name], jax.random.key(1)
    model = table.build(name, entry.tiny, TOKENS, WIDTH, dtype)
    if entry.trainer is not None:
        return entry.trainer(model, entry.tiny, lambda step: jnp.asarray(1e-2, dtype), key)
    if remat:
        model = model._replace(apply=model.recompute or model.apply)
    return trainer(model, adamw(lambda step: jnp.asarray(2e-3, dtype)), key, accumulation=parts)


def trained(method: Trainer, first: TrainState, rule: str, count: int) -> tuple[PyTree, Any, float]:
    """Losses, weights, and the largest share of the state that a device holds."""
    mesh = sharding.data_mesh(BATCH, jax.devices()[:count])
    places = sharding.RULES[rule](mesh, first)
    state = sharding.place(first, places)
    windows = np.random.default_rng(0).integers(0, TOKENS, (STEPS, BATCH, WIDTH + 1))
    chunk = compiled(sharding.in_scope(mesh, method.step), state)
    state, infos = chunk(state, sharding.split_batches(mesh, windows.astype(np.int32)), STEPS)
    held = [
        shard.data.nbytes for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards
    ]
    share = sum(held) / sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return jax.device_get(infos.loss), jax.device_get(state.params), share


def deviation(found: PyTree, wanted: PyTree) -> float:
    """The largest relative difference of a leaf, by norms."""

    def of_leaf(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-300))

    return max(jax.tree.leaves(jax.tree.map(of_leaf, found, wanted)))


def equality(names: list[str], rules: list[str], dtype: jnp.dtype) -> Iterator[str]:
    yield f"{jnp.dtype(dtype).name}, {STEPS} updates, batch {BATCH}, jax {jax.__version__}"
    yield "| model | parts | rule | loss | weights | share |"
    yield "|---|---|---|---|---|---|"
    for name in names:
        for parts in (1,) if MODELS[name].trainer else (1, 2):
            alone = method_of(name, dtype, parts=parts, remat=False)
            first = jax.device_get(jax.jit(alone.init)(jax.random.key(0)))
            loss, weights, _ = trained(alone, first, "replicated", 1)
            for rule in rules if parts == 1 else rules[-1:]:
                method = method_of(name, dtype, parts=parts, remat=parts > 1)
                losses, found, share = trained(method, first, rule, 8)
                differences = (
                    f"{np.max(np.abs(losses - loss) / np.abs(loss)):.1e}",
                    f"{deviation(found, weights):.1e}",
                )
                yield f"| {name} | {parts} | {rule} | {' | '.join(differences)} | {share:.3f} |"


def gradient_program(name: str, params: PyTree, batch: Batch, kept: str) -> Any:
    """The compiled gradient of the loss that keeps everything, products or inputs of blocks."""
    model = build(name, BLOCKS, remat=kept == "inputs")
    gradient = jax.grad(lambda p: next_token_loss(model, p, batch, jax.random.key(1), None)[0])
    if kept != "everything":
        return jax.jit(gradient).lower(params).compile()
    with mock.patch.object(jax, "checkpoint", lambda step, **_: step):
        return jax.jit(gradient).lower(params).compile()


def recomputation(names: list[str]) -> Iterator[str]:
    yield f"{BLOCKS} blocks, batch {SEQUENCES}, length {LENGTH}, float32, jax {jax.__version__}"
    columns = (*(f"{kept}, MB" for kept in KEPT), *(f"time, {kept}" for kept in KEPT[1:]))
    yield f"| model | {' | '.join(columns)} | gradient |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    tokens = np.random.default_rng(0).integers(0, SYMBOLS, (SEQUENCES, LENGTH + 1))
    batch = training_batch(jnp.asarray(tokens, jnp.int32), None)
    for name in names:
        params = jax.jit(build(name, BLOCKS, remat=False).init)(jax.random.key(0))
        programs = [gradient_program(name, params, batch, kept) for kept in KEPT]
        found = [program(params) for program in programs]
        apart = [
            tree_norm(jax.tree.map(jnp.subtract, gradient, found[0])) / tree_norm(found[0])
            for gradient in found[1:]
        ]
        seconds: list[list[float]] = [[] for _ in KEPT]
        for _ in range(ROUNDS):
            for taken, program in zip(seconds, programs, strict=True):
                began = time.process_time()
                jax.block_until_ready(program(params))
                taken.append(time.process_time() - began)
        first, *others = map(min, seconds)
        sizes = [f"{p.memory_analysis().temp_size_in_bytes / 1e6:.1f}" for p in programs]
        times = [f"{other / first:.2f}" for other in others]
        yield f"| {' | '.join([name, *sizes, *times, f'{float(max(apart)):.1e}'])} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS)
    parser.add_argument("--rules", nargs="+", choices=sharding.RULES, default=[*sharding.RULES])
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    parser.add_argument("--remat", action="store_true")
    options = parser.parse_args()
    if options.remat:
        deep = [name for name in MODELS if name not in ("reversible", "pure-fep")]
        lines = recomputation(options.models or deep)
    else:
        jax.config.update("jax_enable_x64", options.dtype == "float64")
        lines = equality(options.models or [*MODELS], options.rules, jnp.dtype(options.dtype))
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
