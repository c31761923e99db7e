"""Learning by energies in one run: what can be measured in minutes, and the tables of the studies.

    python benchmarks/energy_learning.py

The order, memory and time of equilibrium propagation beside backpropagation (``equilibrium.py``),
and memory and time of the reversible gradient beside plain ones (``reversible.py``), are measured.
Studies with seeds and rates, Hamiltonian networks and optimisers among them (``hamiltonian.py``),
take longer: the tables of their kept runs are printed, and the three scripts say how they are made.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
KEPT = HERE / "measured"
RUNS = [
    ("equilibrium.py", "--pieces", "order", "memory", "--out", str(KEPT / "equilibrium")),
    ("reversible.py", "--memory"),
    ("hamiltonian.py", "--report", "--out", str(KEPT / "hamiltonian")),
    ("reversible.py", "--report", "--out", str(KEPT / "reversible")),
]


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for script, *arguments in RUNS:
        print(f"\n# {script} {' '.join(arguments)}", flush=True)
        subprocess.run([sys.executable, str(HERE / script), *arguments], check=True)


if __name__ == "__main__":
    main()
