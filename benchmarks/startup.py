"""Start-up of whole commands: what imports, compilation, steps and pictures take.

    python benchmarks/startup.py [--commands simulate train plan filter] [--rounds 3]

Every command runs in processes of its own. *Cold* is the first run of a user: nothing has been
compiled before, and Matplotlib has not looked for fonts. *Warm* is every further one, which finds
the programs that the first one left (``vfejax.cli.executable_cache`` and ``compilation_cache``).
Python has compiled the package before, as installing it does. The parts are seconds of wall time,
each moment counted once: compilation is tracing, lowering and compiling (or reading what was
compiled), wherever it happens; imports are those that are left; then pictures and report, and the
loop with what it writes. The rest is reading options and data, evaluation, and the end of the
process. *Processor* is what the process and its threads used, which other work on the machine
changes least. *Programs* are compiled or read. The medians of the rounds count.
"""

import argparse
import builtins
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

COMMANDS = {
    "simulate": ("simulate", "--steps", "10"),
    "train": ("train", "--steps", "100"),
    "plan": ("plan",),
    "filter": ("filter",),
}
PARTS = ("compilation", "imports", "pictures", "steps", "rest")  # what counts first, first
SPANS = {
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
}


class Span(NamedTuple):
    """What happened from when to when, in seconds of ``time.time``."""

    part: str
    start: float
    end: float


def shares(spans: list[Span], start: float, end: float) -> dict[str, float]:
    """Seconds of each part between start and end, every moment counted for the first part in PARTS
    of those that hold it.
    """
    open_parts: Counter[str] = Counter()
    changes = sorted(
        [(s.start, 1, s.part) for s in spans] + [(s.end, -1, s.part) for s in spans],
        key=lambda change: change[0],
    )
    found, last = dict.fromkeys(PARTS, 0.0), start
    for at, step, part in [*changes, (end, 0, "rest")]:
        now = min(max(at, start), end)
        holder = next((name for name in PARTS if open_parts[name] > 0), "rest")
        found[holder] += now - last
        open_parts[part] += step
        last = now
    return found


class Clock:
    """Spans of this process, and how many programs it compiled."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.programs = 0
        self._importing = False

    @contextlib.contextmanager
    def span(self, part: str) -> Iterator[None]:
        """Record what is done within."""
        start = time.time()
        try:
            yield
        finally:
            self.spans.append(Span(part, start, time.time()))

    def timed(self, part: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        """The function, recorded."""

        def run(*args: Any, **kwargs: Any) -> Any:
            with self.span(part):
                return fn(*args, **kwargs)

        return run

    def watch_imports(self) -> None:
        """Record the outermost imports that take time."""
        load = builtins.__import__

        def timed_import(*args: Any, **kwargs: Any) -> Any:
            if self._importing:
                return load(*args, **kwargs)
            self._importing, start = True, time.time()
            try:
                return load(*args, **kwargs)
            finally:
                self._importing = False
                if time.time() - start > 1e-4:  # not of what is loaded already
                    self.spans.append(Span("imports", start, time.time()))

        builtins.__import__ = timed_import

    def compiled(self, event: str, start: float, end: float, **_: Any) -> None:
        """Record an event of JAX."""
        if event in SPANS:
            self.spans.append(Span("compilation", start, end))
            self.programs += event.endswith("backend_compile_duration")


def watched(arguments: list[str], out: Path) -> int:
    """Run a command in this process and write what it took."""
    began, clock = time.time(), Clock()
    clock.watch_imports()
    from jax import monitoring

    from vfejax.cli.main import main as run_command
    from vfejax.runs import loop
    from vfejax.runs.report import Report

    monitoring.register_event_time_span_listener(clock.compiled)
    loop.run = clock.timed("steps", loop.run)
    Report.write = clock.timed("pictures", Report.write)  # type: ignore[method-assign]
    sys.argv[1:] = arguments  # a process of this command's own
    status = run_command()
    found = shares(clock.spans, began, time.time())
    out.write_text(json.dumps(found | {"programs": clock.programs}))
    return status


def run_once(arguments: tuple[str, ...], home: Path) -> dict[str, float]:
    """What a command takes in a process of its own, whose caches are below ``home``."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        environment = {
            **{name: x for name, x in os.environ.items() if not name.startswith("JAX_COMPILATION")},
            "XDG_CACHE_HOME": str(home / "caches"),
            "MPLCONFIGDIR": str(home / "matplotlib"),
            "PYTHONPYCACHEPREFIX": str(home.parent / "bytecode"),
            "PYTHONDONTWRITEBYTECODE": "",
        }
        child = [sys.executable, __file__, "--watched", str(out / "times.json")]
        whole = [*child, *arguments, "--out", str(out / "run"), "--quiet"]
        before, began = os.times(), time.time()
        done = subprocess.run(whole, env=environment, capture_output=True, text=True)
        wall, after = time.time() - began, os.times()
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments)}: {done.stderr}")
        found = json.loads((out / "times.json").read_text())
    used = sum(getattr(after, x) - getattr(before, x) for x in ("children_user", "children_system"))
    # Python's own start and end were not watched.
    found["rest"] += wall - sum(found[part] for part in PARTS)
    return found | {"wall": wall, "processor": used}


def measure(arguments: tuple[str, ...], rounds: int, scratch: Path) -> dict[str, dict[str, float]]:
    """Medians over rounds of what the first run takes, and the second."""
    run_once(arguments, scratch / "bytecode-first")  # Python compiles the package
    kinds: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for number in range(rounds):
        home = scratch / f"{arguments[0]}-{number}"
        for runs in kinds.values():
            runs.append(run_once(arguments, home))
    return {
        kind: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for kind, runs in kinds.items()
    }


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    import jax

    print(f"jax {jax.__version__}, {jax.default_backend()}, {os.cpu_count()} cores,", end=" ")
    print(platform.platform())
    columns = ("wall", "processor", "imports", "compilation", "steps", "pictures", "rest")
    print("| command | |", " | ".join(f"{name} (s)" for name in columns), "| programs |")
    print("|---|---|" + "---|" * (len(columns) + 1))
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.commands:
            found = measure(COMMANDS[name], options.rounds, Path(scratch))
            for kind, row in found.items():
                figures = " | ".join(f"{row[column]:.1f}" for column in columns)
                shown = f"`{' '.join(COMMANDS[name])}`"
                print(f"| {shown} | {kind} | {figures} | {row['programs']:.0f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--watched"]:
        sys.exit(watched(sys.argv[3:], Path(sys.argv[2])))
    main()
