import io
import os
import zipfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.beliefs import gaussian
from vfejax.data import population_arrays
from vfejax.errors import UserError

KEYS = ("mu_q", "Sigma_q", "mu_p", "Sigma_p", "phi")


def make_arrays(rng, shape=(5,), k=3, a=3):
    def covariances():
        factor = rng.normal(size=(*shape, k, k))
        return factor @ np.swapaxes(factor, -2, -1) + np.eye(k)

    return {
        "mu_q": rng.normal(size=(*shape, k)),
        "Sigma_q": covariances(),
        "mu_p": rng.normal(size=(*shape, k)),
        "Sigma_p": covariances(),
        "phi": rng.normal(size=(*shape, a)),
    }


@pytest.fixture
def arrays(rng):
    return make_arrays(rng)


@pytest.mark.parametrize("shape", [(5,), (2, 4), (2, 3, 2)], ids=["points", "ring", "grid"])
def test_arrays_survive_the_round_trip(rng, dtype, shape):
    arrays = make_arrays(rng, shape, k=4, a=6)
    population = population_arrays.from_arrays(arrays, dtype=dtype)
    leaves = jax.tree.leaves(population)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    chex.assert_type(leaves, dtype)
    back = population_arrays.to_arrays(population)
    assert tuple(back) == KEYS
    for name in ("mu_q", "mu_p", "phi"):
        np.testing.assert_array_equal(back[name], arrays[name].astype(dtype))
    for name in ("Sigma_q", "Sigma_p"):
        chex.assert_type(back[name], dtype)
        np.testing.assert_array_equal(back[name], np.swapaxes(back[name], -2, -1))
        # Cholesky's backward error: k + 1 roundings of entries as large as the diagonal's.
        scale = np.abs(arrays[name]).max()
        np.testing.assert_allclose(
            back[name], arrays[name], atol=5 * 4 * np.finfo(dtype).eps * scale, rtol=0
        )


def test_result_agrees_with_the_library(arrays, dtype):
    population = population_arrays.from_arrays(arrays, dtype=dtype)
    expected = gaussian.from_moments(
        jnp.asarray(arrays["mu_q"], dtype), jnp.asarray(arrays["Sigma_q"], dtype)
    )
    condition = np.linalg.cond(arrays["Sigma_q"]).max()
    np.testing.assert_allclose(
        population.belief.chol,
        expected.chol,
        rtol=condition * np.finfo(dtype).eps,
        atol=condition * np.finfo(dtype).eps,
    )
    np.testing.assert_array_equal(np.triu(population.belief.chol, 1), np.zeros_like(expected.chol))


def test_dtype_is_jax_default_or_refused(arrays):
    chex.assert_type(population_arrays.from_arrays(arrays).phi, jnp.result_type(float))
    with pytest.raises(ValueError, match="float32 or float64, got int32"):
        population_arrays.from_arrays(arrays, dtype=np.int32)
    with jax.enable_x64(False):
        chex.assert_type(population_arrays.from_arrays(arrays).phi, np.float32)
        with pytest.raises(UserError, match="JAX_ENABLE_X64"):
            population_arrays.from_arrays(arrays, dtype=np.float64)


def test_integers_and_half_precision_are_real_numbers(arrays):
    arrays["phi"] = np.ones((5, 3), int)
    arrays["mu_q"] = arrays["mu_q"].astype(np.float16)
    population = population_arrays.from_arrays(arrays, dtype=np.float32)
    np.testing.assert_array_equal(population.phi, np.ones((5, 3)))


@pytest.mark.parametrize("name", KEYS)
def test_missing_array_is_named(arrays, name):
    del arrays[name]
    with pytest.raises(UserError, match=f"^start.npz: array {name} is missing"):
        population_arrays.from_arrays(arrays, source="start.npz")


def test_unknown_array_is_named(arrays):
    with pytest.raises(UserError, match="array sigma_q is unknown; allowed are mu_q, "):
        population_arrays.from_arrays({**arrays, "sigma_q": np.zeros(1)})


