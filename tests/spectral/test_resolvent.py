"""Resolvent diagonals against dense inverses, 40-digit determinants and closed forms; gradients
against the dense adjoint.
"""

import operator
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import dense_chain as dense
from jax.test_util import check_grads

from vfejax.spectral.recurrence import ASSOCIATIVE, PLATFORM, SEQUENTIAL
from vfejax.spectral.resolvent import (
    left_resolvent_diagonal,
    resolvent_diagonal,
    shifted_tridiagonal,
)
from vfejax.spectral.tridiagonal import determinant, log_determinant, resolvent_matvec

# A new algorithm joins by one line. Tests without this parameter run the default, PLATFORM.
SCANS = [pytest.param(SEQUENTIAL, id="sequential"), pytest.param(ASSOCIATIVE, id="associative")]
each_algorithm = pytest.mark.parametrize("scans", SCANS)
each_side = pytest.mark.parametrize("side", [resolvent_diagonal, left_resolvent_diagonal])
# The relative errors the docstring states, for Im z >= 0.5.
STATED = {"complex64": 5e-6, "complex128": 1e-12}


@cache
def compiled(side, scans=PLATFORM):
    return jax.jit(lambda a, b, c, z: side(a, b, c, z, scans=scans))


@cache
def value_and_pull(side, scans=PLATFORM):
    """The value of the side, and the cotangents of its arguments for a cotangent w of the value."""

    @jax.jit
    def run(arguments, w):
        value, pull = jax.vjp(lambda *x: side(*x, scans=scans), *arguments)
        return value, pull(w)

    return run


def pulled_back(side, scans=PLATFORM):
    return lambda arguments, w: value_and_pull(side, scans)(arguments, w)[1]


def relative(found, expected):
    return np.max(np.abs(np.asarray(found, np.complex128) - expected) / np.abs(expected))


@pytest.mark.parametrize(
    ("scans", "dtype", "hermitian"),
    [
        pytest.param(SEQUENTIAL, "complex64", True, id="sequential-complex64-hermitian"),
        pytest.param(SEQUENTIAL, "complex128", False, id="sequential-complex128"),
        pytest.param(ASSOCIATIVE, "complex64", False, id="associative-complex64"),
    ],
)
def test_against_the_dense_inverse(scans, dtype, hermitian, rng):
    chain = dense.chain(rng, 20, batch=(3,), hermitian=hermitian, dtype=dtype)
    found = compiled(resolvent_diagonal, scans)(*chain)
    chex.assert_type(found, dtype)
    assert relative(found, dense.diagonal(dense.resolvent(*chain))) < STATED[dtype]
    assert (
        relative(compiled(left_resolvent_diagonal, scans)(*chain), dense.left(*chain))
        < STATED[dtype]
    )


@pytest.mark.parametrize(
    ("hermitian", "dtype"),
    [
        (True, "complex64"),
        (False, "complex128"),
        pytest.param(True, "complex128", marks=pytest.mark.slow),
        pytest.param(False, "complex64", marks=pytest.mark.slow),
    ],
)
def test_against_forty_digits(dtype, hermitian, rng):
    """At n = 2000 the determinants pass the exponent range of both formats."""
    chain = dense.chain(rng, 2000, hermitian=hermitian, dtype=dtype)
    assert relative(compiled(resolvent_diagonal)(*chain), dense.theta_phi(*chain)) < STATED[dtype]


def test_long_trees_are_as_accurate(rng):
    """The associative form multiplies 2 x 2 matrices that all but forget where they start: no
    digits are lost over eleven levels.
    """
    chain = dense.chain(rng, 1500, hermitian=True, dtype="complex64")
    assert (
        relative(compiled(resolvent_diagonal, ASSOCIATIVE)(*chain), dense.theta_phi(*chain))
        < STATED["complex64"]
    )


