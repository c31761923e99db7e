"""The arrays of a checkpoint, as orbax writes and reads them."""

import contextlib
import errno
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vfejax.data.files import one_line
from vfejax.runs import processes
from vfejax.runs.checkpoint_record import Damaged
from vfejax.types import PyTree

__all__ = ["ask_for_space", "read_state", "write_state"]

_OVERHEAD = 1 << 16  # bytes of a checkpoint besides its arrays, roughly
# Bytes asked for at once: enough to meet a quota or a limit, little enough to be instant.
_PROBE = 1 << 26


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _stored(tree: PyTree) -> dict[str, Any]:
    """What orbax is given: leaves by number, keys as their words, without the empty arrays, which
    it cannot hold.
    """
    leaves = enumerate(jax.tree.leaves(tree))
    stored = {
        f"{i:06d}": jax.random.key_data(leaf) if _is_key(leaf) else leaf
        for i, leaf in leaves
        if np.prod(leaf.shape)
    }
    return {
        name: np.asarray(leaf) if isinstance(leaf, np.generic) else leaf
        for name, leaf in stored.items()
    }


def write_state(path: Path, state: PyTree) -> None:
    """Write a pytree of arrays; OSError when it cannot be written."""
    stored = _stored(state)
    if not stored:
        return
    with _orbax() as ocp:
        try:
            with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
                checkpointer.save(path, args=ocp.args.StandardSave(stored))
        except Exception as error:
            code = re.search(r"os_error_code='(\d+)'", str(error))
            raise OSError(
                *((int(code[1]), os.strerror(int(code[1]))) if code else (one_line(error),))
            ) from error


def ask_for_space(folder: Path, state: PyTree) -> None:
    """Raise OSError when a state does not fit on the disk. Orbax writes from many threads, and when
    a disk is full each complains by itself.
    """
    sizes = [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)]
    size = sum(sizes) + _OVERHEAD
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if not hasattr(os, "posix_fallocate"):
        return
    probe = folder / "probe"
    with open(probe, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, min(size, _PROBE))
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
    probe.unlink()


@contextlib.contextmanager
def _orbax() -> Iterator[Any]:
    """Orbax, imported on first use (it takes a second), with its log silent meanwhile: errors reach
    us as exceptions.
    """
    import orbax.checkpoint as ocp

    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield ocp
    finally:
        logger.setLevel(level)


def read_state(path: Path, template: PyTree) -> PyTree:
    """The pytree that was written, like the template; Damaged when orbax cannot read it."""
    leaves, treedef = jax.tree.flatten(template)
    targets = {f"{i:06d}": _target(leaf) for i, leaf in enumerate(leaves) if np.prod(leaf.shape)}
    read = {}
    if targets:
        with _orbax() as ocp:
            try:
                with _reader(ocp, targets) as checkpointer:
                    read = checkpointer.restore(path, args=ocp.args.StandardRestore(targets))
            except Exception as error:
                raise Damaged(f"orbax cannot read it ({one_line(error)})") from error
    restored = [_leaf(leaf, read.get(f"{i:06d}")) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(treedef, restored)


def _reader(ocp: Any, targets: dict[str, Any]) -> Any:
    """Reads with all processes, unless all goes to devices of this one: then it waits for no other,
    which need not read.
    """
    places = [getattr(target, "sharding", None) for target in targets.values()]
    if any(place is None or not place.is_fully_addressable for place in places):
        return ocp.Checkpointer(ocp.StandardCheckpointHandler())
    here = processes.index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process{here}"
    )
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _target(leaf: Any) -> Any:
    """What orbax should make of a stored leaf."""
    if isinstance(leaf, (np.ndarray, np.generic)):
        return np.empty(leaf.shape, leaf.dtype)
    sharding = getattr(leaf, "sharding", None)
    if _is_key(leaf):
        leaf = (
            jax.eval_shape(jax.random.key_data, leaf)
            if isinstance(leaf, jax.ShapeDtypeStruct)
            else jax.random.key_data(leaf)
        )
    if sharding is None and jax.process_count() == 1:
        return np.empty(leaf.shape, leaf.dtype)
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _leaf(template: Any, read: Any) -> Any:
    if isinstance(template, (np.ndarray, np.generic)):
        return np.empty(template.shape, template.dtype) if read is None else read
    if read is None:
        return jax.numpy.empty(template.shape, template.dtype)
    if isinstance(read, np.ndarray):
        # No place is asked for, and none is named: a program that is compiled for arrays of named
        # places is another one than the same for arrays that were just made.
        read = jax.device_put(read)
    return jax.random.wrap_key_data(read, impl=_key_impl(template)) if _is_key(template) else read


def _key_impl(key: Any) -> Any:
    """How the bits of a key, which may be abstract, are used."""
    found = []
    jax.eval_shape(lambda k: found.append(jax.random.key_impl(k)), key)
    return found[0]
