"""Devices that share the time of a chain filter it as one device does. They are host devices of a
process of their own: XLA makes them at start.
"""

import pytest
from helpers.host_devices import on_eight_devices

SCRIPT = """
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from vfejax.inference.chains.blocks import blocks
from vfejax.inference.chains.linear_gaussian import LinearGaussian, kalman_filter

jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(0)
turn = 0.95 * jnp.asarray([[0.8, -0.6], [0.6, 0.8]])
noises = 0.1 * jnp.eye(2), jnp.eye(1)
model = LinearGaussian(jnp.zeros(2), jnp.eye(2), turn, noises[0], jnp.ones((1, 2)), noises[1])
observations = jnp.asarray(rng.normal(size=(4096, 1)))
mesh = jax.make_mesh((8,), ("time",), (jax.sharding.AxisType.Auto,))
places = (NamedSharding(mesh, PartitionSpec(x)) for x in (None, "time"))
shared = jax.device_put((model, observations), tuple(places))
run = jax.jit(lambda model, y: kalman_filter(model, y, passes=blocks(8)))
one = run.lower(model, observations).compile()
eight = run.lower(*shared).compile()
found, expected = eight(*shared), one(model, observations)
# The evidence is a sum of 4096 numbers of order 1.
for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)

# Devices gather what each block does, a few matrices, and add up the evidence.
kinds = "all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter"
sizes = []
for results in re.findall(rf"= (.*?) (?:{kinds})(?:-start)?\\(", eight.as_text()):
    for shape in re.findall(r"f64\\[([0-9,]*)\\]", results):
        sizes.append(np.prod([int(x) for x in shape.split(",") if x], dtype=int))
assert sizes and max(sizes) <= 8 * 3 * 3
bytes_of = lambda x: x.memory_analysis().temp_size_in_bytes
assert bytes_of(eight) <= 1.1 * bytes_of(one) / 8
print("equal")
"""


@pytest.mark.slow
def test_devices_share_the_time_of_a_filter_and_gather_what_blocks_do():
    assert on_eight_devices(SCRIPT)[0] == "equal\n"
