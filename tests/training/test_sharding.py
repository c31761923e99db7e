"""Eight devices give what one gives. They are host devices of a process of their own: XLA makes
them at start.
"""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from vfejax.training import sharding

CODE = """
import jax, jax.numpy as jnp, numpy as np, optax
from vfejax.models.gpt import model as transformer
from vfejax.training import sharding
from vfejax.training.evaluate import evaluate
from vfejax.training.step import trainer

assert jax.device_count() == 8
model = transformer.build(transformer.TransformerConfig(1, 8, 2, 16), 11, 4)
method = trainer(model, optax.sgd(0.1), jax.random.key(1))
windows = np.random.default_rng(0).integers(0, 11, (3, 16, 5)).astype(np.int32)
run = jax.jit(lambda state, windows: jax.lax.scan(method.step, state, windows))
found = {}
for count in (1, 8):
    mesh = sharding.data_mesh(16, jax.devices()[:count])
    assert mesh.shape == {"data": count}
    state = sharding.replicate(mesh, jax.jit(method.init)(jax.random.key(0)))
    batches = sharding.split_batches(mesh, windows)
    assert batches.sharding.shard_shape(batches.shape) == (3, 16 // count, 5)
    state, infos = run(state, batches)
    sums = jax.jit(lambda p, w: evaluate(model, p, w))(state.params, batches)
    found[count] = jax.tree.map(np.asarray, (state.params, infos.loss, sums))
near = {"rtol": 2e-5, "atol": 1e-6}
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **near), found[1], found[8])
assert sharding.data_mesh(12).shape == {"data": 4}
assert sharding.data_mesh(7).shape == {"data": 1}
print("equal")
"""


def test_on_one_device_nothing_is_split():
    mesh = sharding.data_mesh(7, jax.devices()[:1])
    assert mesh.shape == {"data": 1}
    windows = np.arange(42).reshape(2, 7, 3)
    for found in (sharding.replicate(mesh, windows), sharding.split_batches(mesh, windows)):
        assert found.sharding.shard_shape(found.shape) == (2, 7, 3)
        np.testing.assert_array_equal(found, windows)


@pytest.mark.slow
def test_eight_devices_train_and_evaluate_as_one_does():
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CODE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "equal\n"
