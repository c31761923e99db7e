"""Populations as plain NumPy arrays and ``.npz`` files, and observations from a table.

The arrays of a population are ``mu_q, mu_p [n, *grid, k]``, ``Sigma_q, Sigma_p [n, *grid, k, k]``
(covariances) and ``phi [n, *grid, a]``. Data are checked and refused by name and agent; nothing is
repaired.
"""

import csv
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from vfejax.agents.population import Population
from vfejax.beliefs.gaussian import Gaussian
from vfejax.data.files import atomic_file, one_line, read_errors
from vfejax.errors import UserError

__all__ = ["from_arrays", "load_npz", "load_observations_csv", "save_npz", "to_arrays"]

_KEYS = ("mu_q", "Sigma_q", "mu_p", "Sigma_p", "phi")
_MOST_DIGITS = 18  # of an index that int64 holds whatever its digits


def from_arrays(
    arrays: Mapping[str, Any], *, dtype: Any = None, source: str = "initial state"
) -> Population:
    """The population with these means, covariances and frame coordinates.

    Covariances must be symmetric to within ``8 k eps`` of their largest entry, eps being the larger
    one of the array's dtype and of ``dtype``. They are then used as they are, by their lower
    triangle, never averaged. Positive definite means that, after rounding to ``dtype``, the
    smallest eigenvalue exceeds ``k (k + 1) eps64`` times the largest, in double precision: then
    Cholesky's factorisation exists in rounded arithmetic (Higham, Accuracy and Stability of
    Numerical Algorithms, 2002, theorem 10.7), below it may not.

    Args:
        arrays: exactly the five arrays ``mu_q, Sigma_q, mu_p, Sigma_p, phi``.
        dtype: float32 or float64 of the result; JAX's default float if None.
        source: what messages call the data, a file name for instance.

    Returns:
        A population of JAX arrays.

    Raises:
        UserError: for a missing or unknown array, shapes that do not fit one another, NaN or
            infinity, a covariance that is not symmetric or not positive definite; each with the
            array's name and, where it applies, agent and grid point.
    """
    dtype = np.dtype(jnp.result_type(float) if dtype is None else dtype)
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64, got {dtype}")
    if dtype == np.float64 and jnp.result_type(float) != np.float64:
        raise UserError(f"{source}: double precision needs JAX's 64-bit mode; set JAX_ENABLE_X64=1")
    raw = _named_arrays(arrays, source)
    _check_shapes(raw, source)
    cast = {name: _finite(array, dtype, f"{source}: {name}") for name, array in raw.items()}
    chols = {}
    for name in ("Sigma_q", "Sigma_p"):
        _check_symmetric(cast[name], _epsilon(raw[name].dtype, dtype), f"{source}: {name}")
        _check_positive_definite(cast[name], f"{source}: {name}")
        chols[name] = np.linalg.cholesky(cast[name].astype(np.float64)).astype(dtype)
    return Population(
        Gaussian(jnp.asarray(cast["mu_q"]), jnp.asarray(chols["Sigma_q"])),
        Gaussian(jnp.asarray(cast["mu_p"]), jnp.asarray(chols["Sigma_p"])),
        jnp.asarray(cast["phi"]),
    )


def to_arrays(population: Population) -> dict[str, np.ndarray]:
    """The five arrays of a population, in its dtype. Covariances ``L L^T`` are exactly
    symmetric.
    """
    return {
        "mu_q": np.asarray(population.belief.mean),
        "Sigma_q": _covariance(population.belief),
        "mu_p": np.asarray(population.prior.mean),
        "Sigma_p": _covariance(population.prior),
        "phi": np.asarray(population.phi),
    }


