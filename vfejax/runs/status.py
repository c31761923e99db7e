"""A status file for a supervisor: what a long process does, replaced in one step.

A thread writes it, so that a slow disk never delays the process that tells. Only the newest status
counts: those that came while the disk was busy are left out.
"""

import json
import math
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vfejax.data.files import atomic_write
from vfejax.errors import UserError

__all__ = ["StatusFile", "finite"]


class StatusFile:
    """A JSON object at ``path``, kept up while the body of ``with`` lasts.

    To what is published it adds ``state`` (running, ended, or failed by an exception), ``pid`` and
    ``written``, seconds since 1970: a supervisor tells a process that hangs by their age.

    Attributes:
        error: why the last attempt to write failed, or None; nothing is raised.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "status.json"
    >>> with StatusFile(path) as status:
    ...     status.publish({"cycles": 60})
    >>> told = json.loads(path.read_text())
    >>> told["state"], told["cycles"]
    ('ended', 60)
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.error: UserError | None = None
        self._path = Path(path)
        self._content: Mapping[str, Any] = {}
        self._fresh = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="status", daemon=True)

    def __enter__(self) -> "StatusFile":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._closing = True
        self._fresh.set()
        self._thread.join()
        self._write("ended" if kind is None else "failed")

    def publish(self, content: Mapping[str, Any]) -> None:
        """Hand over what to write; returns at once.

        Args:
            content: what JSON can hold, and arrays, not changed any more; a number that is not
                finite becomes null.
        """
        self._content = content
        self._fresh.set()

    def _work(self) -> None:
        while not self._closing:
            self._fresh.wait()
            self._fresh.clear()
            if not self._closing:
                self._write("running")

    def _write(self, state: str) -> None:
        told = {"state": state, "pid": os.getpid(), "written": time.time(), **self._content}
        try:
            atomic_write(self._path, json.dumps(finite(told), indent=2) + "\n")
            self.error = None
        except UserError as error:
            self.error = error


def finite(value: Any) -> Any:
    """The value as JSON has it: arrays and NumPy's scalars as numbers, and None for a number that
    is not finite.

    Args:
        value: mappings and sequences are followed.

    >>> finite({"rate": np.float32("nan"), "counts": {"late": np.int64(2)}})
    {'rate': None, 'counts': {'late': 2}}
    """
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        value = np.asarray(value).tolist()
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
