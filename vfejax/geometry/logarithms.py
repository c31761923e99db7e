"""Coordinates of frames: the logarithm of the group, and the group law in coordinates.

Everything here asks for orthogonal representations, whose generators are antisymmetric.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.geometry.groups import (
    Generators,
    algebra,
    as_group,
    body_jacobian,
    matrix_exponential,
)
from vfejax.numerics import (
    as_floating,
    cholesky,
    identity_like,
    matmul,
    matvec,
    transpose,
    triangular_inverse,
    triangularize,
)
from vfejax.types import Array

__all__ = ["compose", "logarithm", "orthogonal_logarithm"]

_NUM_ROOTS = 3
# Coefficients of arcsinh(y) in y^3, y^5, ...: 2e-9 of the angle is left at y = sin(pi / 8).
_ARCSINH = (-1 / 6, 3 / 40, -15 / 336, 105 / 3456, -945 / 42240, 10395 / 599040)


def logarithm(frame: Array, generators: Generators) -> Array:
    """Coordinates of frames, ``exp(sum_a phi^a J_a) = U``, by the group's own logarithm.

    Args:
        frame: ``[..., k, k]``, orthogonal.
        generators: a :class:`vfejax.geometry.groups.Group`. For :func:`vfejax.geometry.irreps.so3`
            the result is right at every angle up to pi, whatever the spins. Plain generators ``[a,
            k, k]`` mean :func:`orthogonal_logarithm`, which sees the representation alone.

    Returns:
        ``[..., a]``, the coordinates closest to 0. 0 where no generator has an effect (spin 0). The
        derivatives with respect to the frame are those along the group, exact to every order.

    Raises:
        ValueError: when the shapes do not fit; when generators are known and not antisymmetric.

    >>> from vfejax.geometry import irreps
    >>> from vfejax.geometry.transport import frames
    >>> group = irreps.so3((0, 1, 2))
    >>> phi = jnp.array([0.5, -2.0, 2.0])
    >>> bool(jnp.allclose(logarithm(frames(phi, group), group), phi, atol=1e-5))
    True
    """
    group = as_group(generators)
    frame = as_floating(frame, "frame")
    size = group.generators.shape[-1]
    if frame.shape[-2:] != (size, size):
        raise ValueError(
            f"frame must have shape [..., {size}, {size}] to fit the generators, got {frame.shape}"
        )
    return (group.logarithm or orthogonal_logarithm)(frame, group.generators)


def compose(phi: Array, step: Array, generators: Generators) -> Array:
    """The group law in coordinates: those of ``exp(phi . J) exp(step . J)``.

    Args:
        phi: coordinates ``[..., a]``.
        step: coordinates ``[..., a]``; leading axes broadcast.
        generators: a :class:`vfejax.geometry.groups.Group`, whose own law is used where it has one
            (quaternions for so(3)), or a basis ``[a, k, k]`` of antisymmetric matrices.

    Returns:
        ``[..., a]``, the coordinates closest to 0, as :func:`logarithm` gives them.

    Raises:
        ValueError: as :func:`logarithm` does.

    >>> from vfejax.geometry import irreps
    >>> there, back = jnp.array([0.3, -2.0, 0.7]), jnp.array([-0.3, 2.0, -0.7])
    >>> bool(jnp.allclose(compose(there, back, irreps.so3((2,))), 0.0, atol=1e-6))
    True
    """
    group = as_group(generators)
    phi, step = as_floating(phi, "phi"), as_floating(step, "step")
    for name, coordinates in (("phi", phi), ("step", step)):
        if coordinates.shape[-1:] != group.generators.shape[:1]:
            raise ValueError(
                f"{name} must end in one coordinate per generator ({group.generators.shape[0]}), "
                f"got shape {coordinates.shape}"
            )
    if group.compose is not None:
        return group.compose(phi, step)
    left, right = (group.exponential(x, group.generators) for x in (phi, step))
    return logarithm(matmul(left, right), group)


def orthogonal_logarithm(frame: Array, generators: Array | np.ndarray) -> Array:
    """Coordinates of frames in any orthogonal representation, by matrix products.

    Inverse scaling and squaring: the square root of an orthogonal Q is the polar factor of ``1 +
    Q`` (Newton-Schulz), three roots leave angles below ``pi / 8``, and there ``log Q =
    arcsinh((Q - Q^T) / 2)`` is a short series. ``1 + Q`` is nearly singular where an eigenvalue of
    Q is near -1, so that its polar factor has lost digits. One step of Newton's method on the group
    brings them back: ``phi <- phi + T(phi)^{-1} log(exp(-phi . J) Q)``, with T the
    :func:`vfejax.geometry.groups.body_jacobian`.

    The derivative is ``T(phi)^{-1} (U^{-1} dU)``, of every order; there is none with respect to the
    generators.

    Args:
        frame: ``[..., k, k]``, orthogonal.
        generators: linearly independent basis ``[a, k, k]`` of antisymmetric matrices, closed under
            commutators; or zeros, which have the coordinates 0.

    Returns:
        ``[..., a]``. The angles of the eigenvalues of ``phi . J`` lie below pi: a representation
        that turns faster than its coordinates, such as spin 2, ends at smaller ones. NaN where an
        eigenvalue is too close to -1 (1e-4 in float32, 1e-7 in float64), where the frame is no
        exponential of such coordinates, and where traced generators are not antisymmetric.

    Raises:
        ValueError: when generators are known and not antisymmetric.

    Source: Higham, Functions of Matrices (2008), sections 8.3 and 11.5; the step of Newton's
    method is ours.

    >>> from vfejax.geometry import irreps
    >>> group = irreps.so(4)
    >>> phi = jnp.array([2.0, 0.0, 0.5, 0.0, 0.0, -1.0])
    >>> frame = group.exponential(phi, group.generators)
    >>> bool(jnp.allclose(orthogonal_logarithm(frame, group.generators), phi, atol=1e-5))
    True
    """
    frame = as_floating(frame, "frame")
    if not isinstance(generators, jax.core.Tracer):
        known = np.asarray(generators)
        if np.any(known != -np.swapaxes(known, -1, -2)):
            raise ValueError(
                "generators must be antisymmetric, for frames that are orthogonal matrices, and "
                "these are not; a frame of another representation has no logarithm here"
            )
    basis = jax.lax.stop_gradient(jnp.asarray(generators).astype(frame.dtype))
    return _logarithm(frame, basis)


@jax.custom_jvp
def _logarithm(frame: Array, generators: Array) -> Array:
    root = _square_root(frame, 45 if jnp.finfo(frame.dtype).bits == 64 else 28)
    for _ in range(_NUM_ROOTS - 1):
        root = _square_root(root, 7)
    sine = 0.5 * (root - transpose(root))
    square = matmul(sine, sine)
    series = identity_like(sine) * _ARCSINH[-1]
    for coefficient in (*reversed(_ARCSINH[:-1]), 1.0):
        series = matmul(series, square) + coefficient * identity_like(sine)
    start = _coordinates(2.0**_NUM_ROOTS * matmul(series, sine), generators)

    rest = matmul(matrix_exponential(-algebra(start, generators)), frame)
    phi = start + _solve_body(start, _coordinates(rest, generators), generators)
    miss = jnp.max(jnp.abs(rest - identity_like(rest)), axis=(-2, -1), initial=0.0)
    skew = jnp.all(generators == -transpose(generators))
    return jnp.where(((miss < 0.1) & skew)[..., None], phi, jnp.nan)


@_logarithm.defjvp
def _logarithm_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    frame, generators = primals
    phi = _logarithm(frame, generators)
    body = _coordinates(matmul(transpose(frame), tangents[0]), generators)
    return phi, _solve_body(phi, body, generators)


def _square_root(frame: Array, num_iterations: int) -> Array:
    """Polar factor of ``1 + Q``. Newton-Schulz multiplies a small singular value by 3/2."""

    def improve(_: Array, x: Array) -> Array:
        return 1.5 * x - 0.5 * matmul(matmul(x, transpose(x)), x)

    return jax.lax.fori_loop(0, num_iterations, improve, 0.5 * (identity_like(frame) + frame))


def _coordinates(element: Array, generators: Array) -> Array:
    """Least-squares coordinates ``[..., a]`` of the antisymmetric part of matrices; 0 where all
    generators are.
    """
    rows = jnp.reshape(generators, (generators.shape[0], -1))
    gram = matmul(rows, rows.T)
    gram = jnp.where(jnp.trace(gram) == 0, identity_like(gram), gram)
    inverse = triangular_inverse(cholesky(gram))
    dual = matmul(inverse.T, matmul(inverse, rows)).reshape(generators.shape)
    return jnp.einsum("...kl,akl->...a", element, dual, precision="highest")


def _solve_body(phi: Array, velocity: Array, generators: Array) -> Array:
    """Velocity of the coordinates with this body velocity: ``T(phi)^{-1} xi``."""
    jacobian = body_jacobian(phi, generators)
    inverse = triangular_inverse(triangularize(jacobian))
    return matvec(transpose(inverse), matvec(inverse, matvec(transpose(jacobian), velocity)))
