import chex
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax import numerics


def test_floating_tree_names_the_leaf():
    tree = numerics.floating_tree({"a": 1, "b": jnp.ones(2, jnp.float32)}, "position")
    expected = {"a": np.zeros(()), "b": np.zeros(2, np.float32)}
    chex.assert_trees_all_equal_shapes_and_dtypes(tree, expected)
    with pytest.raises(ValueError, match=r"position\['a'\] must be real, got complex"):
        numerics.floating_tree({"a": 1j}, "position")
