"""The table of models, and what it makes of options."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.models import table

pytestmark = pytest.mark.usefixtures("library_promotion")

TOKENS = jnp.ones((2, 8), jnp.int32)


@pytest.mark.parametrize("name", ["transformer", "pure-fep", "toroidal"])
def test_numbers_of_numpy_are_as_good_as_those_of_python(name):
    """In float32, beside which a float64 of NumPy would make float64."""
    plain = table.MODELS[name].tiny
    numbers = {
        field.name: np.asarray(getattr(plain, field.name))[()]
        for field in dataclasses.fields(plain)
        if type(getattr(plain, field.name)) in (int, float)
    }
    config = dataclasses.replace(plain, **numbers)
    models = (
        table.build(name, plain, 11, 8),
        table.build(name, config, np.int64(11), np.int64(8)),
    )
    expected, found = (
        jax.eval_shape(lambda key, m=model: m.apply(m.init(key), TOKENS), jax.random.key(0))
        for model in models
    )
    assert found == expected
    assert found.logits.dtype == np.float32
    assert models[0].max_length == models[1].max_length


def test_sizes_that_are_not_whole_are_refused():
    with pytest.raises(ValueError, match=r"length must be a whole number, got 8\.5"):
        table.build("transformer", table.MODELS["transformer"].tiny, 11, 8.5)