@pytest.mark.parametrize("dtype", ["complex64", pytest.param("complex128", marks=pytest.mark.slow)])
def test_a_million_sites(dtype):
    """Constant coefficients: deep inside ``G_ii = -1 / sqrt(z^2 - 4 k)``; at the end gL is the root
    of ``k g^2 + z g + 1 = 0``.
    """
    n, z, hop = 10**6, 0.3 + 0.5j, 0.8
    real = np.finfo(dtype).dtype
    chain = (
        np.zeros(n, real),
        np.full(n - 1, hop, real),
        np.full(n - 1, hop, real),
        np.asarray(z, dtype),
    )
    g = np.asarray(compiled(resolvent_diagonal)(*chain))
    root = np.sqrt(z**2 - 4 * hop**2)
    root = root if root.imag > 0 else -root
    chex.assert_tree_all_finite(g)
    assert relative(g[[1000, n // 2, n - 1000]], -1 / root) < STATED[dtype]
    assert relative(g[[0, -1]], (root - z) / (2 * hop**2)) < STATED[dtype]


@each_side
def test_broadcasting_equals_single_calls(side, rng):
    a, b, c = rng.standard_normal((4, 1, 5)), rng.standard_normal((3, 4)), rng.standard_normal(4)
    z = rng.standard_normal((2, 1, 1)) + 1j
    found = compiled(side)(a, b, c, z)
    chex.assert_shape(found, (2, 4, 3, 5))
    expected = [
        [[compiled(side)(a[j, 0], b[i], c, z[h, 0, 0]) for i in range(3)] for j in range(4)]
        for h in range(2)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-14)


@each_side
@pytest.mark.parametrize("n", [1, 2])
def test_short_chains(side, n, rng):
    chain = dense.chain(rng, n)
    expected = (
        dense.diagonal(dense.resolvent(*chain))
        if side is resolvent_diagonal
        else dense.left(*chain)
    )
    value, gradient = value_and_pull(side)(chain, np.ones(n, complex))
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    np.testing.assert_allclose(np.sum(gradient[0]), -gradient[3], rtol=1e-13)


@each_algorithm
@pytest.mark.parametrize("cut", ["superdiagonal", "subdiagonal", "both"])
def test_zero_coupling_cuts_the_chain(scans, cut, rng):
    a, b, c, z = dense.chain(rng, 6)
    if cut != "subdiagonal":
        b[2] = 0
    if cut != "superdiagonal":
        c[2] = 0
    found = compiled(resolvent_diagonal, scans)(a, b, c, z)
    parts = [
        dense.diagonal(dense.resolvent(a[s], b[t], c[t], z))
        for s, t in ((np.s_[:3], np.s_[:2]), (np.s_[3:], np.s_[3:]))
    ]
    np.testing.assert_allclose(found, np.concatenate(parts), rtol=1e-13)


@pytest.mark.parametrize(
    ("side", "scans", "hermitian"),
    [
        pytest.param(resolvent_diagonal, SEQUENTIAL, False, id="two-sided-sequential"),
        pytest.param(
            resolvent_diagonal,
            ASSOCIATIVE,
            False,
            id="two-sided-associative",
            marks=pytest.mark.slow,
        ),
        pytest.param(left_resolvent_diagonal, SEQUENTIAL, True, id="left-sequential"),
    ],
)
def test_derivative_of_every_argument(side, scans, hermitian, rng):
    arguments = tuple(jnp.asarray(x) for x in dense.chain(rng, 4, hermitian=hermitian))
    check_grads(compiled(side, scans), arguments, order=1, modes=["fwd", "rev"])


@pytest.mark.parametrize(
    ("scans", "dtype"),
    [
        pytest.param(SEQUENTIAL, "complex128", id="sequential-complex128"),
        pytest.param(ASSOCIATIVE, "complex64", id="associative-complex64"),
        pytest.param(SEQUENTIAL, "complex64", id="sequential-complex64", marks=pytest.mark.slow),
        pytest.param(
            ASSOCIATIVE, "complex128", id="associative-complex128", marks=pytest.mark.slow
        ),
    ],
)
def test_gradient_against_the_dense_adjoint(scans, dtype, rng):
    chain = dense.chain(rng, 20, dtype=dtype)
    w = (rng.standard_normal(20) + 1j * rng.standard_normal(20)).astype(dtype)
    found = pulled_back(resolvent_diagonal, scans)(chain, w)
    chex.assert_type(found, dtype)
    for got, expected in zip(found, dense.adjoint(*chain, w), strict=True):
        assert np.linalg.norm(np.asarray(got) - expected) < STATED[dtype] * np.linalg.norm(expected)


def test_real_arguments_have_real_gradients(dtype, rng):
    a, b, c = (rng.standard_normal(n).astype(dtype) for n in (6, 5, 5))
    z = np.asarray(0.3 + 0.7j, np.result_type(dtype, "complex64"))
    w = (rng.standard_normal(6) + 1j * rng.standard_normal(6)).astype(z.dtype)
    found = pulled_back(resolvent_diagonal)((a, b, c, z), w)
    chex.assert_type(found, [dtype, dtype, dtype, z.dtype])
    for got, expected in zip(found[:3], dense.adjoint(a, b, c, z, w)[:3], strict=True):
        np.testing.assert_allclose(
            got, expected.real, rtol=0, atol=STATED[z.dtype.name] * np.abs(expected).max()
        )


def test_gradient_sums_over_broadcast_axes(rng):
    """A shared argument gets the sum of what its copies get."""
    (a, _, _, _), (_, b, c, z) = dense.chain(rng, 5, batch=(3,)), dense.chain(rng, 5)
    w = rng.standard_normal((3, 5)) + 1j * rng.standard_normal((3, 5))
    found = pulled_back(resolvent_diagonal)((a, b, c, z), w)
    single = [dense.adjoint(a[i], b, c, z, w[i]) for i in range(3)]
    np.testing.assert_allclose(found[0], [s[0] for s in single], rtol=1e-12)
    for k in (1, 2, 3):
        np.testing.assert_allclose(found[k], sum(s[k] for s in single), rtol=1e-12)


@each_side
def test_hessian(side, rng):
    """Forward and reverse over reverse against finite differences of the gradient."""
    a, b, c, z = dense.chain(rng, 3, hermitian=True)

    def slope(a):
        gradient = jax.grad(lambda a: jnp.sum(side(a, b, c, z).real))(a)
        return gradient, gradient

    # The Hessian and the gradient.
    run = jax.jit(jax.jacfwd(slope, has_aux=True))
    hessian, step = run(a)[0], 1e-5 * np.eye(3)
    expected = [(run(a + e)[1] - run(a - e)[1]) / 2e-5 for e in step]
    # Truncation and rounding of the central difference: 1e-10 each, over the entries.
    np.testing.assert_allclose(hessian, expected, rtol=0, atol=1e-7)
    # A cotangent that is a constant: nothing of it depends on the chain.
    along = jnp.array([0.3, -1.0, 2.0])
    product = jax.jit(jax.grad(lambda a: jnp.sum(along * slope(a)[0])))(a)
    np.testing.assert_allclose(product, along @ hessian, rtol=0, atol=1e-12)


def test_gradient_of_long_chains_is_finite(rng):
    chain = dense.chain(rng, 2000, hermitian=True, dtype="complex64")
    found = pulled_back(resolvent_diagonal)(chain, np.ones(2000, "complex64"))
    exact = pulled_back(resolvent_diagonal)(
        tuple(x.astype(np.result_type(x, "f8")) for x in chain), np.ones(2000, complex)
    )
    for got, expected in zip(found, exact, strict=True):
        assert np.linalg.norm(np.asarray(got) - np.asarray(expected)) < STATED[
            "complex64"
        ] * np.linalg.norm(expected)


@pytest.mark.parametrize("seed", range(5))
def test_bounded_by_the_inverse_of_the_imaginary_part(seed):
    """Symmetric T, Im z > 0: ``|g| <= 1 / Im z`` and Im g > 0, for gL and for G."""
    rng = np.random.default_rng(seed)
    a, b, _, z = dense.chain(rng, 64, batch=(8,), hermitian=True)
    z = z.real + 1j * 10.0 ** rng.uniform(-3, 1, 8)
    for side in (resolvent_diagonal, left_resolvent_diagonal):
        g = np.asarray(compiled(side)(10.0 * a, b, b, z))
        assert np.all(np.abs(g) * z.imag[:, None] <= 1 + 1e-12)
        assert np.all(g.imag > 0)


@each_algorithm
def test_left_form_is_causal_bit_for_bit(scans, rng):
    a, b, c, z = dense.chain(rng, 20, dtype="complex64")
    before = compiled(left_resolvent_diagonal, scans)(a, b, c, z)
    for t in (1, 9, 19):
        changed = [x.copy() for x in (a, b, c)]
        for x, start in zip(changed, (t, t - 1, t - 1), strict=True):
            x[start:] += 1
        after = compiled(left_resolvent_diagonal, scans)(*changed, z)
        np.testing.assert_array_equal(after[:t], before[:t])
        assert after[t] != before[t]


def test_two_sided_form_is_not_causal(rng):
    """What the left form is for: the last site reaches the first entry of G."""
    a, b, c, z = dense.chain(rng, 6)
    run = compiled(resolvent_diagonal, SEQUENTIAL)
    before = np.asarray(run(a, b, c, z))
    a[-1] += 1
    assert run(a, b, c, z)[0] != before[0]


@each_side
def test_vmap(side, rng):
    chain = dense.chain(rng, 20, batch=(3,))
    expected = (
        dense.diagonal(dense.resolvent(*chain))
        if side is resolvent_diagonal
        else dense.left(*chain)
    )
    np.testing.assert_allclose(jax.jit(jax.vmap(side))(*chain), expected, rtol=1e-13)


@pytest.mark.parametrize(
    "side",
    [resolvent_diagonal, pytest.param(left_resolvent_diagonal, marks=pytest.mark.slow)],
)
def test_memory_is_linear(side):
    """Temporary memory of value and gradient: at most 24 complex numbers per site, and proportional
    to n.
    """

    def temporary(n):
        shapes = [jax.ShapeDtypeStruct((m,), jnp.float32) for m in (n, n - 1, n - 1)]
        run = jax.jit(
            lambda a, b, c: jax.vjp(lambda *x: side(*x, 1j), a, b, c)[1](jnp.ones(n, jnp.complex64))
        )
        return run.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    once = temporary(10000)
    assert once < 24 * 8 * 10000
    # 4 if it were quadratic; 2.6 on a GPU, which pads.
    assert temporary(20000) < 3 * once


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((), (3,), (3,), ()), r"diagonal must be \[..., n\]"),
        (((0,), (0,), (0,), ()), "n >= 1"),
        (((4,), (4,), (3,), ()), r"superdiagonal must be \[..., 3\].*got \(4,\)"),
        (((4,), (3,), (), ()), "subdiagonal must be"),
        (((4,), (), (3,), ()), r"superdiagonal must be \[..., 3\].*got \(\)"),
        (((2, 4), (3,), (3,), (3,)), "leading axes must broadcast"),
    ],
)
@each_side
def test_refuses_shapes(side, shapes, message):
    with pytest.raises(ValueError, match=message):
        side(*(jnp.ones(shape) for shape in shapes))


