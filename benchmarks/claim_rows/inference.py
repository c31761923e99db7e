"""Claims of message passing, active inference and token allocation."""

import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from claim_rows.measure import (
    KEPT,
    PART,
    REFUTED,
    ROOT,
    UNTESTED,
    Found,
    call_of,
    short,
    spread,
)
from real_time import World, build

from vfejax.inference.allocation.textures import CHANNELS, patch_textures
from vfejax.inference.loopy import belief_propagation, potts
from vfejax.inference.message_passing.coordinate_ascent import fit
from vfejax.inference.worked_models.mixture import gaussian_mixture, start_from_points
from vfejax.problems.environments import random_model
from vfejax.runs import real_time

DEVICES = 16


def sharding() -> Found:
    """A grid of 10^6 and of 10^9 states over 16 devices of one host."""
    figures, found = [], {}
    for side in (1024, 32_768):
        script = ROOT / "benchmarks/claim_rows/sharded.py"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        told = subprocess.run(
            [sys.executable, str(script), str(DEVICES), str(side)],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        found = json.loads(told.stdout.splitlines()[-1])
        figures.append(
            f"{short(found['bytes'] / 2**20)} MiB per device for {found['states']:.1e} states"
        )
    figure = (
        f"{'; '.join(figures)}; {found['exchanges']} exchanges of borders in the program; equal to "
        f"one device to {found['error']:.0e}"
    )
    fits = found["bytes"] < 16 * 2**30
    reason = "it compiles and would fit devices of 16 GiB" if fits else "it would not fit 16 GiB"
    return Found(figure, f"{UNTESTED}: no 16 devices; {reason}")


def one_device() -> Found:
    """25 million binary variables in one program."""
    side = 5000
    pair = potts(jnp.float32(1.4), 2)

    def run(nodes):
        return belief_propagation(nodes, pair, pair, max_steps=4)[1].bethe_free_energy

    nodes = jnp.asarray(np.random.default_rng(0).standard_normal((side, side, 2), np.float32))
    compiled = jax.jit(run).lower(nodes).compile()
    memory = compiled.memory_analysis()
    size = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    start = time.perf_counter()
    energy = float(compiled(nodes))
    seconds = time.perf_counter() - start
    figure = (
        f"{size / 2**30:.1f} GiB, {size / side**2:.0f} bytes per state; four floods and the free "
        f"energy in {seconds:.0f} s"
    )
    return Found(figure, KEPT if np.isfinite(energy) else REFUTED)


def hertz(seconds: float = 10.0) -> Found:
    """Cycles of perception and action at 60 Hz that answer within 16 ms."""
    model = random_model(jax.random.key(0), [100], [100], [4])
    world = World(model, jax.random.key(2))
    ladder = build(model, world)
    first = real_time.run(ladder, world.sense, world.act, rate=60.0, duration=1.0)
    ladder = ladder._replace(carry=first.carry)
    record = real_time.run(ladder, world.sense, world.act, rate=60.0, duration=seconds).record
    share, told = record.latencies.share_below(0.016), record.summary()
    figure = (
        f"{100 * share:.2f} % of {record.cycles} cycles under 16 ms, median "
        f"{told['latency_p50_ms']:.2f} ms, {record.misses} late"
    )
    verdict = KEPT if share >= 0.999 else PART if share >= 0.99 else REFUTED
    return Found(figure, verdict)


def textures() -> Found:
    """Bytes of thirteen channels at every pixel, and of what the library keeps."""
    height, width, pictures = 2160, 3840, 4
    everywhere = 4 * len(CHANNELS) * height * width
    picture = np.random.default_rng(0).uniform(size=(height, width, 3)).astype(np.float32)
    call, compiled = call_of(patch_textures, picture)
    kept = np.asarray(call()).nbytes
    temporary = compiled.memory_analysis().temp_size_in_bytes
    figure = (
        f"{everywhere / 1e9:.2f} GB at every pixel of a 4K picture in float32, "
        f"{pictures * everywhere / 1e9:.2f} GB for {pictures}; ours {kept / 1e6:.2f} MB a picture, "
        f"and {temporary / 1e6:.0f} MB while it is made"
    )
    fits = abs(pictures * everywhere / 1.7e9 - 1) < 0.05
    return Found(figure, f"{KEPT if fits else REFUTED}: as arithmetic, and none of it is needed")


def elbo() -> Found:
    """The bound of a mixture after eight sweeps, over data sets."""
    num, sweeps = 100, 200
    method = gaussian_mixture(num, 2, 6)

    def run(key, points):
        start = start_from_points(key, points, 6)
        data = {"point": points}
        beliefs = method.init(None, data, None, start)
        return fit(method, beliefs, data, sweeps, 1e-3)[1]

    centres = np.array([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    rng = np.random.default_rng(0)
    points = centres[rng.integers(3, size=(20, num))] + rng.standard_normal((20, num, 2))
    keys = jax.random.split(jax.random.key(0), 20)
    info = jax.jit(jax.vmap(run))(keys, jnp.asarray(points, jnp.float32))
    path = np.asarray(info.elbo)
    last = path[np.arange(20), np.asarray(info.num_sweeps) - 1]
    falls = -np.nan_to_num(np.diff(path, axis=1), nan=0.0).min()
    done = (path[:, 7] - path[:, 0]) / (last - path[:, 0])
    figure = (
        f"{np.median(path[:, 0]):.0f} nats after the first sweep, {np.median(path[:, 7]):.0f} "
        f"after eight, {np.median(last):.0f} at the end: {spread(100 * done)} % of the rise; "
        f"largest fall {max(0.0, falls):.0e}"
    )
    reason = "other data, as those of the claim are not published"
    kept = np.median(done) >= 0.9 and falls < 1e-2
    return Found(figure, f"{KEPT if kept else PART}: {reason}")
