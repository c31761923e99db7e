from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.precisions import single_by_default

from vfejax.geometry import groups, irreps
from vfejax.geometry.transport import frames

K = 4
NUM = 4
NORMS = (0.0, 1e-8, 0.1, 1.0, 5.0, 30.0)

matrix_exponential = jax.jit(groups.matrix_exponential)
exponential = jax.jit(groups.exponential)
structure_constants = jax.jit(groups.structure_constants)
body_jacobian = jax.jit(groups.body_jacobian)
natural_direction = jax.jit(groups.natural_direction)


@jax.jit
@partial(jax.vmap, in_axes=(0, None))
def frame_and_derivative(phi, generators):
    """U ``[k, k]`` and its derivative ``[k, k, a]`` at each of a batch of coordinates."""
    frame = groups.exponential(phi, generators)
    return frame, jax.jacfwd(groups.exponential)(phi, generators)


def gl2():
    """A basis of all 2 x 2 matrices: neither compact nor orthogonal."""
    mixing = np.random.default_rng(7).normal(size=(4, 4)) + 2 * np.eye(4)
    return (mixing @ np.eye(4)).reshape(4, 2, 2)


def pade(phi, generators):
    return jax.scipy.linalg.expm(groups.algebra(phi, generators))


# A new group joins the tests of groups by one line.
GROUPS = {
    "so3(0, 1, 2)": irreps.so3((0, 1, 2)),
    "so3(3)": irreps.so3((3,)),
    "so3(0)": irreps.so3((0,)),
    "so(2)": irreps.so(2),
    "so(3)": irreps.so(3),
    "so(4)": irreps.so(4),
    "gl(2)": groups.general(gl2()),
    "so(4) by Pade": groups.general(irreps.so_generators(4), exponential=pade),
}
EACH = pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS.keys())

GENERATORS = {
    "so(3)": irreps.so3_generators((0, 1, 2)),
    "so(4)": irreps.so_generators(4),
    "gl(2)": gl2(),
}
EVERY_GROUP = pytest.mark.parametrize("generators", GENERATORS.values(), ids=GENERATORS.keys())


def exact_exponential(x):
    """Taylor's series of order 30 in extended precision (where NumPy has it), on matrices scaled
    below 1/16.
    """
    x = np.asarray(x, np.longdouble)
    squarings = 4 + max(0, int(np.ceil(np.log2(max(np.abs(x).sum(-2).max(), 1.0)))))
    term = np.broadcast_to(np.eye(x.shape[-1], dtype=np.longdouble), x.shape)
    total = term
    for n in range(1, 31):
        term = term @ (x / np.longdouble(2) ** squarings) / n
        total = total + term
    for _ in range(squarings):
        total = total @ total
    return np.asarray(total, np.float64)


def scaled(rng, norm, num=5):
    x = rng.normal(size=(num, K, K))
    return x / np.abs(x).sum(-2).max(-1)[:, None, None] * norm


def test_matrix_exponential_of_every_norm_in_one_batch(dtype, rng):
    x = np.concatenate([scaled(rng, norm) for norm in NORMS]).astype(dtype)
    actual = np.asarray(matrix_exponential(x))
    chex.assert_type(actual, dtype)
    expected = np.concatenate([exact_exponential(m) for m in np.split(x, len(NORMS))])
    error = np.abs(actual - expected).max((-1, -2)) / np.abs(expected).max((-1, -2))
    # exp has condition number |x| and every squaring doubles the rounding
    tolerance = 20 * jnp.finfo(dtype).eps * (1 + np.repeat(NORMS, 5))
    assert np.all(error <= tolerance), error / tolerance


def test_matrix_exponential_ends_at_its_stated_limit(dtype):
    limit = 2.0**15 if dtype == jnp.float64 else 2.0**17
    angles = [limit, 1.001 * limit, np.inf, np.nan]
    turn = np.asarray([[[0.0, -angle], [angle, 0.0]] for angle in angles], dtype)
    inside, *outside = np.asarray(matrix_exponential(turn))
    # every one of the 16 squarings doubles the error
    expected = [[np.cos(limit), -np.sin(limit)], [np.sin(limit), np.cos(limit)]]
    np.testing.assert_allclose(inside, expected, rtol=0, atol=4 * limit * jnp.finfo(dtype).eps)
    assert np.isnan(outside).all()


def test_matrix_exponential_without_and_under_vmap(rng):
    x = scaled(rng, 3.0)
    batched = np.asarray(matrix_exponential(x))
    vmapped, single = jax.jit(
        lambda x: (jax.vmap(groups.matrix_exponential)(x), groups.matrix_exponential(x[0]))
    )(x)
    # a fused matmul may sum in another order
    np.testing.assert_allclose(vmapped, batched, rtol=1e-13)
    np.testing.assert_allclose(single, batched[0], rtol=1e-13)


