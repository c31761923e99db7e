"""Maps of reduced rank are those of kooplearn on the same features."""

import jax
import jax.numpy as jnp
import pytest

from vfejax.koopman import dictionaries, operators, spectrum, streaming
from vfejax.problems import known_spectra


@jax.jit
def lifted(key):
    """Features of a trajectory and their statistics."""
    z = dictionaries.harmonics(3)(known_spectra.logistic_map(key, 400)).astype(jnp.float64)
    factor = streaming.init(z.shape[1], dtype=z.dtype)
    return z, streaming.update(factor, z[:-1], z[1:])


reduced_rank = jax.jit(operators.reduced_rank, static_argnames="rank")


@pytest.mark.parametrize(("rank", "share"), [(5, 1e-6), (3, 1e-2)])
def test_reduced_rank_has_the_eigenvalues_of_kooplearn(rank, share):
    from kooplearn.linear_model import Ridge

    z, factor = jax.device_get(lifted(jax.random.key(0)))
    values = spectrum.eig(reduced_rank(factor, rank=rank, ridge=share * factor.count)).values
    oracle = Ridge(n_components=rank, reduced_rank=True, alpha=share).fit(z)
    distance = spectrum.directed_hausdorff_distance(oracle.eig(), values[:rank])
    assert distance < 1e-4  # float32, eigenvalues of a matrix that is not normal
