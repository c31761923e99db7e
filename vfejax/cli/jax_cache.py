"""The folder where JAX keeps the programs that it compiled, put aside while others are compiled."""

import contextlib
import threading
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

__all__ = ["NAME", "aside", "folder"]

NAME = "jax_compilation_cache_dir"
"""Of the setting."""


class _Users:
    """How many threads have put the folder aside, and which one was chosen."""

    def __init__(self) -> None:
        self.lock, self.count = threading.Lock(), 0
        self.chosen: str | None = None


_USERS = _Users()


def folder() -> str | None:
    """As it was chosen, though a thread may have put it aside."""
    with _USERS.lock:
        return _USERS.chosen if _USERS.count else getattr(jax.config, NAME)


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Compile in any case within: an executable that JAX has read cannot be written again whole.
    Several threads may be within at a time.
    """
    with _USERS.lock:
        if not _USERS.count:
            _USERS.chosen = getattr(jax.config, NAME)
            _choose(None)
        _USERS.count += 1
    try:
        yield
    finally:
        with _USERS.lock:
            _USERS.count -= 1
            if not _USERS.count:
                _choose(_USERS.chosen)


def _choose(path: str | None) -> None:
    jax.config.update(NAME, path)
    compilation_cache.reset_cache()
