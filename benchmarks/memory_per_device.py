"""Memory per device of a training against the number of devices, under the rules of
``vfejax train --shard``.

    python benchmarks/memory_per_device.py [--model NAME] [--batch-size 16] [--layers 4] [--remat]
    python benchmarks/memory_per_device.py --shares

Nothing is trained: the chunk of steps that ``vfejax train`` runs is compiled for shapes, on up to
eight devices of one host, and says what it needs on each. *State* is weights and optimiser state,
beside the smallest share possible (1 / n of all); *temporary* are the arrays within a step. What
every device holds in whole, because no axis can be divided by the number of devices, is counted and
named. ``--shares`` compiles nothing, and prints what a device holds of the state of every model
with its default options, in units of 1 / n, under zero3.
"""

import argparse
import os
from dataclasses import replace
from typing import Any, NamedTuple

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

import jax
import jax.numpy as jnp

from vfejax.models import table
from vfejax.models.table import MODELS
from vfejax.runs.chunk import compiled
from vfejax.training import sharding
from vfejax.training.optimizer import adamw
from vfejax.training.step import trainer
from vfejax.types import SequenceModel, Trainer, TrainState

SYMBOLS, LENGTH, STEPS = 96, 64, 10
DEPTH = {"quantum": "blocks"}  # the option that counts blocks; layers elsewhere


class Setting(NamedTuple):
    """A training: its method, its batches ``[steps, batch_size, length + 1]``."""

    method: Trainer
    batch_size: int
    length: int = LENGTH
    num_steps: int = STEPS


def build(name: str, layers: int | None = None, *, remat: bool = False) -> SequenceModel:
    """A model of the table with its default options, and another depth."""
    options = MODELS[name].config()
    if layers is not None:
        changes: dict[str, Any] = {DEPTH.get(name, "layers"): layers}
        if name == "koopman":
            changes["operators"] = tuple(i for i in options.operators if i < layers)
        options = replace(options, **changes)
    model = table.build(name, options, SYMBOLS, LENGTH)
    return model._replace(apply=model.recompute) if remat else model


def method_of(name: str, model: SequenceModel) -> Trainer:
    """The model's own way to learn, or AdamW."""
    own, key = MODELS[name].trainer, jax.random.key(1)
    if own is not None:
        return own(model, MODELS[name].config(), lambda step: jnp.float32(1e-2), key)
    return trainer(model, adamw(lambda step: jnp.float32(2e-3)), key)


def program(setting: Setting, rule: str, num_devices: int) -> tuple[Any, TrainState]:
    """The compiled chunk of steps, and the shapes of its state with their places. Nothing is
    computed.

    What it computes, moves and needs: ``as_text()``, ``cost_analysis()``, ``memory_analysis()``.
    """
    mesh = sharding.data_mesh(num_devices, jax.devices()[:num_devices])
    shapes = jax.eval_shape(setting.method.init, jax.random.key(0))
    state = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        shapes,
        sharding.RULES[rule](mesh, shapes),
    )
    batches = jax.ShapeDtypeStruct(
        (setting.num_steps, setting.batch_size, setting.length + 1),
        jnp.int32,
        sharding=jax.NamedSharding(mesh, jax.P(None, "data")),
    )
    step = sharding.in_scope(mesh, setting.method.step)
    return compiled(step, state).lower(state, batches, setting.num_steps).compile(), state


def shares(counts: list[int]) -> None:
    """The table of ``--shares``."""
    print(f"| model | state, kB | {' | '.join(map(str, counts))} | whole on each of {counts[-1]} |")
    print(f"|---|---|{'---|' * len(counts)}---|")
    for name in MODELS:
        method = method_of(name, build(name))
        state = jax.eval_shape(method.init, jax.random.key(0))
        row, whole = [], ""
        for count in counts:
            mesh = jax.sharding.AbstractMesh((count,), ("data",))
            found = sharding.footprint(state, sharding.zero3(mesh, state))
            row.append(f"{count * found.per_device / found.total:.3f}")
            weights = [key.removeprefix("params/") for key in found.whole if "params/" in key]
            whole = f"{sum(found.whole.values())} B ({', '.join([*weights, 'counters'])})"
        print(f"| {name} | {found.total / 1e3:.0f} | {' | '.join(row)} | {whole} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="resnet-bk")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--shares", action="store_true")
    options = parser.parse_args()
    if options.shares:
        shares([count for count in options.devices if count > 1])
        return
    model = build(options.model, options.layers, remat=options.remat)
    setting = Setting(method_of(options.model, model), options.batch_size)
    print(f"{options.model}, batch {options.batch_size}, length {LENGTH}, jax {jax.__version__}")
    print("| devices | rule | state, kB | x n / all | temporary, kB | whole on each |")
    print("|---|---|---|---|---|---|")
    names: dict[str, int] = {}
    for count in options.devices:
        for rule in sharding.RULES if count > 1 else ["replicated"]:
            chunk, state = program(setting, rule, count)
            found = sharding.footprint(state, jax.tree.map(lambda x: x.sharding, state))
            needs = chunk.memory_analysis()
            share = count * found.per_device / found.total
            whole = ""
            if rule == "zero3":
                whole = f"{sum(found.whole.values())} B in {len(found.whole)} leaves"
                names |= found.whole
            print(
                f"| {count} | {rule} | {found.per_device / 1e3:.1f} | {share:.3f} | "
                f"{needs.temp_size_in_bytes / 1e3:.0f} | {whole} |",
                flush=True,
            )
    for name, size in names.items():
        print(f"whole on each: {name}, {size} B")


if __name__ == "__main__":
    main()
