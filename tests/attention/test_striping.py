import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.attention import _ring_sweeps
from vfejax.attention.pattern import Pattern
from vfejax.attention.striping import stripe, unstripe
from vfejax.geometry.torus import circular_distance


@pytest.mark.parametrize("n", [8, pytest.param(24, marks=pytest.mark.slow)])
def test_striped_tokens_come_back_and_are_dealt_round(n, rng):
    x = rng.normal(size=(2, n, 3))
    dealt = stripe(jnp.asarray(x), 4)
    np.testing.assert_array_equal(dealt.reshape(2, 4, n // 4, 3)[:, 1], x[:, 1::4])
    np.testing.assert_array_equal(unstripe(dealt, 4), x)
    np.testing.assert_array_equal(unstripe(stripe(jnp.asarray(x).T, 4, axis=-2), 4, axis=-2), x.T)


def test_striped_tokens_give_every_device_the_same_work():
    devices, tiles, size = 4, 4, 4
    in_order = np.arange(devices * tiles * size)
    is_read = jax.jit(
        jax.vmap(
            jax.vmap(
                lambda queries, keys: _ring_sweeps.is_read(
                    Pattern(
                        queries[None], keys[None], None, None, 1, 64, circular_distance,
                        True, None, False,
                    )
                ),
                (None, 0),
            ),
            (0, None),
        )
    )  # fmt: skip

    def tiles_read(places):
        blocks = places.reshape(-1, size)
        return is_read(blocks, blocks).reshape(devices, -1).sum(axis=1).tolist()

    # Tiles of 4 places that each of 4 devices reads, of 16 blocks.
    assert tiles_read(in_order) == [10, 26, 42, 58]
    assert tiles_read(np.asarray(stripe(jnp.asarray(in_order), devices, axis=0))) == [40] * 4


@pytest.mark.parametrize("deal", [stripe, unstripe])
def test_tokens_that_cannot_be_dealt_evenly_are_refused(deal):
    for devices in (4, 0):
        with pytest.raises(
            ValueError, match=f"num_devices must divide the 6 tokens, got {devices}"
        ):
            deal(jnp.ones((1, 6)), devices)
