"""A sequence that devices share has the resolvents of one device, in values and derivatives. The
devices are host devices of a process of their own: XLA makes them at start.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.host_devices import on_eight_devices

from vfejax.spectral._shards import compose_affine, in_pairs, in_turn
from vfejax.spectral.mesh import over_mesh

SETUP = """
import math, re
import chex, jax, jax.export, jax.numpy as jnp, numpy as np
from vfejax.spectral.gates import tridiagonal_solve, tridiagonal_sweep
from vfejax.spectral.mesh import OverMesh, over_mesh
from vfejax.spectral.recurrence import linear_recurrence
from vfejax.spectral.resolvent import left_resolvent_diagonal, resolvent_diagonal

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
AUTO = jax.sharding.AxisType.Auto
rng = np.random.default_rng(0)
N, Z = 264, np.asarray([0.3 + 0.5j, -0.2 + 0.6j])  # 33 sites for each of 8 devices

def on_one(function):
    return lambda a, b, c, z: function(a, b[..., 1:], c[..., 1:], z)

ONE = OverMesh(linear_recurrence, on_one(left_resolvent_diagonal), on_one(resolvent_diagonal),
               tridiagonal_sweep, tridiagonal_solve)

def mesh(*sizes):
    return jax.make_mesh(sizes, ("sequence", "data")[: len(sizes)], (AUTO,) * len(sizes))

def chain(dtype):
    a, b = rng.normal(size=(2, 2, N))
    c = b * rng.uniform(0.5, 2.0, size=(2, N))  # similar to a symmetric chain: G is bounded
    gates = rng.uniform(0.5, 1.0, size=(N, 1)) * rng.choice([-1, 1], size=(N, 1))
    arrays = [jnp.asarray(x, dtype) for x in (a, b, c, gates, rng.normal(size=(N, 3)))]
    return (*arrays, jnp.asarray(Z, "complex64" if dtype == "float32" else "complex128"))

def everything(use):
    def values(a, b, c, gates, x, z):
        d = a.astype(z.dtype) - z[:, None]
        return (use.resolvent_diagonal(a, b, c, z),
                tuple(use.tridiagonal_sweep(d, b, c, x)),
                use.linear_recurrence(gates, x, reverse=True, axis=-2))
    def loss(*inputs):
        found = values(*inputs)
        leaves = jax.tree.leaves(found)
        return sum(jnp.sum(jnp.sin(x.real)) + jnp.sum(jnp.cos(x.imag)) for x in leaves), found
    return loss

def gradient(use):
    return jax.value_and_grad(everything(use), argnums=tuple(range(6)), has_aux=True)

def compare(found, expected, tolerance):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1.0, np.max(np.abs(y))))
"""

DOUBLE = """
inputs, one = chain("float64"), jax.jit(gradient(ONE))
compiled = jax.jit(gradient(over_mesh(mesh(8), "sequence"))).lower(*inputs).compile()
# Sums of 264 numbers of order 1; resolvents of condition 10.
compare(compiled(*inputs), one(*inputs), 1e-12)

# In another unit of energy, by the same program.
unit = 2.0**-200
tiny = *(unit * x for x in inputs[:3]), *inputs[3:5], unit * inputs[5]
small, (left, _), _ = compiled(*tiny)[0][1]
compare(small * unit, one(*inputs)[0][1][0], 1e-12)
compare(left * unit, one(*inputs)[0][1][1][0], 1e-12)

# Sites of all sizes in one chain: T = S T_0 S.
sizes = np.exp2(rng.integers(-200, 201, (1, N)))
pairs = sizes * np.c_[1.0, sizes[:, :-1]]
a, b, c, *others = (*inputs[:5], 0 * inputs[5])
mixed = compiled(sizes**2 * a, pairs * b, pairs * c, *others)
same = one(a, b, c, *others)[0][1][1][0]
# Rows of condition 1e3.
np.testing.assert_allclose(np.asarray(mixed[0][1][1][0]) * sizes**2, same, rtol=1e-9)

# What travels is for each device four numbers of a map, or the entry at a border.
kind = "all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter"
kind = rf"= [a-z]+[0-9]+\\[([0-9,]*)\\]\\S* (?:{kind})(?:-start)?\\("
found = re.findall(kind, compiled.as_text())
assert len(found) > 20 and max(math.prod(map(int, x.split(","))) for x in found) <= 8 * 8

# A bare chain at the centre of its band but for its first site: right fractions pass a pole at
# every other site, and seven of the shards alone are singular.
a, b, c, gates, x, z = inputs
bare = ((0 * a).at[:, 0].set(2.0), 1 + 0 * b, 1 + 0 * c, gates, x, 0 * z)
dense = jnp.diag(bare[0][0]) + jnp.diag(jnp.ones(N - 1), 1) + jnp.diag(jnp.ones(N - 1), -1)
(_, found), (_, expected) = compiled(*bare)[0], one(*bare)[0]
compare(found, expected, 1e-12)
compare(found[0][0].real, jnp.diagonal(jnp.linalg.inv(dense)), 1e-12)

