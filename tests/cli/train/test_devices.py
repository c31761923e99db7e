"""What ``vfejax train`` says of devices."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from vfejax.cli.train import devices
from vfejax.cli.train.config import TrainConfig
from vfejax.types import TrainState

STATE = TrainState(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((), (7,), (3, 4000))))


@pytest.mark.parametrize(
    ("options", "used", "said"),
    [
        ({"batch_size": 16}, 8, "uses all 8 devices, which share the batch of 16"),
        (
            {"batch_size": 12},
            6,
            "uses 6 of 8 devices, since no more of them have equal shares of the batch of 12; "
            "--batch-size 16, or another multiple of 8, uses all",
        ),
        (
            {"batch_size": 12, "accumulation": 4},
            3,
            "uses 3 of 8 devices, since no more of them have equal shares of the 3 sequences of "
            "each of the 4 parts of a batch; --batch-size 32, or another multiple of 32, uses all",
        ),
        (
            {"batch_size": 16, "shard": "zero1"},
            8,
            "uses all 8 devices, which share the batch of 16; --shard zero1: each holds 6.03 kB of "
            "the 48 kB of weights and optimiser state",
        ),
    ],
)
def test_one_line_says_how_many_devices_are_used_and_why(options, used, said):
    mesh = AbstractMesh((used,), ("data",))
    config = dataclasses.replace(TrainConfig(), **options)
    assert devices.remark(config, mesh, 8, STATE) == said


def test_one_device_of_many_holds_all_whatever_the_rule():
    mesh = AbstractMesh((1,), ("data",))
    config = dataclasses.replace(TrainConfig(), batch_size=7, shard="zero3")
    assert devices.remark(config, mesh, 8, STATE).endswith("another multiple of 8, uses all")


def test_leaves_that_nothing_divides_are_named_where_they_count():
    mesh = AbstractMesh((8,), ("data",))
    config = dataclasses.replace(TrainConfig(), batch_size=8, shard="zero3")
    params = [jax.ShapeDtypeStruct((size,), jnp.float32) for size in (9, 11, 13, 15, 800)]
    state = TrainState(STATE.step, {"layers": params}, ())
    assert devices.remark(config, mesh, 8, state).endswith(
        "each holds 596 B of the 3.4 kB of weights and optimiser state, of which 196 B in 5 leaves "
        "that 8 does not divide (params/layers/3, params/layers/2, params/layers/1, ...)"
    )
