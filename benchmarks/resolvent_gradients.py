"""How far the published shortcut gradients of the resolvent diagonal are from the gradient.

    python benchmarks/resolvent_gradients.py [--n 512] [--chains 32]

Both shortcuts pretend that ``G_ii`` depends on ``a_i`` alone. They forget the other sites, the
couplings and, for the second, the formula:

    dG_ii / da_i = -G_ii^2      (the diagonal of the exact Jacobian -G_ij G_ji)
    dG_ii / da_i = -1 / G_ii^2  (empirical)

Per blend of the two rules, over random chains with hopping 1 and disordered site energies: the
cosine between shortcut and exact gradient of a random linear readout of [Re G, Im G],
and the relative error |shortcut - exact| / |exact|, as median and worst chain. The column "scaled"
is the relative error left after the best positive scaling, that is, what no learning rate can
repair. The last row is the exact adjoint in complex64 against complex128.
"""

import argparse
import platform

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.spectral.resolvent import resolvent_diagonal

BLENDS = (0.0, 0.1, 0.5, 0.9, 1.0)


def blended(a, b, c, z, grad_blend: float):
    """Exact resolvent diagonal with ``-((1 - grad_blend) G^2 + grad_blend / G^2)`` as its
    derivative by a, each entry through its own site.
    """
    g = jax.lax.stop_gradient(resolvent_diagonal(a, b, c, z))
    rule = -((1.0 - grad_blend) * g * g + grad_blend / (g * g))
    return g + rule * (a - jax.lax.stop_gradient(a)).astype(g.dtype)


def gradient(diagonal_fn, a: np.ndarray, z: complex, readout: np.ndarray) -> np.ndarray:
    """d/da of ``sum readout_0 Re G + readout_1 Im G`` for chains ``a [chains, n]`` with hopping
    1.
    """
    hop = jnp.ones(a.shape[-1] - 1, a.dtype)

    def loss(a):
        g = diagonal_fn(a, hop, hop, z)
        return jnp.sum(readout[0] * g.real + readout[1] * g.imag)

    return np.asarray(jax.jit(jax.grad(loss))(a), np.float64)


def compare(found: np.ndarray, exact: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cosine, relative error and relative error after the best positive scaling, per chain."""
    norm = np.linalg.norm(exact, axis=-1)
    cosine = np.sum(found * exact, -1) / (np.linalg.norm(found, axis=-1) * norm)
    return (
        cosine,
        np.linalg.norm(found - exact, axis=-1) / norm,
        np.sqrt(1 - np.maximum(cosine, 0) ** 2),
    )


def table(n: int, chains: int) -> None:
    """One block of rows for every spectral parameter."""
    rng = np.random.default_rng(0)
    a, readout = rng.standard_normal((chains, n)), rng.standard_normal((2, chains, n))
    print(
        f"{'z':>8} {'rule':<16} {'cosine':>8} {'worst':>8} {'error':>10} {'worst':>10} "
        f"{'scaled':>8}"
    )
    for z in (1j, 0.3 + 0.5j, 0.1j):
        exact = gradient(resolvent_diagonal, a, z, readout)
        rows = {
            f"grad_blend {blend}": gradient(
                lambda *x, blend=blend: blended(*x, grad_blend=blend),
                a,
                z,
                readout,
            )
            for blend in BLENDS
        }
        rows["exact, float32"] = gradient(
            resolvent_diagonal, a.astype("f4"), z, readout.astype("f4")
        )
        for name, found in rows.items():
            cosine, error, scaled = compare(found, exact)
            print(
                f"{z:>8.1f} {name:<16} {np.median(cosine):>8.4f} {cosine.min():>8.4f} "
                f"{np.median(error):>10.2e} {error.max():>10.2e} "
                f"{np.median(scaled):>8.4f}"
            )


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=512, help="sites of a chain")
    parser.add_argument("--chains", type=int, default=32, help="number of random chains")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    table(options.n, options.chains)
    print(
        f"jax {jax.__version__}, python {platform.python_version()}, {jax.devices()[0].device_kind}"
    )


if __name__ == "__main__":
    main()
