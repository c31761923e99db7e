"""Imports beside what a command computes: of what it needs at its end, or when it writes."""

import contextlib
import importlib
import threading

__all__ = ["import_beside"]


def import_beside(*names: str) -> threading.Thread:
    """Import modules in a thread, one after the other. Who imports one of them meanwhile waits for
    it, and is told when that fails.

    Args:
        names: of the modules.

    >>> import_beside("wave").join()
    >>> import sys
    >>> "wave" in sys.modules
    True
    """

    def load() -> None:
        for name in names:
            with contextlib.suppress(Exception):
                importlib.import_module(name)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    return thread
