"""Eight devices give what one gives, and hold their share of the state. They are host devices of a
process of their own: XLA makes them at start.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.host_devices import on_eight_devices
from jax.sharding import AbstractMesh

from vfejax.agents.population import Population
from vfejax.beliefs.gaussian import Gaussian
from vfejax.koopman import streaming
from vfejax.models import table
from vfejax.training import sharding
from vfejax.training.step import trainer
from vfejax.types import TrainState

MESH = AbstractMesh((8,), ("data",))

CODE = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import NamedSharding, PartitionSpec as P
from vfejax import devices, routing
from vfejax.models.gpt import model as transformer
from vfejax.quantum import hermitian
from vfejax.runs.chunk import compiled
from vfejax.training import sharding
from vfejax.training.evaluate import evaluator
from vfejax.training.step import trainer

jax.config.update("jax_enable_x64", True)
assert jax.device_count() == 8
model = transformer.build(transformer.TransformerConfig(1, 8, 2, 16), 11, 4, jnp.float64)
methods = {
    count: trainer(m, optax.adamw(0.01), jax.random.key(1), accumulation=2)
    for count, m in {1: model, 8: model._replace(apply=model.recompute)}.items()
}
windows = np.random.default_rng(0).integers(0, 11, (3, 16, 5)).astype(np.int32)
first = jax.device_get(jax.jit(methods[1].init)(jax.random.key(0)))
found = []
for count, name in ((1, "zero3"), *((8, name) for name in sharding.RULES)):
    mesh = sharding.data_mesh(16, jax.devices()[:count])
    assert mesh.shape == {"data": count}
    shardings = sharding.RULES[name](mesh, first)
    state = sharding.place(first, shardings)
    batches = sharding.split_batches(mesh, windows)
    assert batches.sharding.shard_shape(batches.shape) == (3, 16 // count, 5)
    chunk = compiled(methods[count].step, state)
    state, infos = chunk(state, batches, 3)
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(shardings)):
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), (name, leaf.sharding, wanted)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    assert held == sharding.footprint(state, shardings).per_device
    rule = sharding.zero3 if name == "zero3" else sharding.replicated
    measured = evaluator(model, mesh, None, 3, rule)(state.params, windows)
    found.append((*jax.device_get((state, infos.loss)), measured))
near = {"rtol": 1e-9, "atol": 1e-12}
for other in found[1:]:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **near), found[0], other)

def experts(x, kernel_in, kernel_out):
    logits = x[..., :4]
    return jnp.sum(routing.expert_feed_forward(x, routing.top_k(logits, 2), kernel_in, kernel_out))

mesh = sharding.data_mesh(16)
shapes = (16, 3, 5), (4, 5, 6), (4, 6, 5)
inputs = [np.random.default_rng(i).standard_normal(shape) for i, shape in enumerate(shapes)]
expected = jax.jit(jax.value_and_grad(experts, (0, 1, 2)))(*inputs)
places = NamedSharding(mesh, P("data")), NamedSharding(mesh, P()), NamedSharding(mesh, P())
inputs = [jax.device_put(x, place) for x, place in zip(inputs, places)]
method = jax.jit(jax.value_and_grad(sharding.in_scope(mesh, experts), (0, 1, 2)))
method = method.lower(*inputs).compile()
assert "all-gather" not in method.as_text()
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **near), method(*inputs), expected)

# Where XLA does not place arrays, or no program is compiled, the mesh in scope changes nothing.
kinds = jax.sharding.AxisType
for kind, way in ((kinds.Explicit, jax.jit(hermitian.eigvalsh)), (kinds.Auto, devices.whole)):
    with jax.set_mesh(jax.make_mesh((8,), ("data",), (kind,))):
        assert way(jnp.ones((8, 2, 2))).shape[0] == 8

assert sharding.data_mesh(12).shape == {"data": 6}
assert sharding.data_mesh(11).shape == {"data": 1}
print("equal")
"""


def test_on_one_device_nothing_is_split():
    mesh = sharding.data_mesh(7, jax.devices()[:1])
    assert mesh.shape == {"data": 1}
    windows = np.arange(42).reshape(2, 7, 3)
    for found in (
        sharding.replicate(mesh, windows),
        sharding.place(windows, sharding.zero3(mesh, windows)),
        sharding.split_batches(mesh, windows),
    ):
        assert found.sharding.shard_shape(found.shape) == (2, 7, 3)
        np.testing.assert_array_equal(found, windows)


def _train_state():
    model = table.build("transformer", table.MODELS["transformer"].tiny, 11, length=8)
    return trainer(model, optax.adamw(0.1), jax.random.key(1)).init(jax.random.key(0))


def _population():
    belief = Gaussian(jnp.ones((16, 3)), jnp.ones((16, 3, 3)))
    return Population(belief, belief, jnp.ones((16, 3)))


STATES = {
    "training": (_train_state, {"params", "optimizer_state"}),
    "statistics": (lambda: streaming.init(16), {""}),
    "population": (_population, {""}),
}


@pytest.mark.parametrize("name", STATES)
def test_a_rule_divides_what_it_says_of_any_state(name):
    state = jax.eval_shape(STATES[name][0])
    leaves = jax.tree.leaves(state)
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    held = {rule: sharding.footprint(state, fn(MESH, state)) for rule, fn in sharding.RULES.items()}
    assert held["replicated"] == (total, total, held["replicated"].whole)
    assert len(held["replicated"].whole) == len(leaves)
    # An eighth, but for leaves none of whose axes 8 divides.
    rest = sum(held["zero3"].whole.values())
    assert rest < total / 100
    assert held["zero3"].per_device == (total - rest) // 8 + rest
    if not isinstance(state, TrainState):
        assert held["zero1"] == held["zero3"]
        return
    weights = sharding.zero1(MESH, state).params
    assert all(x.is_fully_replicated for x in jax.tree.leaves(weights))
    params = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.params))
    assert held["zero1"].per_device == (total - params - rest) // 8 + params + rest


def test_the_longest_axis_that_can_be_divided_is():
    shapes = {"a": (16, 24), "b": (8, 9), "c": (7, 9), "d": (8, 0), "e": ()}
    template = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    found = sharding.zero3(MESH, template)
    per_device = {name: found[name].shard_shape(shape) for name, shape in shapes.items()}
    assert per_device == {"a": (16, 3), "b": (1, 9), "c": (7, 9), "d": (1, 0), "e": ()}
    with pytest.raises(ValueError, match="mesh must have one axis"):
        sharding.zero3(AbstractMesh((4, 2), ("data", "model")), template)


@pytest.mark.slow
def test_eight_devices_train_and_evaluate_as_one_does_under_every_rule():
    assert on_eight_devices(CODE)[0] == "equal\n"