def test_matrix_exponential_derivatives_in_both_modes(rng):
    x = np.concatenate([scaled(rng, norm, 1) for norm in NORMS[:-1]])
    direction, weight = rng.normal(size=(2, *x.shape))

    def both(x, direction, weight):
        tangent = jax.jvp(groups.matrix_exponential, (x,), (direction,))[1]
        return tangent, jax.vjp(groups.matrix_exponential, x)[1](weight)[0]

    def exact(x, direction):
        # exp([[X, E], [0, X]]) holds the derivative at X along E in its upper right block (Higham
        # 2008, theorem 3.6)
        block = np.block([[x, direction], [np.zeros_like(x), x]])
        return exact_exponential(block)[..., :K, K:]

    tangent, cotangent = jax.jit(both)(x, direction, weight)
    np.testing.assert_allclose(tangent, exact(x, direction), rtol=0, atol=1e-12)
    np.testing.assert_allclose(cotangent, exact(np.swapaxes(x, -1, -2), weight), rtol=0, atol=1e-12)


@EVERY_GROUP
@single_by_default
def test_algebra_is_linear_and_the_exponential_has_an_inverse(generators, dtype, rng):
    phi = rng.normal(size=(NUM, len(generators))).astype(dtype)
    element = jax.jit(groups.algebra)(phi, generators)
    chex.assert_type(element, dtype)
    expected = np.tensordot(np.asarray(phi, np.float64), generators, 1)
    np.testing.assert_allclose(element, expected, rtol=0, atol=50 * jnp.finfo(dtype).eps)

    product = np.asarray(exponential(phi, generators)) @ np.asarray(exponential(-phi, generators))
    # |U| |U^{-1}| is 1 for rotations and at most about exp(2 |X|) otherwise
    condition = (
        np.exp(2 * np.abs(expected).sum(-2).max(-1))[..., None, None]
        if generators.shape[-1] == 2
        else 100.0
    )
    identity = np.eye(generators.shape[-1])
    assert np.all(np.abs(product - identity) <= 10 * condition * jnp.finfo(dtype).eps)


def test_exponential_of_antisymmetric_generators_is_a_rotation(dtype, rng):
    phi = rng.normal(size=(NUM, 6)).astype(dtype)
    u = np.asarray(exponential(phi, GENERATORS["so(4)"]), np.float64)
    np.testing.assert_allclose(
        u @ np.swapaxes(u, -1, -2),
        np.broadcast_to(np.eye(4), u.shape),
        rtol=0,
        atol=200 * jnp.finfo(dtype).eps,
    )
    assert np.all(np.linalg.det(u) > 0)


@pytest.mark.parametrize(
    ("phi_shape", "generator_shape", "named"),
    [
        ((2,), (3, 4, 4), "phi"),
        ((), (3, 4, 4), "phi"),
        ((3,), (3, 4), "generators"),
        ((3,), (3, 4, 5), "generators"),
    ],
)
def test_algebra_names_the_argument_that_does_not_fit(phi_shape, generator_shape, named):
    with pytest.raises(ValueError, match=f"^{named} must"):
        groups.algebra(jnp.zeros(phi_shape), jnp.zeros(generator_shape))


