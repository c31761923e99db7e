"""Entry point: ``vfejax COMMAND``. Commands are imported only when called, so ``--help`` is
quick.
"""

import importlib
import os
import sys
from collections.abc import Sequence

from vfejax import __version__
from vfejax.errors import UserError

COMMANDS = {
    "simulate": "a population of Gaussian agents minimises its variational free energy",
    "train": "a next-token model learns a text",
    "evaluate": "how well a trained model predicts a text",
    "generate": "a trained model continues a text",
}
_MODULES = {"simulate": "simulate.command", "train": "train.command"}

INTERRUPTED = 130


def _usage() -> str:
    rows = "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())
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
        return importlib.import_module(f"vfejax.cli.{_MODULES.get(name, name)}").main(rest)
    except UserError as error:
        print(f"vfejax {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"vfejax {name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:  # tyro, after --help or a bad flag
        return int(stop.code or 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0 done, 2 what one line on stderr explains, 130
    interrupted, 1 output cut off.
    """
    try:
        status = _dispatch(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()  # here, where a reader that went away can be met
        return status
    except BrokenPipeError:
        # The reader of our output (head, less) went away: point stdout elsewhere so that the exit
        # stays quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
