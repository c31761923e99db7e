"""Shared set-up: float64 available, strict promotion, warnings are errors (pyproject.toml)."""

import os

os.environ.setdefault("JAX_PLATFORMS", os.environ.get("VFEJAX_TEST_PLATFORM", ""))

import jax
import jax.numpy as jnp
import numpy as np
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Run a test once in each precision."""
    return jnp.dtype(request.param)


@pytest.fixture
def rng():
    """A NumPy generator for test data, fresh and identical in every test."""
    return np.random.default_rng(20260731)


@pytest.fixture(scope="module")
def library_promotion():
    """What flax's layers and optax's Adam need: they mix dtypes and ranks, which the settings above
    refuse.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
