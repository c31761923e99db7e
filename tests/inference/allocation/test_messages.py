"""Messages patch by patch, and that a picture's depend on it alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.inference.allocation import budgets, posteriors, textures
from vfejax.inference.allocation import messages as of_patches
from vfejax.inference.allocation.messages import Messages

PICTURE = jax.ShapeDtypeStruct((12, 16, 3), jnp.float32)


def plain_perspectival(colour):
    rows, columns, _ = colour.shape
    found = np.zeros((rows, columns))
    for i, j in np.ndindex(rows, columns):
        near = [
            colour[r, c]
            for r in range(max(i - 1, 0), min(i + 2, rows))
            for c in range(max(j - 1, 0), min(j + 2, columns))
            if (r, c) != (i, j)
        ]
        if near:
            contrast = np.sum((colour[i, j] - np.mean(near, axis=0)) ** 2)
            variance = np.sum(np.var(near, axis=0))
            found[i, j] = 0.5 * np.log(1 + contrast / 100) / (1 + variance / 100)
    return found


@pytest.mark.parametrize("size", [(3, 4), (1, 3), (2, 1), (1, 1)])
def test_precision_times_salience_is_that_of_plain_loops(rng, size):
    given = rng.normal(size=(*size, 13)) * 20
    found = jax.jit(of_patches.perspectival)(given)
    np.testing.assert_allclose(found, plain_perspectival(given[..., 3:6]), rtol=0, atol=1e-12)


def test_messages_of_a_picture_depend_on_it_alone(rng):
    pictures = rng.random((2, 12, 16, 3)).astype(np.float32)
    darker, unknown = pictures.copy(), pictures.copy()
    darker[1] *= 0.01
    unknown[1, 0, 0, 0] = np.nan

    @jax.jit
    @jax.vmap
    def pipeline(picture):
        messages = of_patches.picture_messages(textures.patch_textures(picture, 4))
        log_pi = posteriors.posterior(of_patches.score(messages, jnp.ones(3)))
        return messages, log_pi, budgets.allocate(log_pi, 60, 2, 20)

    before, after, broken = (jax.device_get(pipeline(x)) for x in (pictures, darker, unknown))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[0], y[0]), before, after)
    assert not np.array_equal(before[1][1], after[1][1])
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[0], y[0]), before, broken)
    assert np.all(np.isnan(broken[1][1]))


def test_shapes_are_refused():
    with pytest.raises(ValueError, match=r"information must have shape \[2, 3\], got \[3, 2\]"):
        of_patches.picture_messages(jnp.zeros((2, 3, 13)), jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"textures must have shape \[r, c, 13\], got \[2, 3, 4\]"):
        of_patches.perspectival(jnp.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match=r"weights must have shape \[3\], got \[2\]"):
        of_patches.score(Messages(*jnp.zeros((3, 5))), jnp.ones(2))
