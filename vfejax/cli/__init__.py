"""Command line: ``main`` and one module or folder for each command."""

import time

BEGAN = time.time()
"""When this process began to import the package, for a command: nothing else is imported before."""
