"""Joint outcomes of modalities against sums over states, in both ways of computing them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.inference.pomdp import POMDP, prediction

SIZES, OUTCOMES, SEEN_BY = (3, 2, 4), (2, 5, 3), ((0,), (0, 2), (1,))


def _model(rng):
    likelihoods = [
        rng.dirichlet(np.ones(num), tuple(SIZES[f] for f in factors))
        for num, factors in zip(OUTCOMES, SEEN_BY, strict=True)
    ]
    return POMDP(
        [jnp.moveaxis(jnp.asarray(a), -1, 0) for a in likelihoods],
        [jnp.eye(size)[..., None] for size in SIZES],
        [jnp.zeros(num) for num in OUTCOMES],
        [jnp.ones(size) / size for size in SIZES],
        A_dependencies=SEEN_BY,
    )


@pytest.mark.parametrize("modalities", [(0, 1, 2), (0, 1), (2,), (1, 0)], ids=str)
@pytest.mark.parametrize("largest", [0, 2**15])
def test_joint_outcomes_are_sums_over_all_states(modalities, largest, monkeypatch):
    monkeypatch.setattr(prediction, "_LARGEST_LIKELIHOOD", largest)
    rng = np.random.default_rng(0)
    model = _model(rng)
    beliefs = [rng.dirichlet(np.ones(size), 7) for size in SIZES]
    expected = np.zeros((7, *(OUTCOMES[m] for m in modalities)))
    for state in np.ndindex(*SIZES):
        chance = np.prod([q[:, s] for q, s in zip(beliefs, state, strict=True)], axis=0)
        joint = np.ones(())
        for m in modalities:
            joint = np.multiply.outer(
                joint, model.A[m][(slice(None), *(state[f] for f in SEEN_BY[m]))]
            )
        expected += np.multiply.outer(chance, joint)
    found = jax.jit(jax.vmap(lambda *q: prediction.joint_outcomes(model, q, modalities)))(*beliefs)
    # Sums of 24 products of probabilities: a few roundings.
    np.testing.assert_allclose(
        found, expected.reshape(7, -1), rtol=0, atol=8 * np.finfo(found.dtype).eps
    )
