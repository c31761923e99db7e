"""The GPU kernel, interpreted on the CPU and lowered for CUDA; its values are in test_methods."""

import warnings

import chex
import jax
import jax.numpy as jnp
import pytest
from jax import export

from vfejax.attention.pallas import pallas
from vfejax.attention.toroidal import dense, toroidal_attention

OPTIONS = {"depth": 2, "circumference": 40, "causal": True, "window": 20}


def attend(query, key, value, slope, method):
    return toroidal_attention(query, key, value, slope=slope, method=method, **OPTIONS)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_value_and_gradient_of_several_blocks(dtype, rng):
    arrays = [jnp.asarray(rng.normal(size=(1, 40, 2, 3)), dtype) for _ in range(3)]
    slope = jnp.asarray(2.0, jnp.float32)

    def both(method):
        answer, pull_back = jax.vjp(lambda *x: attend(*x, method), *arrays, slope)
        return answer, pull_back(answer)

    ours, expected = jax.jit(lambda: (both(pallas(16, 32, interpret=True)), both(dense)))()
    chex.assert_trees_all_equal_dtypes(ours, expected)
    ours, expected = jax.tree.map(lambda x: x.astype(jnp.float32), (ours, expected))
    # Sums of up to 80 terms of order one: gradients reach 10.
    eps = float(jnp.finfo(dtype).eps)
    chex.assert_trees_all_close(ours, expected, atol=30 * eps, rtol=8 * eps)


@pytest.mark.parametrize("masked", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_kernel_is_lowered_for_cuda(masked):
    array = jax.ShapeDtypeStruct((2, 200, 4, 24), jnp.bfloat16)
    mask = jnp.ones((2, 1, 1, 200), bool) if masked else None

    def fixed(query, key, value, slope):
        return toroidal_attention(
            query, key, value, slope=slope, mask=mask, method=pallas(), depth=2, circumference=200
        )

    # From jax 0.11 on the lowering asks which GPU it is for.
    device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("gpus",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The Pallas Triton backend is deprecated")
        program = export.export(
            jax.jit(fixed),
            platforms=["cuda"],
            disabled_checks=[export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")],
        )(array, array, array, jax.ShapeDtypeStruct((2,), jnp.float32))
    chex.assert_shape(program.out_avals, (2, 200, 4, 24))
    assert program.mlir_module().count("@__gpu$xla.gpu.triton") == 1


def test_errors_name_the_argument():
    for name, size in (("block_size", 8), ("query_block_size", 48)):
        with pytest.raises(ValueError, match=f"^{name} must be a power of two from 16 on, got"):
            pallas(**{name: size})
    array = jnp.zeros((1, 3, 2, 2))
    with pytest.raises(ValueError, match=r"got float64; take the method blockwise\(\)"):
        attend(array, array, array, None, pallas(interpret=True))
