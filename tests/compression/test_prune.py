"""Units of a model: which are chosen, what they are worth, and what is left without the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.compression.prune import Cut, Part, Scaling, choose, shrink, written


def test_the_best_stay_in_their_order():
    nan = np.copysign(np.nan, -1)  # as 0/0 is on many processors
    scores = np.asarray([[0.1, 0.9, 0.5, 0.7], [4.0, 1.0, 2.0, 3.0], [3.0, nan, 1.0, 2.0]])
    two = jax.jit(lambda scores: choose(scores, 2))
    np.testing.assert_array_equal(two(scores), [[1, 3], [0, 3], [0, 1]])


@pytest.mark.parametrize("count", [0, 5])
def test_a_count_beyond_the_units_is_named(count):
    with pytest.raises(ValueError, match=f"count must lie between 1 and 4 units, got {count}"):
        choose(jnp.ones(4), count)


def test_what_is_written_of_a_unit_is_what_the_kernel_makes_of_its_inputs_alone(rng, dtype):
    copies, count, size = 2, 3, 2
    width = copies * count * size
    x, kernel = (rng.normal(size=(n, m)).astype(dtype) for n, m in ((50, width), (width, 5)))
    reader = Cut("kernel", -2, copies, size)
    write = jax.jit(lambda kernel, moments: written(kernel, moments, reader, count))
    found = np.asarray(write(kernel, x.T @ x / np.asarray(50, dtype)))
    for unit in range(count):
        alone = np.zeros((copies, count, size))
        alone[:, unit] = 1
        output = (x * alone.reshape(1, -1).astype(dtype)) @ kernel
        expected = np.sqrt(np.mean(np.sum(np.square(output), axis=1)))
        # Sums of 4 x 5 products, each to the last bit or two.
        np.testing.assert_allclose(found[unit], expected, rtol=50 * np.finfo(dtype).eps)


def test_what_is_written_keeps_nan_and_refuses_what_does_not_fit():
    moments = np.diag([np.nan, 1.0])
    kernel, reader = np.ones((2, 3)), Cut("kernel", -2)
    found = jax.jit(lambda kernel, moments: written(kernel, moments, reader, 2))(kernel, moments)
    assert np.isnan(np.asarray(found)[0])
    with pytest.raises(ValueError, match=r"kernel must have 3 inputs \(1 x 3 x 1\)"):
        written(kernel, moments, reader, 3)
    with pytest.raises(ValueError, match=r"moments must be \(2, 2\) .* got \(3, 3\)"):
        written(kernel, np.eye(3), reader, 2)


def test_copies_and_layers_keep_their_own_units():
    # Two layers, two copies of three units of two entries: the digits say which entry it is.
    leaf = jnp.asarray(np.arange(2 * 12).reshape(2, 12))
    structure = {"heads": Part(3, (Cut("x", -1, copies=2, size=2),))}
    keep = {"heads": jnp.asarray([[0, 2], [1, 2]])}
    shrunk = jax.jit(lambda params, keep: shrink(params, structure, keep))
    found = jax.device_get(shrunk({"x": leaf, "y": leaf}, keep))
    np.testing.assert_array_equal(found["x"][0], [0, 1, 4, 5, 6, 7, 10, 11])
    np.testing.assert_array_equal(found["x"][1] - 12, [2, 3, 4, 5, 8, 9, 10, 11])
    np.testing.assert_array_equal(found["y"], leaf)


def test_layers_go_after_what_differs_between_them():
    structure = {
        "layers": Part(2, (Cut("blocks/*", 0),)),
        "hidden": Part(2, (Cut("blocks/x", -1),)),
    }
    keep = {"layers": jnp.asarray([1]), "hidden": jnp.asarray([[0], [1]])}
    params = {"blocks": {"x": jnp.asarray([[1.0, 2.0], [3.0, 4.0]])}}
    assert shrink(params, structure, keep)["blocks"]["x"].tolist() == [[4.0]]


def test_scalings_follow_the_number_of_units_and_a_single_unit_stands_alone():
    part = Part(4, (Cut("x", -1),), scalings=(Scaling("s", 0.5, part=1, parts=2),), alone=("r/k",))
    params = {"x": jnp.ones(4), "s": jnp.ones(2), "r": {"k": jnp.ones(3)}}
    found = shrink(params, {"e": part}, {"e": jnp.asarray([2])})
    assert found["s"].tolist() == [1.0, 2.0]
    assert found.keys() == {"x", "s"}
    assert "r" in shrink(params, {"e": part}, {"e": jnp.asarray([1, 2])})


def test_what_does_not_fit_the_structure_is_named():
    structure = {"hidden": Part(3, (Cut("x", -1),))}
    with pytest.raises(ValueError, match="keep must name options among hidden, got heads"):
        shrink({"x": jnp.ones(3)}, structure, {"heads": jnp.asarray([0])})
    for wrong in ([0, 3], [0, -1]):
        with pytest.raises(ValueError, match=r"keep must be from 0 to 2 for hidden, got (3|-1)"):
            shrink({"x": jnp.ones(3)}, structure, {"hidden": jnp.asarray(wrong)})
    with pytest.raises(ValueError, match="keep must be integers for hidden, got bool"):
        shrink({"x": jnp.ones(3)}, structure, {"hidden": jnp.asarray([True, False, True])})
    with pytest.raises(ValueError, match=r"params must have 1 x 3 x 1 entries along axis -1 of x"):
        shrink({"x": jnp.ones(4)}, structure, {"hidden": jnp.asarray([0])})
    with pytest.raises(ValueError, match=r"its first axes be \(2,\); got shape \(1, 3\)"):
        shrink({"x": jnp.ones((1, 3))}, structure, {"hidden": jnp.asarray([[0], [1]])})
