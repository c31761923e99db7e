"""Two processes of four devices beside one of eight and one of one; and what a lost process costs.

    python benchmarks/processes.py
    python benchmarks/processes.py --models all --compute float64
    python benchmarks/processes.py --models pure-fep --compute float64 --learning-rate 0.0002
    python benchmarks/processes.py --models resnet-bk pure-fep --steps 50 --shard zero1

For every model the same run is made three times by ``vfejax train`` and the rows of its metrics are
compared, and so are the agents of ``vfejax simulate`` in both precisions. Then one process of two
is killed in the middle of a run of the first model, and later silenced (SIGSTOP): how many seconds
pass until the other has ended, and what it says. The gradient is a sum over devices, so that runs
differ by rounding, which AdamW makes larger where gradients are small.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from vfejax.data.population_arrays import load_npz
from vfejax.models.table import MODELS
from vfejax.runs import load
from vfejax.runs.metrics import read_metrics

DATA = ("--synthetic.kind", "periodic", "--synthetic.tokens", "4000", "--length", "16")
RUN = ("--batch-size", "8", "--log-every", "10", "--eval-every", "50", "--sample-tokens", "0")
SMALL = ("--eval-windows", "16", "--final-windows", "16", "--warmup-steps", "5")
COLUMNS = ("loss", "valid_loss", "gradient_norm")
THREE = ((2, 4), (1, 8), (1, 1))  # processes, and devices of each


def start(out: Path, arguments: list[str], processes: int, devices: int) -> list[subprocess.Popen]:
    """A command as so many processes of so many devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, "-m", "vfejax.cli.main", *arguments, "--out", str(out)]
    group = ["--coordinator", coordinator, "--processes", str(processes), "--process"]
    numbered = [[*group, str(index)] for index in range(processes)] if processes > 1 else [[]]
    return [
        subprocess.Popen([*command, *number], env=environment, stderr=subprocess.PIPE, text=True)
        for number in numbered
    ]


def finished(out: Path, arguments: list[str], processes: int, devices: int) -> Path:
    """The directory of a run."""
    for process in start(out, arguments, processes, devices):
        _, errors = process.communicate()
        if process.returncode:
            sys.exit(errors)
    return out


def differences(found: Path, wanted: Path) -> str:
    """The largest relative difference of every column, and the largest of the best weights."""
    rows, others = read_metrics(found), read_metrics(wanted)
    pairs = [(rows[name], others[name]) for name in COLUMNS]
    largest = [np.nanmax(np.abs(a - b) / np.abs(b)) for a, b in pairs]
    weights = jax.tree.map(
        lambda a, b: np.max(np.abs(a - b)), load(found).params, load(wanted).params
    )
    largest.append(max(jax.tree.leaves(weights)))
    return " ".join(f"{value:13.1e}" for value in largest)


def strayed(found: Path, wanted: Path) -> str:
    """The largest difference of the energy, relative, and of any number of the final agents."""
    energy, other = (read_metrics(run)["total"] for run in (found, wanted))
    agents, others = (load_npz(run / "final.npz") for run in (found, wanted))
    largest = max(np.max(np.abs(agents[name] - others[name])) for name in others)
    return f"{np.max(np.abs(energy - other) / np.abs(other)):13.1e} {largest:13.1e}"


def populations(folder: Path, steps: int) -> None:
    """The default population of ``vfejax simulate``, moved by processes and devices."""
    print(f"{'agents':<16} {'beside':<9} {'energy':>13} {'arrays':>13}")
    for precision in ("float32", "float64"):
        arguments = ["simulate", "--quiet", "--precision", precision, "--steps", str(steps)]
        pair, eight, one = (
            finished(folder / f"{precision}-{count}-{devices}", arguments, count, devices)
            for count, devices in THREE
        )
        print(f"{precision:<16} {'8 devices':<9} {strayed(pair, eight)}")
        print(f"{precision:<16} {'1 device':<9} {strayed(pair, one)}", flush=True)


def lost(out: Path, arguments: list[str], number: signal.Signals) -> tuple[float, str]:
    """Seconds from a signal to the second process to the end of the first; its last line."""
    first, second = start(out, [*arguments, "--steps", "1000000"], 2, 4)
    while not (out / "metrics.csv").exists() or read_metrics(out)["step"][-1] < 1:
        time.sleep(0.2)
    second.send_signal(number)
    began = time.monotonic()
    _, errors = first.communicate()
    seconds = time.monotonic() - began
    second.kill()
    second.communicate()
    return seconds, errors.splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["transformer", "resnet-bk"])
    parser.add_argument("--compute", default="float32", choices=["float32", "float64"])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--learning-rate", help="the model's own by default")
    parser.add_argument("--shard", default="zero3", choices=["replicated", "zero1", "zero3"])
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", options.compute == "float64")
    models = list(MODELS) if options.models == ["all"] else options.models
    common = ["train", *DATA, *RUN, *SMALL, "--shard", options.shard, "--quiet"]
    common += ["--compute", options.compute]
    common += ["--learning-rate", options.learning_rate] if options.learning_rate else []
    print("largest relative difference of two processes of four devices each from the same run")
    print(f"otherwise, after {options.steps} steps ({options.shard}, {options.compute});")
    print("of weights, which are of order 1, the absolute one")
    print(
        f"{'model':<16} {'beside':<9} {' '.join(f'{name:>13}' for name in (*COLUMNS, 'weights'))}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            arguments = [*common, "--model", model, "--steps", str(options.steps)]
            pair, eight, one = (
                finished(Path(folder) / f"{model}-{count}-{devices}", arguments, count, devices)
                for count, devices in THREE
            )
            print(f"{model:<16} {'8 devices':<9} {differences(pair, eight)}")
            print(f"{model:<16} {'1 device':<9} {differences(pair, one)}", flush=True)
        populations(Path(folder), options.steps)
        for number in (signal.SIGKILL, signal.SIGSTOP):
            arguments = [*common, "--model", models[0]]
            seconds, line = lost(Path(folder) / number.name, arguments, number)
            print(f"{number.name} of one process: the other ended after {seconds:.1f} s:\n  {line}")


if __name__ == "__main__":
    main()