@EVERY_GROUP
def test_structure_constants_close_the_algebra(generators):
    f = np.asarray(structure_constants(generators))
    commutators = np.einsum("aij,bjk->abik", generators, generators)
    commutators = commutators - np.swapaxes(commutators, 0, 1)
    # the Gram matrix of the mixed basis of gl(2) has a condition number of some hundreds
    np.testing.assert_allclose(
        np.einsum("abc,cij->abij", f, generators), commutators, rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(f, -np.swapaxes(f, 0, 1), rtol=0, atol=1e-12)
    jacobi = np.einsum("abd,dce->abce", f, f)
    cyclic = jacobi + np.transpose(jacobi, (2, 0, 1, 3)) + np.transpose(jacobi, (1, 2, 0, 3))
    np.testing.assert_allclose(cyclic, 0, rtol=0, atol=1e-11)


@pytest.mark.parametrize("spins", [(2, 1, 0), (0, 1, 2)])
def test_structure_constants_of_so3_are_epsilon_in_every_representation(spins):
    epsilon = np.cross(np.eye(3)[:, None], np.eye(3)[None])
    np.testing.assert_allclose(
        structure_constants(irreps.so3_generators(spins)), epsilon, rtol=0, atol=1e-14
    )


@EVERY_GROUP
def test_body_jacobian_is_the_derivative_of_the_exponential(generators, rng):
    num = len(generators)
    phi = np.concatenate([np.zeros((1, num)), rng.normal(size=(NUM - 1, num))])
    frame, derivative = frame_and_derivative(phi, generators)
    body = np.linalg.inv(frame)[:, None] @ np.moveaxis(derivative, -1, 1)
    jacobian = np.asarray(body_jacobian(phi, generators))
    np.testing.assert_allclose(jacobian[0], np.eye(num), rtol=0, atol=1e-15)
    # rounding times the condition number of U, at most some thousands
    np.testing.assert_allclose(
        np.einsum("nca,cij->naij", jacobian, generators), body, rtol=0, atol=1e-11
    )


@EVERY_GROUP
def test_natural_direction_inverts_the_metric(generators, rng):
    phi, gradient = 0.5 * rng.normal(size=(2, NUM, len(generators)))
    jacobian = np.asarray(body_jacobian(phi, generators))
    metric = np.swapaxes(jacobian, -1, -2) @ jacobian
    expected = np.linalg.solve(metric, gradient[..., None])[..., 0]
    # condition numbers of the metric up to some thousands
    np.testing.assert_allclose(
        natural_direction(phi, gradient, generators), expected, rtol=1e-9, atol=1e-11
    )


@single_by_default
def test_natural_direction_is_the_closed_form_on_rotations(dtype, rng):
    phi, gradient = rng.normal(size=(2, NUM, 3))
    phi *= np.array([0.0, 1e-6, 1.0, 3.0])[:, None] / np.linalg.norm(phi, axis=-1, keepdims=True)
    phi, gradient = phi.astype(dtype), gradient.astype(dtype)
    expected, actual = jax.jit(
        lambda *vectors: (
            irreps.so3_natural_direction(*vectors),
            groups.natural_direction(*vectors, GENERATORS["so(3)"]),
        )
    )(phi, gradient)
    chex.assert_type(actual, dtype)
    # the metric's condition number is 1 / sinc^2(theta / 2), up to 2.3 here
    np.testing.assert_allclose(actual, expected, rtol=0, atol=200 * jnp.finfo(dtype).eps)


def test_natural_gradient_is_the_same_motion_after_a_left_translation(rng):
    """Energy tr(A^T U) at U = exp(phi), and tr(A^T V^{-1} U) at V U: one body velocity, the
    derivative along the generators.
    """
    generators = GENERATORS["gl(2)"]
    phi = 0.1 * rng.normal(size=(NUM, 4))
    weight, shift = rng.normal(size=(2, 2)), np.eye(2) + 0.2 * rng.normal(size=(2, 2))
    frame = np.asarray(frame_and_derivative(phi, generators)[0])

    # coordinates of V U, by Newton's iteration on the exponential
    moved_phi = phi
    for _ in range(20):
        reached, derivative = map(np.asarray, frame_and_derivative(moved_phi, generators))
        error = (reached - shift @ frame).reshape(NUM, 4, 1)
        moved_phi = moved_phi - np.linalg.solve(derivative.reshape(NUM, 4, 4), error)[..., 0]
    np.testing.assert_allclose(reached, shift @ frame, rtol=0, atol=1e-13)

    def body_velocity(coordinates, energy_weight):
        derivative = np.asarray(frame_and_derivative(coordinates, generators)[1])
        gradient = np.einsum("ij,nija->na", energy_weight, derivative)
        direction = np.asarray(natural_direction(coordinates, gradient, generators))
        return np.einsum("nca,na->nc", body_jacobian(coordinates, generators), direction)

    velocity = body_velocity(phi, weight)
    np.testing.assert_allclose(
        velocity, np.einsum("ij,nik,ckj->nc", weight, frame, generators), rtol=0, atol=1e-11
    )
    np.testing.assert_allclose(
        body_velocity(moved_phi, np.linalg.inv(shift).T @ weight), velocity, rtol=0, atol=1e-11
    )


def coordinates(rng, group, scale=0.5):
    return scale * rng.normal(size=group.generators.shape[0])


@EACH
def test_the_exponential_of_a_group_is_that_of_its_generators(group, rng):
    phi = coordinates(rng, group)  # one frame at a time: expm must not batch its LU on a CPU
    # With the generators among the arguments, and with constant ones.
    frame, known = jax.jit(lambda phi, given: (frames(phi, given), frames(phi, group)))(phi, group)
    expected = exponential(phi, group.generators)
    chex.assert_trees_all_close(frame, expected, rtol=0, atol=1e-13)
    # Constant generators leave other operations: a few roundings.
    chex.assert_trees_all_close(known, frame, rtol=0, atol=1e-14)


@EACH
def test_a_retraction_arrives_at_the_frame_of_the_sum(group, rng):
    phi, step = coordinates(rng, group, 2.0), coordinates(rng, group, 2.0)
    moved = jax.jit(group.retract)(phi, step)
    expected = exponential(phi + step, group.generators)
    # gl(2) is not compact: entries of exp reach some thousands
    scale = 1e-12 * np.abs(expected).max()
    chex.assert_trees_all_close(exponential(moved, group.generators), expected, atol=scale, rtol=0)


@EACH
def test_the_direction_of_a_group_is_that_of_its_metric(group, rng):
    phi, covector = coordinates(rng, group), coordinates(rng, group)
    if not np.any(group.generators):
        covector = np.zeros_like(covector)  # nothing depends on a frame without effect
    direction = jax.jit(group.natural_direction)(phi, covector)
    expected = natural_direction(phi, covector, group.generators)
    chex.assert_trees_all_close(direction, expected, rtol=1e-11, atol=1e-12)


def test_a_group_is_a_pytree_of_its_generators():
    group = irreps.so3((1,))
    assert jax.tree.leaves(group) == [group.generators]
    assert groups.as_group(group) is group
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), group)
    assert isinstance(half, groups.Group)
    chex.assert_type(half.generators, jnp.float32)
    # Two groups that are equal are one static argument: the second call is not traced again.
    chex.clear_trace_counter()
    jitted = jax.jit(chex.assert_max_traces(lambda phi, group: frames(phi, group), n=1))
    for _ in range(2):
        jitted(jnp.ones(3), irreps.so3((1,)))


