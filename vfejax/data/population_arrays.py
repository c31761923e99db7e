"""Populations as plain NumPy arrays and ``.npz`` files.

The arrays of a population are ``mu_q, mu_p [n, *grid, k]``, ``Sigma_q, Sigma_p [n, *grid, k, k]``
(covariances) and ``phi [n, *grid, a]``. Data are checked and refused by name and agent; nothing is
repaired.
"""

import os
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from vfejax.agents.population import Population
from vfejax.beliefs.gaussian import Gaussian
from vfejax.data.files import atomic_file, one_line, read_errors
from vfejax.data.observation_tables import load_observations_csv
from vfejax.errors import UserError

__all__ = ["from_arrays", "load_npz", "load_observations_csv", "save_npz", "to_arrays"]

_KEYS = ("mu_q", "Sigma_q", "mu_p", "Sigma_p", "phi")


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