# Poles with no coupling behind them, at the first site of all and at a site between two cuts: what
# follows is the chain after the cut.
a, b = inputs[0].at[:, (0, 40)].set(0.0), inputs[1].at[:, (1, 40, 41)].set(0.0)
cut = (a, b, *inputs[2:5], 0 * z)
(_, found), (_, expected) = compiled(*cut)[0], one(*cut)[0]
assert np.all(np.abs(expected[1][0][:, (0, 40)]) > 1e30)
away = np.r_[1:40, 41:264]
compare(found[1][0][:, away], expected[1][0][:, away], 1e-9)  # rows of condition 1e3
compare(found[1][1][:, 41:], expected[1][1][:, 41:], 1e-9)

# Before a NaN everything is as it was, bit for bit; after it everything is NaN.
both = [(first, *inputs[1:]) for first in (inputs[0].at[0, 140].set(jnp.nan), inputs[0])]
broken, whole = (jax.block_until_ready(compiled(*arrays))[0][1][1][0] for arrays in both)
assert np.array_equal(broken[0, :140], whole[0, :140]) and np.array_equal(broken[1], whole[1])
assert np.all(np.isnan(broken[0, 140:]))
print("equal")
"""

FURTHER = """
# Single precision, to some fifty roundings, with a batch along another axis of the mesh.
def slopes(use):
    def loss(a, b, c, gates, x, z):
        solved = use.tridiagonal_solve(a.astype(z.dtype) - z[:, None], b, c, x)
        left = use.left_resolvent_diagonal(a, b, c, z)
        onward = use.linear_recurrence(gates, x, axis=0)
        return jnp.sum(jnp.sin(solved.real)) + jnp.sum(left.imag) + jnp.sum(onward * onward)
    return jax.jit(jax.value_and_grad(loss, argnums=tuple(range(6))))
inputs = chain("float32")
# One program at a time: none is compiled while devices wait for one another.
expected = jax.block_until_ready(slopes(ONE)(*inputs))
compare(slopes(over_mesh(mesh(4, 2), "sequence"))(*inputs), expected, 3e-6)

# Forward derivatives of gradients.
a, b, c, *_, z = chain("float64")
def twice(use):
    density = lambda *rows: jnp.sum(use.resolvent_diagonal(*rows, z).imag)
    slope = jax.grad(density, argnums=(0, 1, 2))
    return jax.jit(lambda *rows: jax.jvp(slope, rows, rows))
use = over_mesh(mesh(8), "sequence")
expected = jax.block_until_ready(twice(ONE)(a, b, c))
compare(twice(use)(a, b, c), expected, 1e-11)

# The program for accelerators.
row = jax.ShapeDtypeStruct((N,), "float32")
for_gpus = jax.export.export(jax.jit(jax.grad(lambda a, b: jnp.sum(
    use.resolvent_diagonal(a, b, b, 1j).imag))), platforms=["cuda"])(row, row)
assert for_gpus.nr_devices == 8
print("equal")
"""


def run(script):
    assert on_eight_devices(SETUP + script)[0] == "equal\n"


def test_devices_share_a_sequence_and_exchange_a_few_numbers():
    run(DOUBLE)


@pytest.mark.slow
def test_single_precision_other_meshes_and_second_derivatives():
    run(FURTHER)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_shard_composes_to_the_same_map_in_turn_and_in_pairs(reverse, rng):
    rows = tuple(jnp.asarray(rng.integers(-3, 4, size=(7, 2))) for _ in range(2))
    found = [way(compose_affine, lambda row: row, rows, reverse) for way in (in_turn, in_pairs)]
    for x, y in zip(*found, strict=True):
        np.testing.assert_array_equal(x, y)


def test_bad_arguments_are_named():
    mesh = jax.make_mesh((1,), ("sequence",), (jax.sharding.AxisType.Auto,))
    use, row = over_mesh(mesh, "sequence"), jnp.ones(4)
    with pytest.raises(ValueError, match="axis must be one of the mesh's"):
        over_mesh(mesh, "time")
    with pytest.raises(ValueError, match=r"superdiagonal must be \[..., 4\], one entry for each"):
        use.resolvent_diagonal(row, row[:3], row, 1j)
    with pytest.raises(ValueError, match="leading axes must broadcast"):
        use.resolvent_diagonal(jnp.ones((2, 4)), row, row, jnp.ones(3))
    with pytest.raises(ValueError, match=r"x must be \[..., l, c\]"):
        use.tridiagonal_sweep(row, row, row, jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="gates must broadcast to inputs"):
        use.linear_recurrence(row, jnp.ones((4, 2)))
    with pytest.raises(ValueError, match="gates must have the dtype of inputs"):
        use.linear_recurrence(row, jnp.ones(4, "complex128"))