def test_frames_without_effect_do_not_move():
    known = irreps.so3_generators((0,))

    @jax.jit
    def everything(phi, covector, given):
        return (
            *(groups.natural_direction(phi, covector, generators) for generators in (known, given)),
            *(groups.structure_constants(generators) for generators in (known, given)),
            irreps.so3((0,)).natural_direction(phi, covector),
        )

    for nothing in everything(np.ones(3), np.zeros(3), known):
        np.testing.assert_array_equal(nothing, 0.0)


@pytest.mark.parametrize(
    ("kind", "max_norm"),
    [
        ("complex64", None),
        ("complex128", 10.0),
        pytest.param("complex64", 10.0, marks=pytest.mark.slow),
        pytest.param("complex128", None, marks=pytest.mark.slow),
    ],
)
def test_complex_matrices_are_as_accurate_as_real_ones(kind, max_norm):
    x = np.array([[0.0, 1.99], [-1.99, 0.0]])
    expected = np.array([[np.cos(1.99), np.sin(1.99)], [-np.sin(1.99), np.cos(1.99)]])
    exponentiate = jax.jit(partial(groups.matrix_exponential, max_norm=max_norm))
    error = np.abs(np.asarray(exponentiate(x.astype(kind))) - expected).max()
    assert error <= 10 * jnp.finfo(kind).eps
    turned = exponentiate((1j * x).astype(kind))  # exp(i x) is hermitian and positive
    np.testing.assert_allclose(np.linalg.det(np.asarray(turned, complex)), 1.0, rtol=1e-4)


def test_a_bound_on_the_norm_changes_nothing_below_it_and_is_nan_above(rng):
    x = scaled(rng, 7.0)
    bounded = jax.jit(partial(groups.matrix_exponential, max_norm=7.1))
    chex.assert_trees_all_close(bounded(x), matrix_exponential(x), rtol=1e-14)
    assert np.isnan(bounded(20 * x)).all()


def test_nan_stays_with_its_matrix(rng):
    x = scaled(rng, 3.0)
    whole = matrix_exponential(x)
    x[1, 0, 0] = np.nan
    broken = np.asarray(matrix_exponential(x))
    assert np.isnan(broken[1]).any()
    chex.assert_trees_all_equal(np.delete(broken, 1, 0), np.delete(whole, 1, 0))


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda: groups.algebra(jnp.ones(3, complex), irreps.so3_generators((1,))), "phi"),
        (lambda: groups.algebra(jnp.ones(3), 1j * irreps.so3_generators((1,))), "generators"),
        (lambda: groups.general(1j * irreps.so3_generators((1,))), "generators"),
        (lambda: groups.general(np.ones((3, 2, 1))), "generators"),
        (lambda: groups.matrix_exponential(jnp.ones((2, 3))), "x"),
        (lambda: groups.matrix_exponential(jnp.eye(2, dtype=int)), "x"),
    ],
)
def test_what_is_not_a_real_algebra_is_refused_by_name(function, named):
    with pytest.raises(ValueError, match=f"^{named} must"):
        function()


def test_integer_generators_are_numbers():
    whole = np.asarray(exponential(np.array([1]), np.array([[[0, -1], [1, 0]]])))
    np.testing.assert_allclose(whole[0, 0], np.cos(1.0), rtol=0, atol=1e-15)
