"""Small numeric tables from CSV files: observation matrices and neighbour lists."""

from pathlib import Path

import numpy as np

from vfejax.data.files import one_line, read_errors
from vfejax.errors import UserError

__all__ = ["load_edges_csv", "load_matrix_csv"]


def load_matrix_csv(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Matrix of the given shape from a CSV without header, one row per line.

    Args:
        path: the file.
        shape: rows and columns that the matrix must have.

    Returns:
        The matrix, float64.

    Raises:
        UserError: naming the file, when it is missing, not numeric, not finite or of another shape.
    """
    with read_errors(path):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    if not any(line.strip() for line in lines):
        raise UserError(f"{path} is empty; a {shape[0]} x {shape[1]} matrix is needed")
    try:
        matrix = np.loadtxt(lines, delimiter=",", ndmin=2, comments=None)
    except ValueError as error:
        raise UserError(f"{path} is not a table of numbers: {one_line(error)}") from error
    if matrix.shape != shape:
        raise UserError(
            f"{path} holds a {matrix.shape[0]} x {matrix.shape[1]} matrix; "
            f"{shape[0]} x {shape[1]} is needed"
        )
    if not np.isfinite(matrix).all():
        row, column = np.argwhere(~np.isfinite(matrix))[0]
        raise UserError(f"{path}: row {row + 1}, column {column + 1} is not finite")
    return matrix


def load_edges_csv(path: Path, num_agents: int) -> tuple[np.ndarray, np.ndarray]:
    """A neighbour list: header ``receiver,sender``, one edge per line.

    Args:
        path: the file.
        num_agents: number n of agents; they are numbered 0 to n - 1.

    Returns:
        Receivers and senders, int32 ``[e]`` each.

    Raises:
        UserError: naming file and line, for anything but integers in [0, num_agents).
    """
    with read_errors(path):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    if not lines or [cell.strip() for cell in lines[0].split(",")] != ["receiver", "sender"]:
        raise UserError(f"{path}: the first line must be 'receiver,sender'")
    edges = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        edge = [_agent(cell.strip(), num_agents) for cell in line.split(",")]
        if len(edge) != 2 or None in edge:
            raise UserError(
                f"{path} line {number}: '{_shown(line.strip())}' is not two agents between 0 and "
                f"{num_agents - 1}"
            )
        edges.append(edge)
    if not edges:
        raise UserError(f"{path} holds no edges")
    receivers, senders = np.asarray(edges, np.int32).T
    return receivers, senders


def _agent(cell: str, num_agents: int) -> int | None:
    """The number of an agent; None for what is none. Python refuses to read 5000 digits."""
    digits = cell.lstrip("0") or cell[:1]
    if not (cell.isascii() and digits.isdigit()) or len(digits) > len(str(num_agents)):
        return None
    return int(digits) if int(digits) < num_agents else None


def _shown(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."
