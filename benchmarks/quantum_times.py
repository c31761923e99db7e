"""Times of calls that take turns, and the times that the arithmetic and the memory of this machine
allow.
"""

import time
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from claim_rows.density_matrices import compiled


def timed(call: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def batch(call: Callable[[], object], first: float, clock: Callable[[], float]) -> float:
    """Seconds per call of a batch of about 20 ms, after a call that warms caches and thread
    pools: processor time is known to a few ms.
    """
    count = max(1, int(0.02 / first))
    call()
    return timed(lambda: [call() for _ in range(count)], clock) / count


def interleaved(
    calls: dict[object, Callable[[], object]],
    rounds: int = 15,
    clock: Callable[[], float] = time.process_time,
    of_rounds: Callable[[list[float]], float] = np.median,
) -> dict[object, float]:
    """Seconds per call, the median of rounds. Every round runs all, ``rounds`` rounds or 10 s; what
    takes above 0.1 s runs once a round.

    The slow must not use up the time of the others: above 0.5 s they run in two rounds, above 4 s
    in one.
    """
    for call in calls.values():
        call()
    firsts = {name: timed(call, time.perf_counter) for name, call in calls.items()}
    times: dict[object, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for turn in range(rounds):
        for name, call in calls.items():
            first = firsts[name]
            if turn == 0 or first <= 0.5 or (first <= 4 and turn < 2):
                slow = first > 0.1
                times[name].append(timed(call, clock) if slow else batch(call, first, clock))
        if time.perf_counter() - began > 10:
            break
    return {name: float(of_rounds(values)) for name, values in times.items()}


def rates() -> tuple[float, float]:
    """FLOP/s of a float32 product of size 1024, and bytes read plus bytes written per second of a
    pass over 128 MB; median of 30.
    """
    x = jnp.ones((1024, 1024), jnp.float32)
    product = compiled(jnp.matmul, x, x)[0]
    source = jnp.ones(2**25, jnp.float32)
    copy = compiled(jnp.negative, source)[0]
    seconds = interleaved({"product": product, "copy": copy}, rounds=30)
    return 2 * 1024**3 / seconds["product"], 2 * source.nbytes / seconds["copy"]


def floor(d: int, num: int, speeds: tuple[float, float]) -> dict[tuple[str, str], float]:
    """Seconds that forward, and forward with gradient, cannot go below."""
    flops, bandwidth = speeds
    work = {"forward": (8, 2), "both": (20, 4)}
    return {
        ("floor", of): max(products * 2 * d**3 * num / flops, stacks * 8 * d * d * num / bandwidth)
        for of, (products, stacks) in work.items()
    }