@pytest.mark.parametrize(
    ("dtypes", "message"),
    [
        (
            ("float32", "float64", "float32", "complex64"),
            "superdiagonal must have the precision of complex64",
        ),
        (("float32", "float32", "float32", "complex128"), "z must have the precision of complex64"),
        (("int32", "float32", "float32", "complex64"), "diagonal must be floating"),
        (("float32", "float32", "bfloat16", "complex64"), "subdiagonal must be floating"),
    ],
)
def test_refuses_dtypes(dtypes, message):
    with pytest.raises(ValueError, match=message):
        resolvent_diagonal(
            *(jnp.ones(s, t) for s, t in zip(((3,), (2,), (2,), ()), dtypes, strict=True))
        )


def test_a_python_number_takes_the_precision(dtype):
    shapes = [jax.ShapeDtypeStruct((n,), dtype) for n in (3, 2)]
    g = jax.eval_shape(lambda a, b: resolvent_diagonal(a, b, b, 1j), *shapes)
    chex.assert_type(g, np.result_type(dtype, "complex64"))


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (1, 1.0, r"superdiagonal must be \[..., 2\] for a diagonal of 3, got \(\)"),
        (0, [1.0, 1.0, 1.0], "diagonal must be an array or a number, got list"),
        (2, None, "subdiagonal must be an array or a number, got NoneType"),
        (3, jnp.ones((), int), "z must be floating or complex"),
    ],
)
def test_refuses_what_is_no_array(position, value, message):
    arguments = [jnp.ones(3, "float32"), *(jnp.ones(2, "float32"),) * 2, 1j]
    arguments[position] = value
    for function in (resolvent_diagonal, log_determinant, shifted_tridiagonal):
        with pytest.raises(ValueError, match=message):
            function(*arguments)


