"""Attention over a ring of devices is attention on one, in values and gradients. The devices are
host devices of a process of their own: XLA makes them at start.
"""

import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from helpers.host_devices import on_eight_devices

from vfejax.attention import ring
from vfejax.attention.pattern import Pattern
from vfejax.attention.toroidal import toroidal_attention
from vfejax.geometry.torus import circular_distance

SETUP = """
import sys
from functools import partial
import chex, jax, jax.numpy as jnp, numpy as np
from vfejax.attention.ring import ring, stripe, unstripe
from vfejax.attention.toroidal import axial_attention, dense, toroidal_attention

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
AUTO = jax.sharding.AxisType.Auto
FORMS = {"joint": toroidal_attention, "axial": axial_attention}
rng = np.random.default_rng(0)

def mesh(*sizes):
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, ("sequence", "data")[: len(sizes)], (AUTO,) * len(sizes),
                         devices=devices)

def arrays(n, dtype):
    shapes = [(2, n, 4, 3), (2, n, 4, 3), (2, n, 4, 5)]
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)

def both(form, method, **options):
    def attend(query, key, value, slope):
        call = partial(FORMS[form], depth=2, circumference=20, method=method, **options)
        answer = call(query, key, value, slope=slope)
        return jnp.sum(jnp.sin(answer.astype(jnp.float64))), answer
    return jax.jit(jax.value_and_grad(attend, argnums=(0, 1, 2, 3), has_aux=True))

def compare(form, method, n=16, dtype="float64", tolerance=1e-14, slope=(0.5, 2.0), **options):
    inputs = (*arrays(n, dtype), slope and jnp.asarray(slope))
    found, expected = (both(form, m, **options)(*inputs) for m in (method, dense))
    # The loss is a sum of 640 numbers.
    chex.assert_trees_all_close(found[0][0], expected[0][0], rtol=0, atol=1000 * tolerance)
    chex.assert_trees_all_close((found[0][1], found[1]), (expected[0][1], expected[1]),
                                rtol=tolerance, atol=tolerance)
    return found
"""

QUICK = """
places = stripe(jnp.arange(8), 2, axis=0)
compare("joint", ring(mesh(2), "sequence", tile=2), n=8, causal=True, positions=places)
print("equal")
"""

TABLE = """
eight = mesh(8)
for form, tile in (("joint", None), ("axial", 1)):
    for options in ({}, {"causal": True}, {"window": 2}, {"causal": True, "window": 3},
                    {"causal": True, "window": 1}, {"window": 9}):
        compare(form, ring(eight, "sequence", tile=tile), **options)
places = stripe(jnp.arange(16), 8, axis=0)
compare("joint", ring(eight, "sequence", tile=1), positions=places, causal=True, window=5)

# Masks of every shape, with a query that reads nothing, and places of each sequence.
mask = rng.uniform(size=(2, 4, 16, 16)) < 0.5
mask[0, :, 3] = False
for part in (mask, mask[:1], mask[:, :1], mask[:, :, :1], mask[:, :1, :, :1], mask[:, :1, :1]):
    found = compare("joint", ring(eight, "sequence"), mask=jnp.asarray(part), causal=True)
    if part is mask:
        assert np.all(np.asarray(found[0][1][0, 3]) == 0)
        assert np.all(np.asarray(found[1][0][0, 3]) == 0)
places = jnp.asarray(np.stack([rng.permutation(16), rng.permutation(16)]))
compare("axial", ring(eight, "sequence"), positions=places, causal=True, window=4)
compare("joint", ring(mesh(4, 2), "sequence", batch_axis="data", tile=2), positions=places,
        mask=jnp.asarray(mask), causal=True)
compare("axial", ring(mesh(4, 2), "sequence", batch_axis="data"), window=3)
compare("joint", ring(mesh(4, 2), "sequence"), slope=None)

# Striped tokens answer what tokens in order answer.
inputs = (*arrays(16, "float64"), jnp.asarray([0.5, 2.0]))
dealt = (*(stripe(x, 8) for x in inputs[:3]), inputs[3])
method = ring(eight, "sequence", tile=1)
found = both("joint", method, causal=True, positions=stripe(jnp.arange(16), 8, axis=0))(*dealt)
expected = both("joint", dense, causal=True)(*inputs)
back = lambda x: unstripe(x, 8)
chex.assert_trees_all_close((back(found[0][1]), *map(back, found[1][:3]), found[1][3]),
                            (expected[0][1], *expected[1]), rtol=0, atol=1e-14)

# Single precision, and half precision summed in single.
compare("joint", ring(eight, "sequence"), dtype="float32", tolerance=1e-5, causal=True)
compare("joint", ring(eight, "sequence"), dtype="bfloat16", tolerance=0.06, causal=True)

# A NaN stays in its sequence.
query, key, value, slope = inputs
answer = both("joint", method)(query.at[0, 3].set(jnp.nan), key, value, slope)[0][1]
assert not np.any(np.isnan(answer[1])) and np.all(np.isnan(answer[0, 3]))
print("equal")
"""

