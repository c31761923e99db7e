"""Which eigenvalues of a fitted Koopman operator are real? Two systems whose spectrum is known.

The slow manifold has observables that close, so its eigenvalues are found exactly; observables that
do not close are added, and the residual on other data tells what they bring. The noisy logistic map
has an operator of rank 21, whose leading eigenvalues a fit of reduced rank finds. There a residual
is large even for true pairs: it counts the noise of the system, which no observable predicts.

    python examples/koopman_spectrum.py
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.figures import spectra
from vfejax.koopman import dictionaries, operators, spectrum, streaming
from vfejax.problems import known_spectra


@jax.jit
def slow_manifold(key):
    """Statistics to fit and statistics to judge, of x, y, x^2, xy, x^3 and three waves."""

    def lift(x):
        closed = dictionaries.polynomials(2, 2, constant=False)(x)[:, :4]
        more = jnp.stack([x[:, 0] ** 3, *(jnp.sin(k * x[:, 1]) for k in (2, 3, 4))], axis=-1)
        return jnp.concatenate([closed, more], axis=-1)

    def statistics(x):
        following = known_spectra.slow_manifold(x)
        return streaming.update(streaming.init(8), lift(x), lift(following))

    x = jax.random.uniform(key, (2, 1000, 2), jnp.float32, minval=-1.0)
    return statistics(x[0]), statistics(x[1])


def logistic_map(num=10_000):
    lift = dictionaries.harmonics(15)
    now, following = (lift(jnp.asarray(x, jnp.float32)) for x in known_spectra.logistic_pairs(num))
    return streaming.update(streaming.init(31), now, following)


def main(out=Path("runs/koopman_spectrum")):
    train, test = slow_manifold(jax.random.key(0))
    found = spectrum.eig(operators.ridge(train))
    errors = spectrum.residuals(test, found.values, found.functions)
    for value, error in zip(found.values, errors, strict=True):
        print(f"slow manifold {value.real:7.4f} {value.imag:+7.4f} i   residual {error:.1e}")
    real = imag = np.linspace(-1.1, 1.1, 45)
    shade = spectrum.pseudospectrum(test, real + 1j * imag[:, None])
    out.mkdir(parents=True, exist_ok=True)
    true = np.array([0.9, 0.81, 0.729, 0.5, 0.45])
    figure = spectra.spectrum(
        found.values, errors, true=true, shade=(real, imag, shade), title="slow manifold"
    )
    figure.savefig(out / "slow_manifold.png")

    factor, known = logistic_map(), known_spectra.logistic_spectrum()
    chaos = spectrum.eig(operators.reduced_rank(factor, 21, 1e-6 * factor.count))
    print("logistic map", np.round(chaos.values[:3], 3), "true", np.round(known[:3], 3))
    values = chaos.values[:21]
    left = spectrum.residuals(factor, values, chaos.functions[:, :21])
    spectra.spectrum(values, left, true=known, title="noisy logistic map").savefig(
        out / "logistic_map.png"
    )
    return (found.values, errors), values


if __name__ == "__main__":
    main()
