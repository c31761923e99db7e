"""The published shortcut gradients, which only the benchmark and a notebook still know: they state
their rule, and they are not the gradient.
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import dense_chain as dense

PATH = Path(__file__).parents[2] / "benchmarks" / "resolvent_gradients.py"
SPEC = importlib.util.spec_from_file_location("resolvent_gradients", PATH)
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)


@pytest.mark.parametrize("grad_blend", [0.0, 0.3, 1.0])
def test_shortcut_states_its_rule_and_misses_the_gradient(grad_blend, rng):
    a, b, c, z = dense.chain(rng, 20, hermitian=True)
    w = rng.standard_normal(20) + 1j * rng.standard_normal(20)

    @jax.jit
    def run(a):
        value, pull = jax.vjp(lambda a: benchmark.blended(a, b, c, z, grad_blend), a)
        return value, *pull(jnp.asarray(w))

    value, slope = run(a)
    g = dense.diagonal(dense.resolvent(a, b, c, z))
    np.testing.assert_allclose(value, g, rtol=1e-12)
    rule = -w * ((1 - grad_blend) * g**2 + grad_blend / g**2)
    np.testing.assert_allclose(slope, rule.real, rtol=1e-11)
    exact = dense.adjoint(a, b, c, z, w)[0].real
    assert np.linalg.norm(slope - exact) > 0.1 * np.linalg.norm(exact)
