"""The classical Runge-Kutta scheme: its order, its types, and the energy that it loses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.dynamics.rollout import rollout
from vfejax.dynamics.runge_kutta import runge_kutta4

pytestmark = pytest.mark.usefixtures("library_promotion")


def _oscillate(z):
    return {"q": z["p"], "p": -z["q"]}


def test_it_is_of_fourth_order_keeps_types_and_loses_energy_as_theory_says():
    start = {"q": jnp.ones((), jnp.float32), "p": jnp.zeros(())}

    @jax.jit
    def ends():
        found = []
        for dt in (0.2, 0.1):
            scheme = runge_kutta4(_oscillate, dt)
            found.append(rollout(scheme, scheme.init(start | {"q": jnp.ones(())}), round(2 / dt)))
        single = runge_kutta4(_oscillate, 0.1).step(start)
        return [end for end, _ in found], single

    (coarse, fine), (single, slope) = ends()
    errors = [np.hypot(end["q"] - np.cos(2), end["p"] + np.sin(2)) for end in (coarse, fine)]
    assert 3.8 < np.log2(errors[0] / errors[1]) < 4.2
    assert (single["q"].dtype, single["p"].dtype) == (jnp.float32, jnp.float64)
    assert float(slope["p"]) == -1.0
    # A step multiplies q^2 + p^2 by 1 - dt^6 / 72 + dt^8 / 576.
    kept = float(fine["q"] ** 2 + fine["p"] ** 2)
    np.testing.assert_allclose(1 - kept, 20 * (1e-6 / 72 - 1e-8 / 576), rtol=1e-6)
