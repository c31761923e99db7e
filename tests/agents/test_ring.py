"""The alignment energy over a ring of devices is that of one device, in value and gradient. The
devices are host devices of a process of their own: XLA makes them at start.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.host_devices import on_eight_devices

from vfejax.agents import free_energy
from vfejax.agents.alignment import ALIGNMENTS, Summary, of_summary, rows, saturating
from vfejax.agents.edges import Edges
from vfejax.agents.pairwise import PairFeatures
from vfejax.agents.population import Population
from vfejax.agents.ring import ring
from vfejax.beliefs.gaussian import Gaussian
from vfejax.geometry import irreps

# Eight devices that nothing runs on.
EIGHT = jax.sharding.AbstractMesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

SETUP = """
import sys
from functools import partial
import chex, jax, jax.export, jax.numpy as jnp, numpy as np
from helpers import agents_oracle as oracle
from vfejax.agents import alignment, pairwise
from vfejax.agents.free_energy import free_energy
from vfejax.agents.pairwise import PairFeatures
from vfejax.agents.ring import ring

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
rng = np.random.default_rng(0)

def over(devices):
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,),
                         devices=jax.devices()[:devices])
    return mesh, jax.sharding.NamedSharding(mesh, jax.P("data"))

eight, of_agents = over(8)

def computed(function, *inputs):
    # One program at a time: the next one is compiled when no device waits for another.
    return jax.block_until_ready(jax.jit(function)(*inputs))

def arrays(dtype, n=24, f=5):
    log_weight = np.log(rng.uniform(0.1, 1.0, n))
    log_weight[[3, 8]] = -np.inf
    drawn = (*rng.uniform(0.1, 1.0, (2, n, f)), rng.uniform(0.5, 1.0, n), log_weight)
    return [jnp.asarray(x, dtype) for x in drawn]

def energy(method, fn, receiver, sender, coefficient, log_weight=None):
    # Two receivers to a block leave the last block of three half empty.
    return method(PairFeatures(receiver, sender), 0.7, coefficient=coefficient,
                  log_weight=log_weight, alignment_fn=fn, block_size=2)

def compare(energies, inputs, tolerance):
    def all_of_them(method, inputs):
        numbers = tuple(range(len(inputs)))
        slopes = [jax.value_and_grad(partial(energy, method, fn), argnums=numbers)
                  for fn in energies]
        return [slope(*inputs) for slope in slopes]
    inputs = jax.device_put(inputs, of_agents)
    found = computed(partial(all_of_them, ring(eight, "data")), inputs)
    expected = computed(partial(all_of_them, pairwise.alignment_energy), inputs)
    chex.assert_trees_all_equal_dtypes(found, expected)
    chex.assert_trees_all_close(found, expected, rtol=tolerance, atol=tolerance)
"""

# Sums of 24 terms of order 1.
QUICK = """
compare([alignment.weighted, alignment.entropic], arrays("float64"), 1e-13)
print("equal")
"""

TABLE = """
# An infinite feature costs no slope more than on one device, of a sender and of a receiver.
receiver, sender, coefficient, _ = arrays("float64")
inputs = receiver.at[7, 1].set(jnp.inf), sender.at[4, 0].set(jnp.inf), coefficient
compare([partial(alignment.saturating, limit=2.0)], inputs, 1e-13)
compare(alignment.ALIGNMENTS.values(), arrays("float32"), 1e-5)

# Fields of 16 agents on 3 points; agent 5 has no neighbours where the others are absent.
rotations = oracle.ROTATIONS["vector"]
population = oracle.random_population(rng, 16, rotations, (3,))
supports = rng.uniform(size=(16, 3))
supports[supports < 0.3] = 0.0
supports[:, 1] = np.eye(16)[5]
inputs = jax.device_put((population, jnp.asarray(supports)), of_agents)

def total(method, population, supports):
    return free_energy(population, rotations, weights=(1, 2, 3, 0), temperature=5.0,
                       supports=supports, method=method)

both = [computed(jax.value_and_grad(partial(total, method)), *inputs)
        for method in (ring(eight, "data"), pairwise.alignment_energy)]