# Chains of four sites whose leading minors vanish although 0 is off their spectrum: diagonal,
# superdiagonal, subdiagonal. The first is a tight-binding chain at the centre of its band.
POLES = {
    "band centre": ([0, 0, 0, 0], [1, 1, 1], [1, 1, 1]),
    "one minor": ([1, 1, 3, 1], [1, 1, 0], [1, 1, 0]),
    "complex": ([0, -1j, 2, 1], [1, 0, 1], [-1, 0, 3]),
    "from both ends": ([0, 2, 1, 0], [1, 1, 1], [3, 3, 3]),
    "twice": ([1, 1, 0, 5], [1, 1, 1], [1, 2, 3]),
}


def _chains_with_poles(dtype):
    """All of them as one batch, at z = 0."""
    real = np.finfo(dtype).dtype
    a, b, c = (np.array(part) for part in zip(*POLES.values(), strict=True))
    return a.astype(dtype), b.astype(real), c.astype(real), np.zeros(len(POLES), dtype)


@each_algorithm
def test_vanishing_minors(scans):
    """Value and gradient of the diagonal, the determinant and the solve, to rounding times the
    condition number, which is below 30 here.
    """

    @jax.jit
    def run(a, b, c, z, x):
        diagonal, pull = jax.vjp(lambda *v: resolvent_diagonal(*v, scans=scans), a, b, c, z)
        solved, pull_solved = jax.vjp(lambda *v: resolvent_matvec(*v, z, x, scans=scans), a, b, c)
        logarithm, pull_logarithm = jax.vjp(lambda *v: log_determinant(*v, z, scans=scans), a, b, c)
        return (
            (diagonal, *pull(jnp.ones_like(diagonal))),
            (solved, *pull_solved(jnp.ones_like(solved))),
            (jnp.exp(logarithm), *pull_logarithm(jnp.ones_like(logarithm))),
        )

    dtype = "complex64"
    chains = _chains_with_poles(dtype)
    found = run(*chains, np.ones((len(POLES), 4, 1), dtype))
    for i, name in enumerate(POLES):
        chain = [x[i] for x in chains]
        exact = dense.resolvent(*chain)
        # d sum(G x) / dT = -(column sums of G) (row sums of G)^T.
        slope = -np.outer(exact.sum(0), exact.sum(1))
        expected = (
            (dense.diagonal(exact), *dense.adjoint(*chain, np.ones(4))),
            (exact.sum(1)[:, None], *(np.diag(slope, k) for k in (0, 1, -1))),
            (np.linalg.det(dense.matrix(*chain)), *(np.diag(exact.T, k) for k in (0, 1, -1))),
        )
        atol = 30 * np.finfo(dtype).eps * max(1, np.abs(exact).max()) ** 2
        expected = jax.tree.map(
            lambda got, want: want if np.iscomplexobj(got) else want.real, found, expected
        )
        of_chain = jax.tree.map(operator.itemgetter(i), found)
        chex.assert_trees_all_close(of_chain, expected, rtol=atol, atol=atol, custom_message=name)


