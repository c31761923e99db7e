"""Command line: ``main`` and one module or folder for each command."""
