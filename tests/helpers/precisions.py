"""Tests that make their claim in single precision by default, and again in double precision when
slow tests run.
"""

import jax.numpy as jnp
import pytest

single_by_default = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(jnp.dtype("float32"), id="float32"),
        pytest.param(jnp.dtype("float64"), id="float64", marks=pytest.mark.slow),
    ],
)
