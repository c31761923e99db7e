"""The environment of a run: versions, device, seed and the revision of the sources."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vfejax import __version__

__all__ = ["environment"]


def environment(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run depended on besides its configuration: versions, device, seed, git revision if
    any.
    """
    import jax

    device = jax.devices()[0]
    found = {
        "python": platform.python_version(),
        "vfejax": __version__,
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "numpy": np.__version__,
        "system": platform.platform(),
        "device_platform": device.platform,
        "device_kind": device.device_kind,
        "num_devices": jax.device_count(),
        "num_processes": jax.process_count() if jax.process_count() > 1 else None,
        "seed": config.get("seed"),
        "git_revision": _git_revision(),
    }
    return {name: value for name, value in found.items() if value is not None}


def _git_revision() -> str | None:
    """Commit of the vfejax sources, with ``-dirty`` after it when they were changed; None outside a
    repository. Nothing is written there: a lock that a full disk or a kill left would stop git.
    """
    sources = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(sources), "--no-optional-locks", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        # Fails for an installed copy inside somebody else's repository, which is not ours.
        git("ls-files", "--error-unmatch", "__init__.py")
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