@pytest.mark.parametrize(
    "bad",
    [
        np.full((5, 3), "x"),
        np.zeros((5, 3), complex),
        np.zeros((5, 3), bool),
        np.full((5, 3), None),
    ],
)
def test_only_real_numbers(arrays, bad):
    with pytest.raises(UserError, match="phi must hold real numbers, got dtype"):
        population_arrays.from_arrays({**arrays, "phi": bad})


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("Sigma_q", (5, 3, 2), "(5, 3, 3)"),
        ("Sigma_q", (5, 9), "(5, 3, 3)"),
        ("mu_p", (4, 3), "(5, 3)"),
        ("Sigma_p", (5, 4, 4), "(5, 3, 3)"),
        ("phi", (4, 3), "(5, a)"),
        ("phi", (5, 2, 3), "(5, a)"),
        ("phi", (5, 0), "(5, a)"),
        ("phi", (), "(5, a)"),
    ],
)
def test_wrong_shape_names_the_array_and_both_shapes(arrays, name, shape, wanted):
    with pytest.raises(UserError) as caught:
        population_arrays.from_arrays({**arrays, name: np.zeros(shape)})
    got = f"({', '.join(map(str, shape))})"
    assert (
        str(caught.value)
        == f"initial state: {name} must have shape {wanted} to fit mu_q (5, 3), got {got}"
    )


@pytest.mark.parametrize("shape", [(3,), (0, 3), (5, 0), ()])
def test_population_must_have_agents_and_dimensions(arrays, shape):
    with pytest.raises(UserError, match="mu_q must have shape"):
        population_arrays.from_arrays({**arrays, "mu_q": np.zeros(shape)})


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_names_array_and_agent(arrays, name, bad):
    arrays[name][3, ..., 1] = bad
    with pytest.raises(UserError, match=f"{name} of agent 3 contains NaN or infinity"):
        population_arrays.from_arrays(arrays)


def test_overflow_of_the_dtype_is_refused(arrays):
    arrays["mu_p"][2, 0] = 1e300
    with pytest.raises(UserError, match="mu_p of agent 2 is too large for float32"):
        population_arrays.from_arrays(arrays, dtype=np.float32)


def test_asymmetry_is_refused_with_its_size(arrays):
    arrays["Sigma_p"][4, 0, 2] += 0.25
    with pytest.raises(UserError, match=r"Sigma_p of agent 4 is not symmetric: .* up to 0\.25;"):
        population_arrays.from_arrays(arrays)


def test_asymmetry_within_rounding_is_accepted_and_the_lower_triangle_used(arrays, dtype):
    eps = float(np.finfo(dtype).eps)
    cov = np.eye(3) + 0.5
    for factor, accepted in ((2.0, True), (1000.0, False)):
        cov[0, 1] = 0.5 + factor * eps  # above the diagonal
        arrays["Sigma_q"][:] = cov
        if accepted:
            chol = population_arrays.from_arrays(arrays, dtype=dtype).belief.chol
            np.testing.assert_array_equal(
                chol[0], np.linalg.cholesky(np.eye(3) + 0.5).astype(dtype)
            )
        else:
            with pytest.raises(UserError, match="not symmetric"):
                population_arrays.from_arrays(arrays, dtype=dtype)


def test_tolerance_comes_from_the_coarser_dtype(arrays):
    arrays["Sigma_q"][0, 0, 1] += 1e-7
    single = {**arrays, "Sigma_q": arrays["Sigma_q"].astype(np.float32)}
    chex.assert_type(population_arrays.from_arrays(single, dtype=np.float64).phi, np.float64)
    with pytest.raises(UserError, match="not symmetric"):
        population_arrays.from_arrays(arrays, dtype=np.float64)


def test_indefinite_covariance_is_refused_with_its_smallest_eigenvalue(arrays, dtype):
    arrays["Sigma_q"][1] = np.diag([1.0, 2.0, -0.5])
    with pytest.raises(
        UserError,
        match=r"agent 1 is not positive definite: smallest eigenvalue -0\.5, needed more than",
    ):
        population_arrays.from_arrays(arrays, dtype=dtype)


@pytest.mark.parametrize(
    "cov", [np.zeros((3, 3)), np.ones((3, 3)), -np.eye(3), np.diag([1.0, 1.0, 1e-300])]
)
def test_singular_covariance_is_refused(arrays, dtype, cov):
    arrays["Sigma_p"][0] = cov
    with pytest.raises(
        UserError, match="Sigma_p of agent 0 is not positive definite: smallest eigenvalue"
    ):
        population_arrays.from_arrays(arrays, dtype=dtype)


