"""Chains whose time eight devices share are those of one device, in values and derivatives. The
devices are host devices of a process of their own: XLA makes them at start.
"""

import jax
import jax.numpy as jnp
import pytest
from helpers.host_devices import on_eight_devices

from vfejax.inference.chains.hidden_markov import HiddenMarkov, hidden_markov_filter
from vfejax.inference.chains.mesh import over_mesh

SETUP = """
import math, re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from vfejax.inference.chains import hidden_markov as hmm, square_root
from vfejax.inference.chains._discrete import PLATFORM
from vfejax.inference.chains._root_steps import SEQUENTIAL
from vfejax.inference.chains.blocks import blocks
from vfejax.inference.chains.linear_gaussian import LinearGaussian, kalman_filter
from vfejax.inference.chains.mesh import OverMesh, over_mesh

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
rng = np.random.default_rng(0)
ONE = OverMesh(PLATFORM, SEQUENTIAL)
MESH = jax.make_mesh((8,), ("time",), (jax.sharding.AxisType.Auto,))
MANY = over_mesh(MESH, "time")

def compare(found, expected, tolerance):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = np.max(np.abs(y), initial=1.0, where=np.isfinite(y))
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * scale)

# Values and derivatives in a direction. Gradients are the transpose of the same rule.
def derivative(function):
    def run(*arrays):
        directions = tuple(jnp.cos(jnp.where(jnp.isfinite(x), x, 0.0)) for x in arrays)
        found, moves = jax.jvp(function, arrays, directions)
        return found, [x for x in jax.tree.leaves(moves) if x.dtype != jax.dtypes.float0]
    return run

def compiled(function, *arrays):
    # One program at a time: none is compiled while devices wait for one another.
    return jax.block_until_ready(jax.jit(function).lower(*arrays).compile())

def largest_message(program):
    kind = "all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter"
    kind = rf"= [a-z]+[0-9]+\\[([0-9,]*)\\]\\S* (?:{kind})(?:-start)?\\("
    found = re.findall(kind, program.as_text())
    assert found
    return max(math.prod(int(n) for n in x.split(",") if n) for x in found)
"""

DISCRETE = """
K, T = 3, 64

def everything(use):
    def run(initial, transition, rows):
        model = hmm.HiddenMarkov(initial, transition)
        smoothed = hmm.hidden_markov_smoother(model, rows, passes=use.discrete)
        return smoothed, hmm.viterbi(model, rows, passes=use.discrete)
    return derivative(run)

initial, transition = rng.dirichlet(np.ones(K)), rng.dirichlet(np.ones(K), K).T
arrays = [jnp.asarray(x) for x in (initial, transition, rng.normal(size=(T, K)))]
one, many = (compiled(everything(use), *arrays) for use in (ONE, MANY))
# Sums of 64 numbers of order 1.
compare(many(*arrays), one(*arrays), 1e-13)
assert largest_message(many) <= 8 * K * K

# The second state falls below the smallest number, and then is all that explains the rest, in
# small steps, many shards later. Nothing but logarithms can tell.
rows = arrays[2].at[3, 1].add(-5000.0).at[4:, 0].add(-300.0).at[4:, 2].add(-300.0)
far = jnp.asarray([0.2, 0.8, 0.0]), jnp.asarray([[1.0, 0, 0.5], [0, 1, 0], [0, 0, 0.5]]), rows
compare(many(*far), one(*far), 1e-12)
assert one(*far)[0][0].probabilities[-1, 1] == 1.0

# Impossible observations: for all states, and for those that are left.
rows = arrays[2].at[20].set(-jnp.inf).at[40, :2].set(-jnp.inf).at[60, 1:].set(-jnp.inf)
never = arrays[0], jnp.asarray([[1.0, 0.5, 0], [0, 0.5, 0], [0, 0, 1]]), rows
found, expected = many(*never), one(*never)
compare(found, expected, 1e-13)
assert expected[0][0].filtered.info.impossible.sum() == 2

# Before a NaN everything is as it was, after it everything is NaN.
broken = many(*arrays[:2], arrays[2].at[30, 0].set(jnp.nan))[0][0].filtered
assert np.all(np.isfinite(broken.probabilities[:30])) and np.all(np.isnan(broken.predicted[31:]))
assert np.isnan(many(*arrays[:2], arrays[2].at[-1, 2].set(jnp.nan))[0][1].log_probability)

# What is common to all states, as in densities of many pixels, costs no digits of the rest.
level = *arrays[:2], arrays[2] + 1e9
compare(many(*level), one(*level), 1e-13)

# Gradients of several chains at once: the evidence by the rows is what the smoother finds.
model = hmm.HiddenMarkov(*arrays[:2])
evidence = lambda rows: hmm.hidden_markov_filter(model, rows, passes=MANY.discrete).log_evidence
slopes = jax.jit(jax.vmap(jax.grad(evidence)))(arrays[2][None])
compare(slopes[0], one(*arrays)[0][0].probabilities, 1e-13)
print("equal")
"""

