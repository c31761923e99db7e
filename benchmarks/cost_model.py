"""What a training step would cost on 64 and 1,024 devices, on paper.

    python benchmarks/cost_model.py
    python benchmarks/cost_model.py --model gpt-modern --sequences 64 --length 512 \
        --set dim=768 --set layers=12

The step is compiled for 2, 4 and 8 devices of this host, each with as many sequences (weak
scaling); no weight is allocated and nothing runs. Out of the compiled program come, for one
device: bytes of state and of temporaries, bytes that its instructions write, and every collective
with its payload, loops multiplied out. Payloads are fitted as ``a + b n`` at 2 and 4 devices, held
against 8, and extrapolated. Operations of matrix products are counted in what JAX traces; traffic
is twice what is written, and the state.

    time = max(operations / FLOPS, traffic / MEMORY) + wire / LINK + collectives x LATENCY x log2 n

with nothing overlapped: an upper bound. On the wire an all-reduce moves ``2 (n - 1) / n`` of its
payload, a gather, a scatter or an exchange ``(n - 1) / n``, a permutation all of it. The machine is
an argument; by default an NVIDIA H100 in float32 with 400 Gbit/s for each device between hosts.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from typing import NamedTuple

COMPILED, PREDICTED = (2, 4, 8), (64, 1024)
SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f64": 8, "s64": 8, "c64": 8, "c128": 16}
COLLECTIVES = {
    "all-reduce": 2.0,
    "all-gather": 1.0,
    "reduce-scatter": 1.0,
    "all-to-all": 1.0,
    "collective-permute": 1.0,
}
"""Share of its payload that each moves for one device, but for the factor ``(n - 1) / n``."""
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"}


class Instruction(NamedTuple):
    """One line of a compiled program: bytes of its result, its kind, and the line."""

    size: int
    kind: str
    line: str


def _size(types: str) -> int:
    """Bytes of a type such as ``(f32[4,8]{1,0}, s32[])``."""
    total = 0
    for name, dims in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", types):
        total += SIZES.get(name, 4) * math.prod(int(x) for x in dims.split(",") if x)
    return total


def parse(text: str) -> tuple[str, dict[str, dict[str, Instruction]]]:
    """The entry computation of a compiled program, and the instructions of all by name."""
    found: dict[str, dict[str, Instruction]] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = found.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif body := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(", line):
            current[body[2]] = Instruction(_size(body[3]), body[4], line)
    return entry, found


def _written(instruction: Instruction, computations: dict[str, dict[str, Instruction]]) -> int:
    """Bytes that an instruction writes; for one that replaces a slice, the slice."""
    owner, inside = instruction, None
    if called := re.search(r"calls=%?([\w.\-]+)", instruction.line):
        inside = computations[called[1]]
        owner = next(x for x in inside.values() if "ROOT " in x.line)
    if owner.kind == "dynamic-update-slice" and inside is not None:
        operands = re.findall(r"%([\w.\-]+)", owner.line.split(owner.kind + "(")[1])
        return inside[operands[1]].size
    return instruction.size


def program_cost(text: str) -> tuple[float, Counter, Counter]:
    """Bytes written in one call of a compiled program, payloads of its collectives, and their
    number, with loops multiplied out.
    """
    entry, computations = parse(text)
    traffic, payloads, counts = 0.0, Counter(), Counter()

    def visit(name: str, times: int) -> None:
        nonlocal traffic
        for instruction in computations[name].values():
            kind = instruction.kind.removesuffix("-start")
            if kind in COLLECTIVES:
                payloads[kind] += times * instruction.size
                counts[kind] += times
            if kind not in FREE:
                traffic += times * _written(instruction, computations)
            if kind == "while":
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.line)
                body = re.search(r"body=%?([\w.\-]+)", instruction.line)
                visit(body[1], times * (int(trips[1]) if trips else 1))
            elif kind in ("call", "conditional"):
                for branch in re.findall(
                    r"(?:to_apply|true_computation)=%?([\w.\-]+)", instruction.line
                ):
                    visit(branch, times)

    visit(entry, 1)
    return traffic, payloads, counts


def compiled_cost(arguments: argparse.Namespace, rule: str) -> dict:
    """In a process with some devices: what XLA makes of one step."""
    import dataclasses

    import jax
    import jax.numpy as jnp
    import optax
    from jax.sharding import NamedSharding, PartitionSpec

    from vfejax.models import table
    from vfejax.runs.chunk import compiled
    from vfejax.training import sharding
    from vfejax.training.cost import product_flops
    from vfejax.training.step import trainer

    count = jax.device_count()
    entry = table.MODELS[arguments.model]
    given = dict(pair.split("=", 1) for pair in arguments.set)
    defaults = entry.config()
    options = {name: type(getattr(defaults, name))(value) for name, value in given.items()}
    config = dataclasses.replace(defaults, **options)
    model = table.build(arguments.model, config, arguments.vocabulary, length=arguments.length)
    method = trainer(model, optax.adamw(1e-3), jax.random.key(1))
    mesh = sharding.data_mesh(count)
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    places = sharding.RULES[rule](mesh, shapes)
    state = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places
    )
    shape = (1, count * arguments.sequences, arguments.length + 1)
    windows = jax.ShapeDtypeStruct(
        shape, jnp.int32, sharding=NamedSharding(mesh, PartitionSpec(None, "data"))
    )
    chunk = compiled(sharding.in_scope(mesh, method.step), state)
    found = chunk.lower(state, windows, 1).compile({"xla_backend_optimization_level": 0})
    traffic, payloads, counts = program_cost(found.as_text())
    memory = found.memory_analysis()
    batch = jax.ShapeDtypeStruct(shape[1:], jnp.int32)
    return {
        "state": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "traffic": 2.0 * traffic + memory.argument_size_in_bytes,
        "payloads": payloads,
        "counts": counts,
        "operations": product_flops(method.step, shapes, batch) / count,
        "weights": sum(x.size for x in jax.tree.leaves(shapes.params)),
    }


def read_off(arguments: list[str], rule: str, count: int) -> dict:
    """:func:`compiled_cost` in a process with that many devices."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(count), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, *arguments, "--read-off", rule]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def payload(found: dict[int, dict], kind: str, count: int) -> float:
    """The payload of a kind of collective on ``count`` devices: ``a + b n`` by the first two."""
    low, high = COMPILED[:2]
    first, second = (found[n]["payloads"].get(kind, 0) for n in (low, high))
    return first + (second - first) * (count - low) / (high - low)


