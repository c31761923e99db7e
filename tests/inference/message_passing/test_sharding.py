"""Devices that share the members of plates find what one device finds. They are host devices of a
process of their own: XLA makes them at start.
"""

import jax
import jax.numpy as jnp
import pytest
from helpers.host_devices import on_eight_devices

from vfejax.inference.message_passing import graph, nodes
from vfejax.inference.message_passing.sharding import shardings

SCRIPT = """
import re
import jax, jax.numpy as jnp, numpy as np
from vfejax.inference.message_passing import couplings, graph, nodes
from vfejax.inference.message_passing.coordinate_ascent import fit, message_passing
from vfejax.inference.message_passing.sharding import shardings

jax.config.update("jax_enable_x64", True)
N = 4096
model = graph.graph(
    weights=nodes.dirichlet(jnp.ones(2)),
    mean=nodes.gaussian(0.0, 0.01, plates=(2,)),
    precision=nodes.gamma(1.0, 1.0, plates=(2,)),
    label=nodes.categorical("weights", plates=(N,)),
    point=couplings.mixture("label", nodes.gaussian("mean", "precision")),
)
rng = np.random.default_rng(0)
points = jnp.asarray(rng.normal(size=N) + 3 * rng.integers(0, 2, size=N))
method, data = message_passing(model, ("point",)), {"point": points}
beliefs = method.init(None, data, start={"label": (jnp.stack([points, 2 - points], axis=1),)})
mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
inputs, shared = (beliefs, data), []
for tree in inputs:
    place = shardings(model, tree, ("label", "point"), mesh, "data")
    shared.append(jax.device_put(tree, place))

run = jax.jit(lambda beliefs, data: fit(method, beliefs, data, 6))
one = run.lower(*inputs).compile()
eight = run.lower(*shared).compile()
(found, info), (expected, _) = eight(*shared), one(*inputs)
# A sum of 4096 numbers in another order, six times.
for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10)
assert np.all(np.diff(info.elbo) >= 0)
assert all(not x.sharding.is_fully_replicated for x in found.natural["label"])

# The devices add up messages to shared nodes and the ELBO; members of plates stay where they are.
kinds = "all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter"
exchanged = re.findall(rf"= (.*?) ({kinds})(?:-start)?\\(", eight.as_text())
assert {kind for _, kind in exchanged} == {"all-reduce"}
shapes = [shape for what, _ in exchanged for shape in re.findall(r"f64\\[([0-9,]*)\\]", what)]
assert set(shapes) == {"", "2", "2,2"}
bytes_of = lambda x: x.memory_analysis().temp_size_in_bytes
assert bytes_of(eight) <= 1.2 * bytes_of(one) / 8
print("equal")
"""


def test_devices_share_the_members_of_a_plate_and_add_up_messages():
    assert on_eight_devices(SCRIPT)[0] == "equal\n"


def test_bad_arguments_are_named():
    model = graph.graph(mean=nodes.gaussian(0.0, 1.0), x=nodes.gaussian("mean", 1.0, plates=(3,)))
    mesh, data = jax.sharding.AbstractMesh((2,), ("data",)), {"x": jnp.ones(3)}
    with pytest.raises(ValueError, match="axis must be one of the mesh's"):
        shardings(model, data, ("x",), mesh, "time")
    with pytest.raises(ValueError, match="local: no node 'z', there are mean, x"):
        shardings(model, data, ("z",), mesh, "data")
    with pytest.raises(ValueError, match="first plate of x must be a multiple of the 2 devices"):
        shardings(model, data, ("x",), mesh, "data")
    with pytest.raises(ValueError, match=r"of 'data', got plates \(\)"):
        shardings(model, data, ("mean",), mesh, "data")
