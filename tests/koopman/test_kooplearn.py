"""Maps of reduced rank are those of kooplearn on the same features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.koopman import dictionaries, operators, spectrum, streaming
from vfejax.problems import known_spectra


@pytest.mark.parametrize(("rank", "share"), [(5, 1e-6), (3, 1e-2)])
def test_reduced_rank_has_the_eigenvalues_of_kooplearn(rank, share):
    from kooplearn.linear_model import Ridge

    z = dictionaries.harmonics(3)(known_spectra.logistic_map(jax.random.key(0), 400))
    z = jnp.asarray(z, float)
    factor = streaming.update(streaming.init(z.shape[1], dtype=z.dtype), z[:-1], z[1:])
    values = spectrum.eig(operators.reduced_rank(factor, rank, share * factor.count)).values
    oracle = Ridge(n_components=rank, reduced_rank=True, alpha=share).fit(np.asarray(z, float))
    distance = spectrum.directed_hausdorff_distance(oracle.eig(), values[:rank])
    assert distance < 1e-4  # float32, eigenvalues of a matrix that is not normal