def load_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file. Python objects in it are never loaded.

    Raises:
        UserError: when the file is missing, is no ``.npz`` file, or is damaged.
    """
    try:
        with read_errors(path), open(path, "rb") as file:
            if file.peek(1)[:2] not in (b"PK", b"\x93N"):  # np.load would advise to unpickle it
                raise ValueError("neither an archive nor an array of NumPy")
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise UserError(
                    f"{os.fspath(path)} is not an .npz file but a single array; save it with "
                    "numpy.savez"
                )
            with loaded:
                return {name: loaded[name] for name in loaded.files}
    except (ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{os.fspath(path)} is not a readable .npz file ({one_line(error)}); write it again"
        ) from error
    except MemoryError as error:  # a damaged header may claim any size
        raise UserError(
            f"{os.fspath(path)} claims arrays larger than the memory ({one_line(error)}); "
            "check that it is the right file, and write it again"
        ) from error


def save_npz(path: str | os.PathLike, arrays: Mapping[str, Any]) -> None:
    """Write arrays as an ``.npz`` file, atomically and without Python objects.

    Raises:
        UserError: when it cannot be written.
        ValueError: for an array of Python objects.
    """
    plain: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in plain.items():
        if array.dtype.hasobject:
            raise ValueError(f"array {name} holds Python objects, which are not saved")
    with atomic_file(path) as file:
        np.savez(file, **plain)


def load_observations_csv(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Observations from a table with a header line and one observation per row.

    Columns, in any order: ``agent`` (integer, 0 to n-1, each with at least one row), optionally
    ``point`` (flat index of the grid point, integer), and the components ``o0, o1, ...`` of the
    observation. Rows of one agent keep their order; empty lines are skipped.

    Returns:
        ``values [n, m, o]`` float64, m being the largest number of rows of one agent; ``present [n,
        m]`` float64, 1 where there is a row; where there is none, values and points are 0. ``point
        [n, m]`` int64 if the table has the column.

    Raises:
        UserError: naming file, line and column of what is missing, unknown, no number, or not
            finite, and the agents without rows.
    """
    with read_errors(path), open(path, encoding="utf-8-sig", newline="") as file:
        header, rows = _read_table(file, os.fspath(path))
    names = _observed_names(header, os.fspath(path))
    by_agent: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        by_agent.setdefault(row["agent"], []).append(index)
    num_agents = len(by_agent)
    missing = next((agent for agent in range(num_agents) if agent not in by_agent), None)
    if missing is not None:
        raise UserError(
            f"{os.fspath(path)}: agent {missing} has no row; number the agents 0, 1, 2, ... "
            "without gaps"
        )
    num_rows = max(map(len, by_agent.values()))
    values = np.zeros((num_agents, num_rows, len(names)))
    present = np.zeros((num_agents, num_rows))
    point = np.zeros((num_agents, num_rows), np.int64)
    for agent, indices in by_agent.items():
        values[agent, : len(indices)] = [[rows[i][name] for name in names] for i in indices]
        present[agent, : len(indices)] = 1.0
        point[agent, : len(indices)] = [rows[i].get("point", 0) for i in indices]
    return {"values": values, "present": present} | ({"point": point} if "point" in header else {})


def _named_arrays(arrays: Mapping[str, Any], source: str) -> dict[str, np.ndarray]:
    for name in _KEYS:
        if name not in arrays:
            raise UserError(f"{source}: array {name} is missing; needed are {', '.join(_KEYS)}")
    for name in arrays:
        if name not in _KEYS:
            raise UserError(f"{source}: array {name} is unknown; allowed are {', '.join(_KEYS)}")
    found = {name: np.asarray(arrays[name]) for name in _KEYS}
    for name, array in found.items():
        if array.dtype.kind not in "fiu":
            raise UserError(f"{source}: {name} must hold real numbers, got dtype {array.dtype}")
    return found


def _check_shapes(arrays: Mapping[str, np.ndarray], source: str) -> None:
    shape = arrays["mu_q"].shape
    if len(shape) < 2 or 0 in shape:
        raise UserError(
            f"{source}: mu_q must have shape [n, *grid, k] with no empty axis, got {shape}"
        )
    phi = arrays["phi"].shape
    wanted = {
        "Sigma_q": (*shape, shape[-1]),
        "mu_p": shape,
        "Sigma_p": (*shape, shape[-1]),
        "phi": (*shape[:-1], *phi[-1:]),
    }
    for name, want in wanted.items():
        if arrays[name].shape != want or not arrays[name].size:
            shown = (*shape[:-1], "a") if name == "phi" else want
            raise UserError(
                f"{source}: {name} must have shape {_show(shown)} to fit mu_q {_show(shape)}, got "
                f"{_show(arrays[name].shape)}"
            )


def _show(shape: tuple[Any, ...]) -> str:
    return f"({', '.join(map(str, shape))})"


def _place(mask: np.ndarray) -> str:
    """Agent, and grid point if there is a grid, of the first True in ``mask [n, *grid]``."""
    agent, *grid = (int(index) for index in np.argwhere(mask)[0])
    return f"agent {agent}" + (f", grid point {_show(tuple(grid))}" if grid else "")