@each_algorithm
def test_left_form_at_its_poles(scans):
    """Equal sites at the band centre: gL alternates between a pole and 0, and no NaN appears; an
    entry with a NaN site is NaN.
    """
    chain = [x[0] for x in _chains_with_poles("complex64")]
    run = compiled(left_resolvent_diagonal, scans)
    left = np.asarray(run(*chain))
    np.testing.assert_array_equal(left[::2], 2.0**40)
    np.testing.assert_allclose(left[1::2], 0, rtol=0, atol=1e-11)
    gradient = pulled_back(left_resolvent_diagonal, scans)(
        tuple(chain), np.array([0, 1, 0, 1], "complex64")
    )
    # gL_1 = -a_0 / k near the pole at a_0 = 0.
    np.testing.assert_allclose(gradient[0], [-2.0, 0, -1.0, 0], rtol=0, atol=1e-6)
    chain[0][2] = np.nan
    left = np.asarray(run(*chain))
    np.testing.assert_array_equal(np.isnan(left), [False, False, True, True])


def test_singular_chain_has_determinant_zero():
    logarithm, value = jax.jit(lambda *v: (log_determinant(*v), determinant(*v)))(
        np.zeros(3), np.ones(2), np.ones(2), 0.0
    )
    assert value == 0
    assert logarithm.real == -np.inf


@pytest.mark.parametrize("function", [resolvent_diagonal, log_determinant])
def test_one_bad_chain_harms_no_other(function, rng):
    a, b, c, z = dense.chain(rng, 4, batch=(3,), dtype="complex64")
    run = jax.jit(function)
    good = np.asarray(run(a, b, c, z))
    a[1, 2] = np.nan
    bad = np.asarray(run(a, b, c, z))
    assert np.isnan(bad[1]).all()
    np.testing.assert_array_equal(bad[[0, 2]], good[[0, 2]])
