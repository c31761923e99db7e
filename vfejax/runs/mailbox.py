"""The newest of what another thread receives, for a loop that never waits."""

import threading
from typing import Generic, TypeVar

__all__ = ["Mailbox"]

Item = TypeVar("Item")


class Mailbox(Generic[Item]):
    """Room for one item: a newer one replaces it, and taking it empties the room.

    Attributes:
        replaced: how many items nobody took.

    >>> mailbox = Mailbox()
    >>> mailbox.put("old"); mailbox.put("new")
    >>> mailbox.take(), mailbox.take(), mailbox.replaced
    ('new', None, 1)
    """

    def __init__(self) -> None:
        self.replaced = 0
        self._item: Item | None = None
        self._closed = False
        self._lock = threading.Lock()

    def put(self, item: Item) -> None:
        """Leave an item, which is not None."""
        with self._lock:
            self.replaced += self._item is not None
            self._item = item

    def close(self) -> None:
        """Tell that nothing more will come."""
        with self._lock:
            self._closed = True

    def take(self) -> Item | None:
        """What came since the last call, or None.

        Raises:
            StopIteration: when there is nothing, and nothing more will come.
        """
        with self._lock:
            item, self._item = self._item, None
            if item is None and self._closed:
                raise StopIteration
        return item
