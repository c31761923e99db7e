"""A trained ResNet-BK with blocks that are operators is what replacing them by the same maps is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.models import span_fit, spans, table
from vfejax.models.blocks import OptionError
from vfejax.models.koopman.config import KoopmanConfig
from vfejax.models.koopman.conversion import converted
from vfejax.models.koopman.model import segments
from vfejax.models.resnet_bk.config import ResNetBKConfig

pytestmark = pytest.mark.usefixtures("library_promotion")

CONFIG = ResNetBKConfig(layers=4, dim=8, heads=2, hidden=8, experts=1)
VOCABULARY, LENGTH, OPERATORS, DELAYS, RANK = 7, 10, (0, 2), 2, 5


@pytest.fixture(scope="module")
def model():
    return table.build("resnet-bk", CONFIG, VOCABULARY, LENGTH, jnp.float64)


@pytest.mark.slow
def test_a_converted_model_is_the_trained_one_with_its_maps(model):
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (3, 6, LENGTH))
    known = {}

    @jax.jit
    def convert(key):
        params = model.init(key)
        new, known["config"] = converted(
            CONFIG, model, params, tokens, OPERATORS, delays=DELAYS, rank=RANK
        )
        pairs = [(block, block + 1) for block in OPERATORS]
        fit = span_fit.fitted(model, params, tokens, pairs, delays=DELAYS)
        return params, new, [span_fit.low_rank_map(fit, pair, DELAYS, RANK) for pair in pairs]

    params, new, maps = convert(jax.random.key(0))
    student = table.build("koopman", known["config"], VOCABULARY, LENGTH, jnp.float64)
    shapes = jax.eval_shape(student.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, shapes)

    kernels = jnp.zeros((CONFIG.layers, DELAYS * CONFIG.dim, CONFIG.dim))
    biases, kind = jnp.zeros((CONFIG.layers, CONFIG.dim)), np.zeros(CONFIG.layers, np.int32)
    for block, (left, right, bias) in zip(OPERATORS, maps, strict=True):
        kernels, biases = kernels.at[block].set(left @ right), biases.at[block].set(bias)
        kind[block] = spans.MAP
    way = spans.Route(jnp.asarray(kind), spans.DelayMap(kernels, biases))
    whole = {"model": params, "route": way}
    expected = jax.jit(spans.replaced(model).apply)(whole, tokens[0]).logits
    # Sums in another order.
    found = jax.jit(student.apply)(new, tokens[0]).logits
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_layers_of_one_kind_that_follow_one_another_are_one_segment():
    assert [tuple(x) for x in segments(5, (0, 1, 3))] == [
        (True, 0, 2),
        (False, 0, 1),
        (True, 2, 3),
        (False, 1, 2),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operators": (4,)}, "operators must be numbers of blocks below 4, rising"),
        ({"operators": (2, 1)}, "operators must be numbers of blocks below 4, rising"),
        ({"operators": (0, 1, 2, 3)}, "operators must be fewer than all 4 blocks"),
        ({"operators": (1,), "rank": 9}, "rank must be at most dim 8"),
    ],
)
def test_numbers_that_do_not_fit_are_named(options, message, model):
    with pytest.raises(OptionError, match=message):
        converted(CONFIG, model, {}, jnp.ones((1, 2, 3), int), **{"rank": 4, **options})


def test_a_model_refuses_an_operator_of_more_than_full_rank():
    with pytest.raises(OptionError, match="rank must be at most dim 16, got 17"):
        table.build("koopman", KoopmanConfig(dim=16, heads=4, rank=17), 11, 8)