chex.assert_trees_all_close(*both, rtol=1e-11, atol=1e-11)
broken = population._replace(phi=population.phi.at[3].set(jnp.nan))
assert np.isnan(computed(partial(total, ring(eight, "data")), broken, inputs[1]))

# Second derivatives.
receiver, *rest = arrays("float64")
direction = jnp.asarray(rng.normal(size=receiver.shape))
def curvature(method):
    slope = jax.grad(lambda x: energy(method, alignment.weighted, x, *rest))
    return computed(lambda x: jax.jvp(slope, (x,), (direction,))[1], receiver)
both = [curvature(method) for method in (ring(eight, "data"), pairwise.alignment_energy)]
chex.assert_trees_all_close(*both, rtol=1e-12, atol=1e-12)
print("equal")
"""

MEMORY = """
# One device holds 256 agents; the population grows with the devices.
temporary = {}
for devices in (4, 8):
    mesh, of_agents = over(devices)
    shape = jax.ShapeDtypeStruct((256 * devices, 11), "float32", sharding=of_agents)
    loss = lambda x, y: ring(mesh, "data")(PairFeatures(x, y), 1.0, block_size=16)
    slope = jax.jit(jax.grad(loss, argnums=(0, 1)))
    compiled = slope.lower(shape, shape).compile()
    temporary[devices] = compiled.memory_analysis().temp_size_in_bytes
    jax.export.export(slope, platforms=["cuda"])(shape, shape)
assert temporary[8] < 1.1 * temporary[4], temporary
print("equal")
"""


def run(code):
    assert on_eight_devices(SETUP + code)[0] == "equal\n"


def test_value_and_gradient_over_eight_devices_equal_those_of_one():
    run(QUICK)


@pytest.mark.slow
def test_every_energy_field_precision_and_derivative_equals_that_of_one_device():
    run(TABLE)


@pytest.mark.slow
def test_memory_of_a_device_does_not_grow_with_the_population_and_it_lowers_for_cuda():
    run(MEMORY)


@pytest.mark.parametrize("alignment_fn", ALIGNMENTS.values(), ids=ALIGNMENTS)
def test_every_energy_is_that_of_the_summary_of_its_row(alignment_fn, rng):
    divergence, weight = rng.uniform(size=(2, 4, 6))
    weight[1:3] *= [[0, 1, 1, 0, 1, 1], [0] * 6]
    mass, total = weight.sum(axis=1), (weight * np.exp(-divergence)).sum(axis=1)
    mean = (weight * np.exp(-divergence) * divergence).sum(axis=1) / np.maximum(total, 1e-300)
    with np.errstate(divide="ignore"):
        summary = Summary(np.log(mass), np.log(total), mean)
        expected = alignment_fn(jnp.asarray(divergence), jnp.log(weight), rows())
    found = of_summary(alignment_fn)(jax.tree.map(jnp.asarray, summary))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
    assert found[2] == 0.0


def own(divergence, log_weight, over):
    return over.sum(jnp.exp(log_weight) * divergence)


@pytest.mark.parametrize(
    ("num", "alignment_fn", "message"),
    [
        (12, saturating, r"the 8 devices of 'data' must divide the agents, got 12"),
        (16, own, r"alignment_fn must be one of weighted, entropic, saturating where .* got own"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(num, alignment_fn, message):
    features = PairFeatures(*jnp.ones((2, num, 3)))
    with pytest.raises(ValueError, match=message):
        ring(EIGHT, "data")(features, 1.0, alignment_fn=alignment_fn)


def test_neighbour_lists_refuse_a_method():
    belief = Gaussian(jnp.eye(3), jnp.tile(jnp.eye(3), (3, 1, 1)))
    edges, agents = Edges(*jnp.array([[0], [1]])), Population(belief, belief, jnp.zeros((3, 3)))
    with pytest.raises(ValueError, match="method must be left out with edges"):
        free_energy.free_energy(agents, irreps.so3((1,)), edges=edges, method=ring(EIGHT, "data"))
