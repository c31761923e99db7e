"""Liveness probe: exit status 0 while a loop in real time keeps its status file fresh.

    python alive.py STATUS.json SECONDS

It imports nothing but the standard library, so that a probe costs some milliseconds.
"""

import json
import sys
import time
from pathlib import Path


def why_dead(path: Path, seconds: float) -> str:
    """What is wrong with the loop that writes the status at ``path``; empty when nothing is."""
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
        state, age = status["state"], time.time() - status["written"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{path} cannot be read: {error}"
    if state != "running":
        return f"the loop has {state}"
    if age <= seconds:
        return ""
    return f"{path} is {age:.0f} s old, more than {seconds:g} s"


if __name__ == "__main__":
    sys.exit(why_dead(Path(sys.argv[1]), float(sys.argv[2])) or 0)
