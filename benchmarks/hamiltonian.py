"""Hamiltonian learning: symplectic optimisers, and networks that learn a Hamiltonian.

    python benchmarks/hamiltonian.py --out FOLDER [--pieces rosenbrock text ...] [--report]
        [--text NAME=FILE]

A run is a line of FOLDER/runs.jsonl and is not made again, so that the table can be made in pieces;
``--report`` alone prints them (``--out benchmarks/measured/hamiltonian --report``: what is
published). The pieces are ``rosenbrock``, ``quadratic``, ``digits`` (scikit-learn's, from the extra
``test``) and ``text`` of :mod:`hamiltonian_optimizers`, and ``networks`` and ``drift`` of
:mod:`hamiltonian_networks`. The text is the help topics of Python unless a file is given.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hamiltonian_networks as networks
import hamiltonian_optimizers as optimizers
import jax
from hamiltonian_report import report

Row = dict[str, Any]
PIECES = ("rosenbrock", "quadratic", "digits", "text", "networks", "drift")


def lines_of(path: Path) -> list[Row]:
    """Runs that were made before."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def results(path: Path) -> Callable[[Row, Callable[[], Row]], Row]:
    """Runs that are lines of a file, and are made when they are not."""
    known = {json.dumps(row["job"], sort_keys=True): row for row in lines_of(path)}

    def result(job: Row, make: Callable[[], Row]) -> Row:
        key = json.dumps(job, sort_keys=True)
        if key not in known:
            begin = time.perf_counter()
            found = make()
            row = {"job": job, **found, "seconds": round(time.perf_counter() - begin, 1)}
            row |= {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
            known[key] = row
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
        return known[key]

    return result


def main() -> None:
    """Make what is missing, or print what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of runs.jsonl")
    parser.add_argument("--pieces", nargs="+", choices=PIECES, default=PIECES)
    parser.add_argument("--text", default="topics", help="NAME=FILE, or topics")
    parser.add_argument("--report", action="store_true", help="print tables, run nothing")
    options = parser.parse_args()
    path = options.out / "runs.jsonl"
    if not options.report:
        options.out.mkdir(parents=True, exist_ok=True)
        result = results(path)
        for runs in (
            optimizers.runs(options.pieces, options.text, result),
            networks.runs(options.pieces, result),
        ):
            for _ in runs:
                pass
    report(lines_of(path))


if __name__ == "__main__":
    main()
