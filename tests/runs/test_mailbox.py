"""Room for the newest item between two threads."""

import threading

import pytest

from vfejax.runs.mailbox import Mailbox


def test_the_newest_item_is_taken_once_and_the_others_are_counted():
    mailbox = Mailbox()
    assert mailbox.take() is None
    for item in (0, 1, 2):
        mailbox.put(item)
    assert (mailbox.take(), mailbox.take(), mailbox.replaced) == (2, None, 2)
    mailbox.put(3)
    mailbox.close()
    assert mailbox.take() == 3
    with pytest.raises(StopIteration):
        mailbox.take()


def test_every_item_of_another_thread_is_taken_or_counted():
    mailbox = Mailbox()

    def send():
        for item in range(1, 2001):
            mailbox.put(item)
        mailbox.close()

    thread = threading.Thread(target=send)
    thread.start()
    taken = [item for item in iter(mailbox.take, 0) if item is not None]  # to StopIteration
    thread.join()
    assert taken == sorted(taken)
    assert taken[-1] == 2000
    assert len(taken) + mailbox.replaced == 2000
