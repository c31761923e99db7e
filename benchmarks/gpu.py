"""The benchmarks and the test suite on a GPU, one after another, into one text file.

    python benchmarks/gpu.py --out gpu.txt                  # on a machine with a GPU: some hours
    python benchmarks/gpu.py --out gpu.txt --only resolvent attention
    python benchmarks/gpu.py --out quick.txt --quick        # small sizes, on a CPU too

Each script runs in a process of its own with a limit of time, after which it is ended and what it
had printed counts. The file begins with the machine, grows while they run, and ends with a table of
what ran. Without a GPU only ``--quick`` runs. What trains for hours, or prints tables of kept runs,
is left out; the table LEFT_OUT says why. ``docs/results/gpu.md`` says which figures are missing.
"""

import argparse
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

HERE = Path(__file__).parent
SUITE = "suite"


class Benchmark(NamedTuple):
    """How a script is run.

    Attributes:
        minutes: the limit.
        quick: arguments of a run that takes seconds; None where there is no such run.
        arguments: of the whole run.
    """

    minutes: float
    quick: tuple[str, ...] | None = None
    arguments: tuple[str, ...] = ()


BENCHMARKS = {
    "resolvent": Benchmark(10, ("--sizes", "64")),
    "resolvent_gradients": Benchmark(10, ("--n", "32", "--chains", "2")),
    "attention": Benchmark(20, ("--sizes", "64")),
    "agents": Benchmark(20, ("--quick",)),
    "quantum": Benchmark(20, ("--quick", "--cases", "5x64")),
    "inference": Benchmark(20, ("--quick",)),
    "message_passing": Benchmark(20, ("--quick", "--rounds", "1")),
    "active_inference": Benchmark(20, ("--quick", "--batch", "1")),
    "planning": Benchmark(15, ("--quick",)),
    "koopman": Benchmark(15, ("--dim", "16", "--blocks", "20", "--turns", "1")),
    "token_allocation": Benchmark(
        10, ("--width", "112", "--height", "56", "--patch", "14", "--repeat", "1")
    ),
    "vfe_transformer": Benchmark(20, ("--quick",)),
    "language_model_training": Benchmark(30, ("--sizes", "2x8", "--arms", "gpt-modern")),
    "language_model_decoding": Benchmark(30),
    "energy_learning": Benchmark(30),
    "pure_fep": Benchmark(60, None, ("--text", str(HERE.parent / "CHANGELOG.md"))),
    "real_time": Benchmark(5, ("--seconds", "1")),
    "startup": Benchmark(15, ("--commands", "simulate", "--rounds", "1")),
    "claims": Benchmark(30, ("--rows", "gating")),
}
"""Scripts by name, in the order in which they run."""

LEFT_OUT = {
    "adaptive_arms": "part of adaptive_computation",
    "adaptive_computation": "trains for hours; its figures are losses at equal time of a processor",
    "agents_rivals": "part of agents",
    "compression_report": "part of model_compression",
    "compression_settings": "part of model_compression",
    "compression_students": "part of model_compression",
    "cost_model": "compiles for several devices of a host, and runs nothing",
    "distillation": "trains teachers and students for an hour; its figures are losses and bytes",
    "early_exit": "needs trained models; its figures are processor times",
    "early_exit_decoding": "part of early_exit",
    "equilibrium": "its measurements are in energy_learning, the rest is training",
    "gpu": "this script",
    "hamiltonian": "trains for hours; its figures are losses and energies",
    "hamiltonian_networks": "part of hamiltonian",
    "hamiltonian_optimizers": "part of hamiltonian",
    "hamiltonian_report": "part of hamiltonian",
    "koopman_blocks": "part of koopman_language",
    "koopman_forecasts": "compares errors of forecasts, which no device changes",
    "koopman_gradients": "part of koopman_language",
    "koopman_language": "trains for hours; its figures are losses",
    "koopman_lessons": "part of koopman_language",
    "language_models": "trains for a day; its figures are losses",
    "memory_per_device": "compiles for several devices of a host, and runs nothing",
    "model_compression": "trains for hours; its figures are losses and bytes",
    "notebooks": "compares two compilers of XLA for a CPU",
    "population_mesh": "compares several devices of a host",
    "processes": "compares several processes of a host",
    "quantisation": "needs a run of vfejax train",
    "quantum_methods": "part of quantum",
    "quantum_times": "part of quantum",
    "resolvent_rivals": "part of resolvent",
    "reversible": "its measurements are in energy_learning, the rest is training",
    "sequence_mesh": "compares several devices of a host",
    "sharded_training": "compares several devices of a host",
}
"""Scripts that do not run here, and why."""


