"""Every number that the designs behind this library promise, measured again: one row for each.

    python benchmarks/claims.py [--rows NAME ...] [--write docs/claims.md]

Without ``--rows`` it measures the rows that take seconds and prints them as a table; ``--rows all``
measures the others too. ``--write`` puts them into the table of a page, and leaves there what was
not measured. Ratios are those of calls that take turns within one run: the median over rounds,
in brackets the middle half of them. Where a longer study has kept its runs, its row reads them, and
names the command that makes them. Run it on a quiet machine: other work lengthens calls.

A row is an entry of ``benchmarks/claim_rows/table.py`` and a function beside it that measures. The
verdict follows from the figure by the rule in that function.
"""

import argparse
import importlib
import os
import platform
import sys
import time
from pathlib import Path

import jax
from claim_rows import table
from claim_rows.measure import Found
from claim_rows.table import Claim

ROWS: dict[str, Claim] = {claim.name: claim for claim in table.ROWS}

HEADER = (
    "| claim | of | what was measured | figure | command | verdict |\n"
    "| --- | --- | --- | --- | --- | --- |"
)


def command(claim: Claim) -> str:
    """What prints the figure of a row."""
    return claim.command or f"python benchmarks/claims.py --rows {claim.name}"


def measured(claim: Claim) -> Found:
    """What is found for a row."""
    module, _, name = claim.function.partition(".")
    return getattr(importlib.import_module(f"claim_rows.{module}"), name)()


def line(claim: Claim, found: Found) -> str:
    """A row of the table."""
    cells = (claim.claim, claim.system, claim.done, found.figure, f"`{command(claim)}`")
    return "| " + " | ".join((*cells, found.verdict)) + " |"


def parts(page: str) -> tuple[str, dict[str, str], str]:
    """A page before its table, the table's rows by their claims, and the page behind it."""
    before, _, behind = page.partition(HEADER)
    rows, _, after = behind.strip().partition("\n\n")
    return before, {row.split("|")[1].strip(): row for row in rows.splitlines() if row}, after


def written(page: str, found: dict[str, str]) -> str:
    """The page with these rows, by the names of their claims, and the other rows as they are."""
    before, rows, _ = parts(page)
    for name, row in found.items():
        rows[ROWS[name].claim] = row
    ordered = [rows[claim.claim] for claim in ROWS.values() if claim.claim in rows]
    return f"{before}{HEADER}\n" + "\n".join(ordered) + f"\n\n{versions()}\n"


def versions() -> str:
    """What the rows were measured with."""
    device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores"
    return f"Last written with jax {jax.__version__}, python {platform.python_version()}, {device}."


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*ROWS, "all"]
    parser.add_argument("--rows", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--write", type=Path, metavar="PAGE", help="page whose table gets the rows")
    options = parser.parse_args()
    chosen = options.rows or [name for name, claim in ROWS.items() if claim.cheap]
    chosen = list(ROWS) if "all" in chosen else chosen
    print(HEADER, flush=True)
    for name in chosen:
        start = time.perf_counter()
        row = line(ROWS[name], measured(ROWS[name]))
        print(row, flush=True)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        if options.write:  # row by row: what was measured stays when a later row fails
            options.write.write_text(written(options.write.read_text(), {name: row}))
    print(f"\n{versions()}")


if __name__ == "__main__":
    main()
