"""The devices of ``vfejax train``: how many have a share of every batch, and what each holds."""

import jax
from jax.sharding import Mesh

from vfejax.cli.devices import batch_remark
from vfejax.cli.train.config import TrainConfig
from vfejax.errors import UserError
from vfejax.runs import processes
from vfejax.training import sharding
from vfejax.types import PyTree

__all__ = ["dealt_out", "remark", "rule_of_weights", "shardings", "train_mesh"]

_NAMED = 3  # leaves that a remark lists


def train_mesh(config: TrainConfig) -> Mesh:
    """As many devices as can have equal shares of what is worked through at once.

    Raises:
        UserError: across processes, where all devices must have one.
    """
    try:
        return sharding.data_mesh(config.batch_size // config.accumulation)
    except ValueError as error:
        present = jax.device_count()
        multiple = f"a multiple of {present * config.accumulation}"
        sharing = f"the {present} devices of {processes.count()} processes share every batch"
        raise UserError(
            f"--batch-size {config.batch_size}: must be {multiple}, since {sharing}"
        ) from error


def shardings(config: TrainConfig, mesh: Mesh, template: PyTree) -> PyTree:
    """Where the leaves of a state are, by the rule of ``--shard``.

    Args:
        config: the options.
        mesh: the devices that are used.
        template: the state, or its shapes.
    """
    return sharding.RULES[config.shard](mesh, template)


def rule_of_weights(config: TrainConfig) -> sharding.Rule:
    """Where weights alone lie by the rule of ``--shard``: zero1 divides the optimiser's state only.

    Args:
        config: the options.
    """
    return sharding.zero3 if config.shard == "zero3" else sharding.replicated


def dealt_out(config: TrainConfig, template: PyTree) -> PyTree:
    """Weights to be read, on the devices where they are evaluated, so that no process of several
    reads more than its own devices hold; as they are for a process that is alone.

    Args:
        config: the options.
        template: shapes of the weights.
    """
    if processes.count() == 1:
        return template
    places = rule_of_weights(config)(train_mesh(config), template)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), template, places
    )


def remark(config: TrainConfig, mesh: Mesh, present: int, template: PyTree) -> str:
    """How many devices are used and why, and what each holds, in one line.

    Args:
        config: the options.
        mesh: those that are used.
        present: how many there are.
        template: shapes of the state.
    """
    used = batch_remark(config.batch_size, mesh.size, present, config.accumulation)
    return f"{used}{_held(config, mesh, template)}"


def _held(config: TrainConfig, mesh: Mesh, template: PyTree) -> str:
    if config.shard == "replicated" or mesh.size == 1:
        return ""
    found = sharding.footprint(template, shardings(config, mesh, template))
    held = (
        f"; --shard {config.shard}: each holds {_size(found.per_device)} of the "
        f"{_size(found.total)} of weights and optimiser state"
    )
    whole = sharding.footprint(template, sharding.zero3(mesh, template)).whole
    if 100 * sum(whole.values()) <= found.total:
        return held
    names = sorted(whole, key=whole.__getitem__, reverse=True)
    more = ", ..." if len(names) > _NAMED else ""
    return (
        f"{held}, of which {_size(sum(whole.values()))} in {len(names)} leaves that {mesh.size} "
        f"does not divide ({', '.join(names[:_NAMED])}{more})"
    )


def _size(num_bytes: int) -> str:
    """Bytes as a reader likes them."""
    value, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