def _finite(array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    def agents(finite: np.ndarray) -> np.ndarray:
        return np.asarray(~finite.reshape(len(array), -1).all(axis=1))

    if not (finite := np.isfinite(array)).all():
        raise UserError(
            f"{name} of {_place(agents(finite))} contains NaN or infinity; correct the data"
        )
    with np.errstate(over="ignore", under="ignore"):
        cast = np.asarray(array, dtype)
    if not (finite := np.isfinite(cast)).all():
        raise UserError(
            f"{name} of {_place(agents(finite))} is too large for {dtype}; rescale it or use "
            "float64"
        )
    return cast


def _epsilon(*dtypes: np.dtype) -> float:
    return max(float(np.finfo(dtype).eps) for dtype in dtypes if dtype.kind == "f")


def _check_symmetric(cov: np.ndarray, epsilon: float, name: str) -> None:
    largest = np.abs(cov).max(axis=(-2, -1))
    # Halves, for the difference of two finite numbers may overflow.
    half = np.abs(0.5 * cov - 0.5 * np.swapaxes(cov, -2, -1)).max(axis=(-2, -1))
    bad = half > 4 * cov.shape[-1] * epsilon * largest
    if bad.any():
        raise UserError(
            f"{name} of {_place(bad)} is not symmetric: entries mirrored in the diagonal differ by "
            f"up to {2 * float(half[bad][0]):.3g}; "
            "give symmetric covariances"
        )


def _check_positive_definite(cov: np.ndarray, name: str) -> None:
    eigenvalues = np.linalg.eigvalsh(cov.astype(np.float64), UPLO="L")
    smallest, largest = eigenvalues[..., 0], eigenvalues[..., -1]
    k = cov.shape[-1]
    floor = k * (k + 1) * np.finfo(np.float64).eps * np.maximum(largest, 0.0)
    bad = ~(smallest > floor)
    if bad.any():
        raise UserError(
            f"{name} of {_place(bad)} is not positive definite: smallest eigenvalue "
            f"{smallest[bad][0]:.6g}, "
            f"needed more than {floor[bad][0]:.3g}; give positive definite covariances"
        )


def _covariance(gaussian: Gaussian) -> np.ndarray:
    chol = np.tril(np.asarray(gaussian.chol))
    product = chol @ np.swapaxes(chol, -2, -1)
    return np.tril(product) + np.swapaxes(np.tril(product, -1), -2, -1)


def _read_table(file: Iterator[str], path: str) -> tuple[list[str], list[dict[str, Any]]]:
    reader = csv.reader(file, skipinitialspace=True)
    try:
        lines = [
            (reader.line_num, [cell.strip() for cell in cells])
            for cells in reader
            if any(map(str.strip, cells))
        ]
    except csv.Error as error:
        raise UserError(
            f"{path} line {reader.line_num}: {one_line(error)}; correct the line"
        ) from error
    if not lines:
        raise UserError(
            f"{path} is empty; it needs a header line agent,o0,... and one row per observation"
        )
    (_, header), *body = lines
    if not body:
        raise UserError(f"{path} has a header but no rows; it needs one row per observation")
    _observed_names(header, path)
    return header, [_read_row(header, cells, f"{path} line {number}") for number, cells in body]


def _observed_names(header: list[str], path: str) -> list[str]:
    """The columns o0, o1, ... of a header that has every column it needs and, by their number, no
    other and none twice.
    """
    names = [f"o{i}" for i in range(max(1, len(header) - 1 - ("point" in header)))]
    for name in ("agent", *names):
        if name not in header:
            raise UserError(
                f"{path}: column {name} is missing; the header must be agent, optionally point, "
                f"then o0, o1, ..., got {','.join(header)}"
            )
    return names


def _read_row(header: list[str], cells: list[str], place: str) -> dict[str, Any]:
    if len(cells) != len(header):
        raise UserError(
            f"{place} has {len(cells)} entries, but the header has {len(header)}; correct the line"
        )
    readers: dict[str, Callable[[str], Any]] = {"agent": _index, "point": _index}
    row = {}
    for name, cell in zip(header, cells, strict=True):
        try:
            row[name] = readers.get(name, _number)(cell)
        except ValueError as error:
            raise UserError(f"{place}, column {name}: {error}; correct the line") from error
    return row


def _index(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{_shown(text)} is not an integer of at least 0")
    if len(text.lstrip("0")) > _MOST_DIGITS:
        raise ValueError(f"{_shown(text)} is larger than any index")
    return int(text.lstrip("0") or "0")


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = None
    if value is None or "_" in text:
        raise ValueError(f"{_shown(text)} is not a number")
    if not math.isfinite(value):
        raise ValueError(f"{_shown(text)} is not finite")
    return value


def _shown(text: str, limit: int = 40) -> str:
    """A cell for a message."""
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}..."
