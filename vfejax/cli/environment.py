"""Environment variables of JAX and XLA: when they are wrong, one clear line replaces JAX's
messages.
"""

import functools
import os
import re
import subprocess
import sys

from vfejax.errors import UserError

__all__ = ["check_flags", "fault"]

_READS_FLAGS = "from jaxlib.xla_client import CompileOptions; CompileOptions()"
_DEVICES = (
    *("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "JAX_DEFAULT_DEVICE", "JAX_NUM_CPU_DEVICES"),
    *("CUDA_VISIBLE_DEVICES", "PJRT_NAMES_AND_LIBRARY_PATHS"),
)


def check_flags() -> None:
    """Raise a UserError for flags that XLA does not know. It would end the process without a
    status of ours, so another process reads them, where there are any.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if flags.strip() and (problem := _problem(flags)):
        raise UserError(f"XLA_FLAGS={flags}: {problem}; correct the variable, or unset it")


@functools.cache  # a process that calls many commands has the same flags in all
def _problem(flags: str) -> str:
    """What XLA says of the flags; empty when it knows them."""
    said = subprocess.run(
        [sys.executable, "-c", _READS_FLAGS],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    ).stderr
    found = re.search(r"\] (Unknown flag.*|Could not open.*|Couldn't interpret.*)", said)
    return found[1] if found else ""


def fault(error: Exception) -> str:
    """What is wrong with the environment, after an error that nothing else explains; empty when JAX
    can be used.

    >>> fault(ValueError("an error of its own"))
    ''
    """
    if "jax" not in sys.modules:  # it could not be imported, and says which variable is wrong
        said = f"{_one_line(error)}; correct that environment variable, or unset it"
        return said if isinstance(error, ValueError) else ""
    import jax

    try:
        jax.numpy.zeros(()).block_until_ready()
    except (AssertionError, RuntimeError) as reason:
        asked = ", ".join(f"{name}={os.environ[name]}" for name in _DEVICES if name in os.environ)
        said = _one_line(reason) or "none of that kind"
        return f"JAX has no device to use ({said}); see what the environment asks for: {asked}"
    return ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