ROOTS = """
N, T = 2, 64

def everything(use):
    def run(transition, noise, values):
        model = LinearGaussian(*(jnp.ones(N), jnp.eye(N)), transition, noise, *constant)
        return square_root.square_root_filter(model, values, passes=use.square_root)
    return derivative(run)

constant = [jnp.asarray(x) for x in (rng.normal(size=(1, N)), np.eye(1))]
turn = 0.9 * np.asarray([[0.8, -0.6], [0.6, 0.8]])
noise = np.diag(rng.uniform(0.1, 1.0, N))
arrays = [jnp.asarray(x) for x in (turn, noise, rng.normal(size=(T, 1)))]
one, many = (compiled(everything(use), *arrays) for use in (ONE, MANY))
# Sums of 64 numbers of order 1.
compare(many(*arrays), one(*arrays), 1e-13)
assert largest_message(many) <= 8 * (N + 1) * (N + 1)

# A NaN spoils means from there on, and no covariance.
broken = arrays[2].at[30].set(jnp.nan)
found, expected = (run(*arrays[:2], broken)[0] for run in (many, one))
assert np.array_equal(np.isnan(found.mean), np.isnan(expected.mean))
compare(found.chol, expected.chol, 1e-13)

# Shards of one observation, which tells one direction of a state of which nothing was known.
def slope(use, dtype):
    def evidence(turn):
        first = (jnp.ones(N, dtype), 1e8 * jnp.eye(N, dtype=dtype))
        rest = [x.astype(dtype) for x in (arrays[1], *constant, arrays[2][:8])]
        model = LinearGaussian(*first, turn, *rest[:3])
        return square_root.square_root_filter(model, rest[3], passes=use.square_root).log_evidence
    return compiled(jax.grad(evidence), arrays[0].astype(dtype))(arrays[0].astype(dtype))

# A few roundings of float32, 1e-7, of a root of 1e4, as on one device.
compare(slope(MANY, jnp.float32), slope(ONE, jnp.float64), 5e-3)
print("equal")
"""

# Kalman filters by blocks need no algorithm of their own: blocks stay where the observations are.
BLOCKS = """
turn = 0.95 * jnp.asarray([[0.8, -0.6], [0.6, 0.8]])
noises = 0.1 * jnp.eye(2), jnp.eye(1)
model = LinearGaussian(jnp.zeros(2), jnp.eye(2), turn, noises[0], jnp.ones((1, 2)), noises[1])
observations = jnp.asarray(rng.normal(size=(4096, 1)))
places = (NamedSharding(MESH, PartitionSpec(x)) for x in (None, "time"))
shared = jax.device_put((model, observations), tuple(places))
run = lambda model, y: kalman_filter(model, y, passes=blocks(8))
one, eight = (compiled(run, *arrays) for arrays in ((model, observations), shared))
# The evidence is a sum of 4096 numbers of order 1.
compare(eight(*shared), one(model, observations), 1e-12)
# Devices gather what each block does, a few matrices, and add up the evidence.
assert largest_message(eight) <= 8 * 3 * 3
bytes_of = lambda x: x.memory_analysis().temp_size_in_bytes
assert bytes_of(eight) <= 1.1 * bytes_of(one) / 8
print("equal")
"""


@pytest.mark.slow
def test_devices_share_time_and_exchange_a_few_numbers_for_each_shard():
    scripts = DISCRETE, ROOTS, BLOCKS
    assert on_eight_devices(SETUP + "".join(scripts))[0] == "equal\n" * len(scripts)


def test_bad_arguments_are_named():
    mesh = jax.make_mesh((1,), ("time",), (jax.sharding.AxisType.Auto,))
    with pytest.raises(ValueError, match="axis must be one of the mesh's"):
        over_mesh(mesh, "sequence")
    mesh = jax.sharding.AbstractMesh((2,), ("time",), (jax.sharding.AxisType.Auto,))
    model, passes = HiddenMarkov(jnp.ones(1), jnp.eye(1)), over_mesh(mesh, "time").discrete
    with pytest.raises(ValueError, match="the 2 devices of 'time' must divide the chain, got 3"):
        hidden_markov_filter(model, jnp.zeros((3, 1)), passes=passes)
