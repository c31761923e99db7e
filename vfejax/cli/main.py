"""Entry point: ``vfejax COMMAND``. Commands are imported only when called, so ``--help`` is
quick.
"""

import contextlib
import errno
import gc
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TextIO

from vfejax import __version__
from vfejax.cli import environment
from vfejax.errors import UserError


class Command(NamedTuple):
    """What is known of a command before it is imported.

    Attributes:
        about: what it does, for ``vfejax --help``.
        module: where its ``main(arguments) -> int`` is, below ``vfejax.cli``.
        sizes: the options that decide how much memory it takes.
    """

    about: str
    module: str
    sizes: str


COMMANDS = {
    "simulate": Command(
        "simulate Gaussian agents that minimise a variational free energy",
        "simulate.command",
        "--agents, --irreps, --grid or --log-every",
    ),
    "filter": Command(
        "estimate the hidden states behind noisy series, with intervals",
        "filter.command",
        "FILE, --states or --horizon",
    ),
    "plan": Command(
        "let agents perceive, plan and act by their expected free energy",
        "plan.command",
        "--horizon, --batch, --length, --outcomes or --image",
    ),
    "train": Command(
        "train a next-token model on a text",
        "train.command",
        "--batch-size, --length, --log-every or the size of the model",
    ),
    "compress": Command(
        "compress a trained model into one small file",
        "compress.command",
        "--batch-size, --calibration-windows or the size of the model",
    ),
    "evaluate": Command(
        "measure how well a trained model predicts a text", "evaluate", "--windows"
    ),
    "generate": Command("continue a text with a trained model", "generate", "--tokens"),
}
"""Every command by its name: one line here for a new one."""

INTERRUPTED = 130

_ALLOCATIONS = 100_000  # between two looks for unused cycles; 700 by default


def _usage() -> str:
    rows = "\n".join(f"  {name:<10} {command.about}" for name, command in COMMANDS.items())
    return (
        f"usage: vfejax COMMAND [options]\n\n{rows}\n\nvfejax COMMAND --help explains every option."
    )


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"vfejax {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"vfejax: unknown command '{name}'; commands: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return _run(name, rest)
    except UserError as error:
        print(f"vfejax {name}: {_printable(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"vfejax {name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:  # tyro, after --help
        return int(stop.code or 0)
    except Exception as error:
        reason = too_large(error, name) or environment.fault(error)
        if not reason:
            raise
        print(f"vfejax {name}: {reason}", file=sys.stderr)
        return 2


def _run(name: str, arguments: list[str]) -> int:
    """Import the command and call it, with signals heeded from then on."""
    # Matplotlib tells on standard error when it finds no folder for its cache.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    environment.check_flags()
    own = sys.argv[1:] == [name, *arguments]
    if own:
        os.environ["MPLBACKEND"] = "agg"  # a notebook's own, or a wrong one, would be imported
    with _rare_collections() if own else contextlib.nullcontext():
        with _ended_by_interrupt(name) if own else contextlib.nullcontext():
            command = importlib.import_module(f"vfejax.cli.{COMMANDS[name].module}")
            from vfejax.cli import drawing
            from vfejax.cli.compilation_cache import keep_programs
            from vfejax.runs.interrupt import Interrupt

        if own:
            # In another's process, functions of the package may have been replaced by others.
            keep_programs()
        beside = drawing.allowed() if own else contextlib.nullcontext()
        with Interrupt(f"vfejax {name}: interrupted"), beside:
            return command.main(arguments)


@contextlib.contextmanager
def _ended_by_interrupt(name: str) -> Iterator[None]:
    """End the process at Ctrl-C. While modules are imported an exception can be raised where Python
    or a library drops it, and the command would go on.
    """

    def end(signum: int, frame: Any) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.write(sys.stderr.fileno(), f"vfejax {name}: interrupted\n".encode())
        os._exit(INTERRUPTED)

    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not default or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Let Python look for unused cycles rarely, and at the end of the process not through all that
    there is: modules and traced programs are a million objects, and stay until then.
    """
    before = gc.get_threshold()
    gc.set_threshold(_ALLOCATIONS, *before[1:])
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(*before)


def too_large(error: Exception, name: str) -> str:
    """What a user of a command can do about an error of memory; empty for another."""
    if not _is_of_memory(error):
        return ""
    from vfejax.data.files import one_line

    return f"not enough memory ({one_line(error, 120)}); choose a smaller {COMMANDS[name].sizes}"


def _is_of_memory(error: Exception) -> bool:
    """Whether NumPy or XLA asked for more memory than there is."""
    if isinstance(error, MemoryError):
        return True
    # XLA's error has no class of its own, and this module does not import jax.
    said = str(error).lower()
    return type(error).__name__ == "JaxRuntimeError" and (
        "out of memory" in said or "resource_exhausted" in said
    )


def _printable(error: UserError) -> str:
    """The message on one line, in characters that every terminal takes."""
    text = " ".join(str(error).split())
    return text.encode(errors="backslashreplace").decode()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0 done, 2 what one line on stderr explains, 130
    interrupted, 1 output cut off.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    with contextlib.ExitStack() as stack:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # closed by the process that started this one
                sink = stack.enter_context(open(os.devnull, "w"))
                stack.callback(setattr, sys, name, None)
                setattr(sys, name, sink)
        try:
            status = _dispatch(given)
            sys.stdout.flush()  # here, where a reader that went away can be met
            return status
        except BrokenPipeError:
            # The reader (head, less) went away: the exit stays quiet.
            _discard(sys.stdout)
            _discard(sys.stderr)
            return 1
        except OSError as error:
            if not _is_of_output(error):
                raise
            _discard(sys.stdout)
            try:
                print(f"vfejax: cannot write the output: {error.strerror}", file=sys.stderr)
            except OSError:
                _discard(sys.stderr)
            return 1


def _is_of_output(error: OSError) -> bool:
    """Whether writing to standard output failed: such errors name no file."""
    return error.filename is None and error.errno in (errno.ENOSPC, errno.EIO, errno.EBADF)


def _discard(stream: TextIO) -> None:
    """Point a standard stream elsewhere: Python's last flush would fail again, and make the exit
    status 120.
    """
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