class Result(NamedTuple):
    """How a script ended, and after how many seconds."""

    name: str
    ended: str
    seconds: float


def run(
    name: str, command: Sequence[str], minutes: float, file: TextIO, **environment: str
) -> Result:
    """Run a command into the file.

    Args:
        name: heading of its output.
        command: what runs.
        minutes: after which it and the processes that it started are ended.
        file: gets what it prints on both streams.
        environment: variables besides those of this process.
    """
    file.write(f"\n=== {name}: {' '.join(command[1:])}\n")
    file.flush()
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        stdout=file,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
        start_new_session=True,
    )
    try:
        status = process.wait(60 * minutes)
        ended = "done" if status == 0 else f"failed with status {status}"
    except subprocess.TimeoutExpired:
        ended = f"ended after {minutes:g} minutes"
    finally:
        if process.poll() is None:  # too long, or this script was interrupted
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    result = Result(name, ended, time.monotonic() - began)
    file.write(f"--- {result.ended}, {result.seconds:.0f} s\n")
    file.flush()
    return result


def machine() -> tuple[str, str]:
    """The platform of JAX, and a line about the machine. Asked in a process of its own: this one
    must hold no memory of the device.
    """
    code = "import jax; d = jax.devices()[0]; print(d.platform, jax.__version__, d.device_kind)"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kind, version, device = asked.stdout.strip().split(" ", 2)
    python = platform.python_version()
    return kind, f"{device}, jax {version}, Python {python}, {os.cpu_count()} cores"


def commands(names: Sequence[str], quick: bool) -> dict[str, tuple[list[str], float]]:
    """What runs: the command and its minutes, by name."""
    chosen = {}
    for name in names:
        if name == SUITE:
            which = ["tests/test_lanes.py"] if quick else ["-n", "4", "--dist", "worksteal"]
            chosen[name] = ([sys.executable, "-m", "pytest", "-q", *which], 60.0)
            continue
        minutes, short, arguments = BENCHMARKS[name]
        if not quick or short is not None:
            given = short if quick and short is not None else arguments
            chosen[name] = ([sys.executable, str(HERE / f"{name}.py"), *given], minutes)
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all, and return 0 when nothing failed."""
    names = [*BENCHMARKS, SUITE]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="text file that is written")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="small sizes, on a CPU too")
    options = parser.parse_args(arguments)
    kind, about = machine()
    if kind != "gpu" and not options.quick:
        print(f"gpu.py: JAX finds no GPU ({about}); give --quick for small sizes", file=sys.stderr)
        return 2
    environment = {"VFEJAX_TEST_PLATFORM": "cuda"} if kind == "gpu" else {}
    results = []
    with options.out.open("w", encoding="utf-8") as file:
        file.write(f"{about}, {platform.platform()}\n")
        for name, (command, minutes) in commands(options.only, options.quick).items():
            result = run(name, command, minutes, file, **environment)
            results.append(result)
            print(f"{result.name:<26} {result.ended}, {result.seconds:.0f} s", flush=True)
        rows = [f"{r.name:<26} {r.ended}, {r.seconds:.0f} s\n" for r in results]
        file.write("\n=== what ran\n" + "".join(rows))
    return int(any("failed" in result.ended for result in results))


if __name__ == "__main__":
    sys.exit(main())
