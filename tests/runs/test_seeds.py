"""Random keys from seeds."""

import jax
import pytest

from vfejax.runs.seeds import LARGEST_SEED, random_key

SEEDS = (0, 1, 5, 2**32 - 1, 2**32, 2**32 + 5, 2**33 + 5, LARGEST_SEED)


def test_every_bit_of_a_seed_counts():
    keys = {tuple(jax.random.key_data(random_key(seed)).tolist()) for seed in SEEDS}
    assert len(keys) == len(SEEDS)


def test_a_small_seed_gives_the_key_of_jax():
    assert all(random_key(seed) == jax.random.key(seed) for seed in (0, 1, 2**31, 2**32 - 1))


def test_64_bit_mode_gives_the_same_keys():
    wide = [jax.random.key_data(random_key(seed)).tolist() for seed in SEEDS]
    with jax.enable_x64(False):
        assert [jax.random.key_data(random_key(seed)).tolist() for seed in SEEDS] == wide


@pytest.mark.parametrize("seed", [-1, 2**63, 10**30])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=f"seed must be at least 0 .* got {seed}"):
        random_key(seed)
