"""Notebooks from beginning to end: what compilation takes of them, and two ways to take less.

    python benchmarks/notebooks.py [--notebooks 01_agents 07_message_passing]

The code cells of each notebook run as one program, in a process of its own: with JAX's defaults;
with XLA's plain compiler of fused loops and LLVM's first level of optimisation (jaxlib 0.10 alone
has that compiler; later releases get the level alone); and with JAX's cache of compiled programs
that an earlier run filled. Seconds of processor time of the process and its threads, which other
work on the machine changes least, and the ratio to the defaults.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "notebooks"
LEVEL = "--xla_backend_optimization_level=1"
QUICK = f"--xla_cpu_use_fusion_emitters=false {LEVEL}"


def program(notebook: Path) -> str:
    """The code cells of a notebook, without lines for IPython alone."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = "".join("".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "code")
    return "".join(line for line in code.splitlines(True) if not line.startswith(("%", "!")))


def seconds(source: Path, **settings: str) -> float:
    """Processor time of one run of a program, under settings of the environment."""
    kept = {k: x for k, x in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, str(source)],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=source.parent,
        env=kept | {"MPLBACKEND": "agg", "JAX_PLATFORMS": "cpu"} | settings,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def row(notebook: Path) -> list[float]:
    """Seconds with the defaults, compiled quickly, and with a cache that is full."""
    quick = QUICK if version("jaxlib").startswith("0.10.") else LEVEL
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "notebook.py"
        source.write_text(program(notebook), encoding="utf-8")
        cache = {
            "JAX_COMPILATION_CACHE_DIR": str(Path(folder) / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        found = [seconds(source), seconds(source, XLA_FLAGS=quick)]
        seconds(source, **cache)
        return [*found, seconds(source, **cache)]


def main() -> None:
    """Print a table as text."""
    names = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--notebooks", nargs="+", choices=names, default=names)
    print(f"jax {version('jax')}, jaxlib {version('jaxlib')}, {os.cpu_count()} processors")
    print("| notebook | defaults | quick compiler | | full cache | |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in parser.parse_args().notebooks:
        plain, quick, cached = row(FOLDER / f"{name}.ipynb")
        print(
            f"| {name} | {plain:.1f} s | {quick:.1f} s | {quick / plain:.2f} "
            f"| {cached:.1f} s | {cached / plain:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
