"""Stopping a run without losing what it computed."""

import signal
from typing import Any

__all__ = ["Interrupt"]


class Interrupt:
    """Remembers a request to stop (Ctrl-C, SIGTERM) until the chunk under way is done; a second one
    stops at once.
    """

    def __enter__(self) -> "Interrupt":
        self.requested = False
        self._before = {sig: signal.signal(sig, self._handle) for sig in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _handle(self, signum: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_: object) -> None:
        for sig, handler in self._before.items():
            signal.signal(sig, handler)