def wire(payloads: dict[str, float], count: int) -> float:
    """Bytes that one device sends."""
    share = (count - 1) / count
    return sum(
        size * COLLECTIVES[kind] * (1.0 if kind == "collective-permute" else share)
        for kind, size in payloads.items()
    )


def report(arguments: argparse.Namespace, rule: str, found: dict[int, dict]) -> None:
    """Rows of a rule: devices, memory, traffic, wire, seconds, efficiency."""
    largest = found[COMPILED[-1]]
    work = max(largest["operations"] / arguments.flops, largest["traffic"] / arguments.memory)
    kinds = sorted(set().union(*(x["payloads"] for x in found.values())))
    scale = "" if all(payload(found, k, 2) == payload(found, k, 4) for k in kinds) else ", growing"
    for count in (1, *COMPILED, *PREDICTED):
        payloads = {kind: payload(found, kind, count) for kind in kinds if count > 1}
        sent = wire(payloads, count)
        rounds = sum(largest["counts"].values()) * math.log2(count)
        seconds = work + sent / arguments.link + rounds * arguments.latency
        checked = ""
        if count == COMPILED[-1]:
            true = wire(largest["payloads"], count)
            checked = f" (compiled: {true / 1e6:.4g} MB)"
        print(
            f"{rule:10} {count:5}  {_state(found, count) / 1e6:9.4g} MB  {sent / 1e6:9.4g} MB"
            f"{checked}  {1e3 * seconds:8.4g} ms  {100 * work / seconds:5.1f} %"
        )
    named = ", ".join(f"{largest['counts'][k]} {k}" for k in kinds)
    print(f"{'':10} a step on 8 devices: {named}{scale}; {largest['operations'] / 1e9:.4g} Gflop, ")
    print(
        f"{'':10} {largest['traffic'] / 1e9:.4g} GB of traffic, temporaries "
        f"{largest['temporaries'] / 1e6:.4g} MB a device"
    )


def _state(found: dict[int, dict], count: int) -> float:
    """Bytes of state on a device: ``whole + shared / n`` through 2 and 8 devices."""
    low, high = COMPILED[0], COMPILED[-1]
    first, last = found[low]["state"], found[high]["state"]
    shared = (first - last) / (1 / low - 1 / high)
    return last + shared * (1 / count - 1 / high)


def main() -> None:
    """Compile, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="resnet-bk", help="name in the table of models")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE")
    parser.add_argument("--vocabulary", type=int, default=64, help="size of the vocabulary")
    parser.add_argument("--sequences", type=int, default=16, help="sequences on each device")
    parser.add_argument("--length", type=int, default=64, help="tokens of a sequence")
    parser.add_argument("--rules", nargs="+", default=["replicated", "zero1", "zero3"])
    parser.add_argument("--flops", type=float, default=67e12, help="operations a second")
    parser.add_argument("--memory", type=float, default=3.35e12, help="bytes a second")
    parser.add_argument("--link", type=float, default=50e9, help="bytes a second to others")
    parser.add_argument("--latency", type=float, default=5e-6, help="seconds a hop")
    parser.add_argument("--read-off", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read_off:
        print(json.dumps(compiled_cost(arguments, arguments.read_off)))
        return
    print("rule     devices      state        sent a step        time  efficiency")
    for rule in arguments.rules:
        found = {count: read_off(sys.argv[1:], rule, count) for count in COMPILED}
        report(arguments, rule, found)
    print(f"{arguments.model} of {found[2]['weights']:,} weights, nothing overlapped")


if __name__ == "__main__":
    main()