MEMORY = """
# One device holds 16 places; the sequence grows with the devices.
temporary = {}
for devices in (2, 4, 8):
    shape = jax.ShapeDtypeStruct((1, 16 * devices, 4, 64), "float32")
    method = ring(mesh(devices), "sequence")
    loss = lambda q, k, v: jnp.sum(jnp.sin(axial_attention(
        q, k, v, depth=1, slope=None, circumference=256, method=method)))
    sharding = jax.sharding.NamedSharding(mesh(devices), jax.P(None, "sequence"))
    arguments = [jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)] * 3
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arguments).compile()
    temporary[devices] = compiled.memory_analysis().temp_size_in_bytes
    block = 16 * 4 * 64 * 4
print(temporary, block, file=sys.stderr)
assert temporary[8] < 1.1 * temporary[4]
print("equal")
"""


PROCESSES = """
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
shared = jax.sharding.NamedSharding(mesh(2), jax.P(None, "sequence"))
inputs = (*arrays(8, "float64"), jnp.asarray([0.5, 2.0]))
spread = [jax.make_array_from_callback(x.shape, shared, lambda at, x=x: x[at]) for x in inputs[:3]]
(found, answer), gradient = both("joint", ring(mesh(2), "sequence"), causal=True, window=3)(
    *spread, np.asarray(inputs[3]))
expected = both("joint", dense, causal=True, window=3)(*inputs)
assert jax.process_count() == 2 and not answer.is_fully_addressable
for x, y in zip((answer, *gradient), (expected[0][1], *expected[1]), strict=True):
    for shard in x.addressable_shards:
        chex.assert_trees_all_close(shard.data, y[shard.index], rtol=0, atol=1e-13)
print("equal")
"""


def run(code):
    told, complaints = on_eight_devices(SETUP + code)
    assert told == "equal\n"
    return complaints


def test_two_devices_with_striped_tokens_give_what_one_gives():
    run(QUICK)


def pattern(n, **options):
    places = jnp.arange(n)[None]
    fields = {"causal": False, "window": None, "is_counted": True} | options
    return Pattern(places, places, None, None, 1, 64, circular_distance, **fields)


@pytest.mark.parametrize(
    ("options", "hops"),
    [
        ({}, (0, 8)),
        ({"causal": True}, (0, 8)),
        ({"causal": True, "window": 1}, (0, 1)),
        ({"causal": True, "window": 2}, (0, 2)),
        ({"causal": True, "window": 5}, (0, 2)),
        ({"causal": True, "window": 6}, (0, 3)),
        ({"causal": True, "window": 60}, (0, 8)),
        ({"window": 0}, (0, 1)),
        ({"window": 1}, (-1, 3)),
        ({"window": 4}, (-1, 3)),
        ({"window": 5}, (-2, 5)),
        ({"window": 13}, (0, 8)),
        ({"causal": True, "window": 2, "is_counted": False}, (0, 8)),
    ],
)
def test_windows_visit_only_the_devices_they_reach(options, hops):
    assert ring._hops(pattern(32, **options), 4, 8) == hops


def one_device():
    return jax.make_mesh(
        (1,), ("sequence",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1]
    )


def test_errors_name_the_argument():
    mesh, x = one_device(), jnp.ones((1, 6, 2, 2))
    with pytest.raises(ValueError, match=r"axis must be one of the mesh's \('sequence',\), got 'd"):
        ring.ring(mesh, "data")
    with pytest.raises(ValueError, match=r"batch_axis must be one of the mesh's .* got 'data'"):
        ring.ring(mesh, "sequence", batch_axis="data")
    with pytest.raises(ValueError, match="batch_axis must be another axis than that of the seq"):
        ring.ring(mesh, "sequence", batch_axis="sequence")
    explicit = jax.make_mesh(
        (1,), ("sequence",), axis_types=(jax.sharding.AxisType.Explicit,), devices=jax.devices()[:1]
    )
    with pytest.raises(ValueError, match="axis 'sequence' must be of type Auto, got Explicit"):
        ring.ring(explicit, "sequence")
    with pytest.raises(ValueError, match=r"the 1 devices of 'sequence' must divide the .* got 0"):
        toroidal_attention(
            *(x[:, :0],) * 3,
            depth=1,
            slope=None,
            circumference=6,
            method=ring.ring(mesh, "sequence"),
        )
    with pytest.raises(ValueError, match="tile must divide the 6 places of a device, got 4"):
        toroidal_attention(
            *(x, x, x),
            depth=1,
            slope=None,
            circumference=6,
            method=ring.ring(mesh, "sequence", tile=4),
        )


@pytest.mark.slow
def test_two_processes_give_what_one_gives():
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        port = any_port.getsockname()[1]
    command = [sys.executable, "-c", SETUP + PROCESSES, str(port)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([*command, str(i)], env=environment, **pipes) for i in range(2)]
    try:
        for process in both:
            out, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
            assert out.endswith("equal\n")
    finally:
        for process in both:
            process.kill()


@pytest.mark.slow  # some 50 compilations for eight devices
def test_eight_devices_give_what_one_gives():
    run(TABLE)


@pytest.mark.slow  # three compilations of a gradient
def test_memory_of_the_backward_pass_is_that_of_a_block():
    run(MEMORY)
