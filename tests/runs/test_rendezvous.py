"""Processes meet at a port. Here they are threads, which meet as processes do."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from vfejax.errors import UserError
from vfejax.runs import rendezvous
from vfejax.runs.connections import Links, Peer

ALIKE = {"jax": "1.2", "--steps": 3, "--processes": 3}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(rendezvous, "_LINGER", 0.5)
    monkeypatch.setattr(rendezvous, "_SILENCE", 0.2)


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def met(*ranks: int, address: str = "", size: int = 3, wait: float = 20.0, **others) -> list:
    """What each process of a rendezvous gets: its connections, or what it is told; ``others`` has
    what is not alike in some.
    """
    address = address or free_address()

    def one(rank: int) -> Links | str:
        alike = ALIKE | others.get(f"of_{rank}", {})
        try:
            return rendezvous.meet(address, size, rank, alike, wait=wait)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(one, ranks))


def test_processes_that_are_alike_meet_and_tell_each_other_why_they_end():
    links = met(2, 0, 1)
    told = [link.heard for link in links]
    for link in links:
        link.listen(lambda: None)
    links[1].finish()  # of process 0, to the others
    links[2].finish()  # which is not for process 1 to say
    links[2].tell("no disk")  # process 1, to 0, which passes it on to 2
    assert all(heard.wait(10) for heard in told[:2])
    assert [link.finished for link in links[:2]] == [True, False]
    assert [link.failed for link in links] == 2 * ["process 1 ended: no disk"] + [""]
    for link in links:
        link.close()


def test_a_broken_connection_says_who_was_lost_and_a_goodbye_does_not():
    lost, first, second = met(1, 0, 2)
    for link in (first, second):
        link.listen(lambda: None)
    lost._peers[0].close()
    assert second.heard.wait(10)
    assert (first.lost, second.lost, second.failed) == ([1], [1], "")
    second.close()
    first.close()
    assert first.lost == [1]


def test_a_process_may_leave_before_it_has_begun_to_listen(monkeypatch):
    threads, left = [], threading.Event()

    class Late(threading.Thread):
        def start(self):
            threads.append(self)
            super().start()

        def run(self):
            assert left.wait(10)
            super().run()  # an error in a thread is a warning, which fails a test

    first, second = met(0, 1, size=2)
    monkeypatch.setattr(threading, "Thread", Late)
    for link in (first, second):
        link.listen(lambda: None)
        link.close()
    left.set()
    for thread in threads:
        thread.join(10)
    assert [thread.is_alive() for thread in threads] == [False, False]


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ({"of_2": {"--steps": 4}}, "process 2 has --steps 4 and process 0 has 3"),
        ({"of_1": {"jax": "1.3\x1b"}}, "process 1 has jax '1.3\\x1b' and process 0 has 1.2"),
        ({"of_0": {"--tol": [1, 2]}}, "has --tol not given and process 0 has 1 2"),
        ({"of_1": {"--tol": 1}}, "process 1 has --tol 1 and process 0 has not given"),
    ],
)
def test_all_processes_are_told_what_differs(others, expected):
    said = met(0, 1, 2, **others)
    assert len(set(said)) == 1
    assert expected in said[0]


def test_two_processes_of_one_number_are_told_of_each_other():
    said = met(0, 1, 1)
    assert said == 3 * ["--process 1: given to two processes; give each its own number"]


def test_who_stays_alone_is_told_who_is_missing():
    first, second = met(0, 2, wait=0.5)
    assert first == second
    assert "process 1 did not come within 0.5 s" in first
    (alone,) = met(1, wait=0.1)
    assert "no process 0 answers there within 0.1 s" in alone


def test_the_first_process_refuses_a_port_in_use_and_an_unknown_name():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (said,) = met(0, address=f"127.0.0.1:{taken.getsockname()[1]}")
    assert "process 0 cannot listen there (Address already in use)" in said
    assert ["a..b is no name" in said for said in met(0, 1, address="a..b:1")] == [True, True]


@contextlib.contextmanager
def listener(greeting: bytes | None) -> Iterator[str]:
    """A stranger that says something to who connects, or nothing, or hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        done = threading.Event()

        def answer() -> None:
            while not done.is_set():
                connection, _ = server.accept()
                with connection:
                    if greeting is not None:
                        connection.sendall(greeting)
                        connection.recv(1 << 16)
                        connection.recv(1)  # until the caller hangs up

        pool.submit(answer)
        address = server.getsockname()
        yield f"127.0.0.1:{address[1]}"
        done.set()
        socket.create_connection(address).close()


@pytest.mark.parametrize(
    ("greeting", "expected"),
    [
        (b"", "something listens there and says nothing"),
        (b"HTTP/1.1 400 Bad Request\r\n", "something else answers there"),
        (b"\x00\x00\x18\x04\x00", "something else answers there"),  # as gRPC begins
        (b"{}\n", "something else answers there"),
        (b"{" + b" " * 2**20, "something else answers there"),
        (None, "no process 0 answers there within 0.5 s (what connects there is cut off)"),
    ],
)
def test_a_stranger_at_the_coordinators_port_is_found_out(greeting, expected):
    with listener(greeting) as address:
        (said,) = met(1, address=address, wait=0.5)
    assert expected in said


def test_strangers_that_call_are_not_met():
    address = free_address()
    host, _, port = address.rpartition(":")
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(rendezvous.meet, address, 3, 0, ALIKE, wait=20.0)
        callers = []
        for words in (b"GET / HTTP/1.1\r\n\r\n", b"{}\n", b'{"vfejax": {"process": "1"}}\n', b""):
            while True:
                with contextlib.suppress(ConnectionRefusedError):
                    callers.append(socket.create_connection((host, int(port))))
                    break
            callers[-1].sendall(words)
        # One that introduces itself and goes away leaves its place to the next.
        gone = Peer(socket.create_connection((host, int(port))))
        gone.send(vfejax={"process": 1, "alike": ALIKE})
        assert gone.hear(20.0) == {"heard": True}
        gone.close()
        others = [
            pool.submit(rendezvous.meet, address, 3, rank, ALIKE, wait=20.0) for rank in (1, 2)
        ]
        for one in (*callers, *(future.result(30) for future in (first, *others))):
            one.close()