def test_accepted_means_factorised(rng):
    # Condition numbers up to the limit: whatever is not refused has a finite factor.
    k, accepted, refused = 6, 0, 0
    for exponent in np.linspace(10, 17, 40):
        rotation, _ = np.linalg.qr(rng.normal(size=(k, k)))
        cov = (rotation * np.geomspace(1, 10**-exponent, k)) @ rotation.T
        arrays = make_arrays(rng, (1,), k)
        arrays["Sigma_q"][0] = np.tril(cov) + np.tril(cov, -1).T
        try:
            chol = population_arrays.from_arrays(arrays, dtype=np.float64).belief.chol
        except UserError as error:
            refused += "not positive definite" in str(error)
        else:
            accepted += 1
            chex.assert_tree_all_finite(chol)
            assert (np.diagonal(chol, axis1=-2, axis2=-1) > 0).all()
    assert accepted + refused == 40
    assert min(accepted, refused) > 5


def test_fields_name_agent_and_grid_point(rng):
    arrays = make_arrays(rng, (2, 3, 4))
    arrays["Sigma_q"][1, 2, 0] = -np.eye(3)
    with pytest.raises(
        UserError, match=r"Sigma_q of agent 1, grid point \(2, 0\) is not positive definite"
    ):
        population_arrays.from_arrays(arrays)


def test_nothing_is_written_into_the_arrays(arrays):
    copies = {name: array.copy() for name, array in arrays.items()}
    population_arrays.from_arrays(arrays)
    chex.assert_trees_all_equal(arrays, copies)


def test_npz_round_trip_is_exact(tmp_path, arrays, dtype):
    path = tmp_path / "state.npz"
    saved = population_arrays.to_arrays(population_arrays.from_arrays(arrays, dtype=dtype))
    population_arrays.save_npz(path, saved)
    loaded = population_arrays.load_npz(path)
    assert list(loaded) == list(saved)
    chex.assert_type([*loaded.values()], dtype)
    assert all(loaded[name].tobytes() == saved[name].tobytes() for name in saved)
    population_arrays.save_npz(path, {"phi": jnp.ones(2)})
    assert list(population_arrays.load_npz(path)) == ["phi"]
    assert os.listdir(tmp_path) == ["state.npz"]


def _save_object(path):
    np.savez(path, phi=np.array([{"a": 1}], dtype=object))


def _save_one(path):
    with path.open("wb") as file:
        np.save(file, np.ones(2))


HARMS = {
    "missing": (lambda path: None, "does not exist"),
    "empty": (lambda path: path.write_bytes(b""), "not a readable .npz file"),
    "text": (
        lambda path: path.write_text("agent,o0\n0,1\n"),
        r"not a readable .npz file \(neither",
    ),
    "python objects": (_save_object, "not a readable .npz file"),
    "one array": (_save_one, "not an .npz file but a single array"),
    "directory": (lambda path: path.mkdir(), "Is a directory"),
}


@pytest.mark.parametrize(("harm", "message"), HARMS.values(), ids=HARMS)
def test_unusable_npz_is_named(tmp_path, harm, message):
    path = tmp_path / "state.npz"
    harm(path)
    with pytest.raises(UserError, match=rf"state.npz.* {message}") as caught:
        population_arrays.load_npz(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_cut_npz_is_named(tmp_path, arrays, keep):
    path = tmp_path / "state.npz"
    population_arrays.save_npz(path, arrays)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(UserError, match=r"state.npz is not a readable .npz file"):
        population_arrays.load_npz(path)


def test_damaged_npz_is_named(tmp_path, arrays):
    path = tmp_path / "state.npz"
    population_arrays.save_npz(path, arrays)
    data = bytearray(path.read_bytes())
    data[data.index(arrays["phi"].tobytes()) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"state.npz is not a readable .npz file \(Bad CRC-32"):
        population_arrays.load_npz(path)


def test_a_header_that_claims_terabytes_is_named(tmp_path):
    header = {"descr": "<f8", "fortran_order": False, "shape": (3, 10**12)}
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, header)
    with zipfile.ZipFile(tmp_path / "state.npz", "w") as file:
        file.writestr("mu_q.npy", content.getvalue() + b"\0" * 64)
    # Where the system promises more memory than it has, the end of the file is met first.
    with pytest.raises(
        UserError, match=r"state.npz (claims arrays larger than the memory|is not a readable)"
    ) as caught:
        population_arrays.load_npz(tmp_path / "state.npz")
    assert "\n" not in str(caught.value)


def test_python_objects_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match="array a holds Python objects"):
        population_arrays.save_npz(tmp_path / "a.npz", {"a": np.array([None])})
    assert os.listdir(tmp_path) == []
