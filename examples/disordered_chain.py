"""Random energies on a chain: how many states there are at each energy, and how far each reaches,
against what theory says.

Anderson's model is a chain of sites with hopping t and independent random energies. Two of its
quantities have formulas to be held against:

- the density of states per site. The clean chain has ``1 / (pi sqrt(4 t^2 - E^2))``. Lloyd's model,
  energies from a Cauchy distribution of half width Gamma, is solved exactly: a function that is
  analytic in each energy is averaged by putting ``-i Gamma`` there, so that the mean resolvent at z
  is the clean one at ``z + i Gamma``.
- the Lyapunov exponent gamma, by which amplitudes decay: ``|psi| ~ exp(-gamma |x|)``. The
  localisation length meant here is ``xi = 1 / gamma``, twice that of the probability ``|psi|^2``.
  By Thouless's formula gamma is the mean of ``-log|t gL_i|``, that is ``Re log det(T - z) / n - log
  t``. Lloyd's model has ``Re arccosh((z + i Gamma) / 2t)``. Energies of variance s^2, to second
  order in the determinant, give ``s^2 / (2 (4 t^2 - E^2))``: for a box of width W, with ``s^2 = W^2
  / 12``, ``xi = 24 (4 t^2 - E^2) / W^2``. At the band's centre this fails, however weak the
  disorder: there ``gamma = (s / t)^2 (Gamma(3/4) / Gamma(1/4))^2``, and xi is 9 % longer.

    python examples/disordered_chain.py

Source: Lloyd, J. Phys. C 2 (1969) 1717; Thouless, J. Phys. C 5 (1972) 77, and in Ill-Condensed
Matter (1979); for the centre Kappus and Wegner, Z. Phys. B 45 (1981) 15, and Derrida and Gardner,
J. Physique 45 (1984) 1283.
"""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.figures.style import CURVES, INK, OTHERS, label_right, log_axis, new_figure, style_axes
from vfejax.spectral.resolvent import left_resolvent_diagonal
from vfejax.spectral.tridiagonal import spectral_density

HOP = 1.0  # t, the unit of energy
LLOYD = (0.0, 0.1, 0.5)  # Gamma of the densities; 0 is the clean chain
BOX = (0.5, 1.0, 2.0)  # W
ENERGIES = np.linspace(-3.0, 3.0, 49)  # of the densities
BAND = np.linspace(-1.5, 1.5, 13)  # of the localisation lengths
BROADENING = 0.02  # Im z of the densities; the theory takes it too
NUDGE = 1e-5  # Im z of the exponents: keeps pivots off zero, and adds less than 1e-5 / t to gamma
NUM_CHAINS = 4  # for the exponents
NUM_BLOCKS = 32  # of a chain: long against xi, so that their means are independent


def lloyd_density(energy: np.ndarray, gamma: float) -> np.ndarray:
    """``Im G_ii / pi`` with ``G_ii = -1 / sqrt(z^2 - 4 t^2)`` on the branch where Im G > 0."""
    z = energy + 1j * (BROADENING + gamma)
    return (1j / (np.sqrt(2 * HOP - z) * np.sqrt(2 * HOP + z))).imag / math.pi


def lloyd_exponent(energy: np.ndarray, gamma: float) -> np.ndarray:
    """Exact at every Gamma."""
    return np.arccosh((energy + 1j * (NUDGE + gamma)) / (2 * HOP)).real


def box_exponent(energy: np.ndarray, width: float) -> np.ndarray:
    """To second order in W, the band's centre put right."""
    variance = width**2 / 12
    centre = variance / HOP**2 * (math.gamma(0.75) / math.gamma(0.25)) ** 2
    return np.where(np.abs(energy) < 1e-9, centre, variance / (2 * (4 * HOP**2 - energy**2)))


def block_mean(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Means over all axes but the first, and their standard errors from blocks of neighbours along
    the last.
    """
    means = jnp.mean(x.reshape(x.shape[0], -1, x.shape[-1] // NUM_BLOCKS), axis=-1)
    return jnp.mean(means, axis=-1), jnp.std(means, axis=-1, ddof=1) / math.sqrt(means.shape[-1])


@jax.jit
def density_of_states(energies: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Per site of one chain ``[n]``, its outer quarters left out, at every z ``[m]``: means and
    standard errors ``[m]``.
    """
    n = energies.shape[0]
    hop = jnp.full(n - 1, HOP, energies.dtype)
    return block_mean(spectral_density(energies, hop, hop, z)[:, n // 4 : n - n // 4])


@jax.jit
def lyapunov_exponent(energies: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean of ``-log|t gL_i|`` over chains ``[chains, n]`` at every z ``[m]``: means and standard
    errors ``[m]``.
    """
    hop = jnp.full(energies.shape[1] - 1, HOP, energies.dtype)
    return block_mean(
        -jnp.log(jnp.abs(HOP * left_resolvent_diagonal(energies, hop, hop, z[:, None])))
    )


def draw(densities: dict, exponents: dict):
    """Measured points on the curves of the theory: densities of states above, localisation lengths
    below.
    """
    figure = new_figure(7.6)
    top, bottom = figure.subplots(2, 1)
    fine = np.linspace(ENERGIES[0], ENERGIES[-1], 1201)
    for (gamma, (found, error, _)), colour in zip(densities.items(), CURVES, strict=False):
        top.plot(fine, lloyd_density(fine, gamma), color=colour, linewidth=1.4)
        name = f"$\\Gamma$ = {gamma:g}" if gamma else "clean"
        top.errorbar(ENERGIES, found, 2 * error, fmt="o", color=colour, markersize=3.6, label=name)
    top.set_ylim(0.0)
    top.legend(
        frameon=False, loc="upper center", labelcolor=INK, title="Cauchy energies, half width"
    )
    title = f"Density of states, broadened by {BROADENING:g}: points measured, curves exact"
    style_axes(top, xlabel="energy E / t", ylabel="states per site and energy", title=title)

    fine = np.linspace(BAND[0], BAND[-1], 300)  # an even number: without the centre
    labels = []
    bottom.set_yscale("log")
    colours = (*OTHERS, CURVES[1])  # Gamma = 0.1 as above
    for ((kind, size), (found, error, _)), colour in zip(exponents.items(), colours, strict=True):
        theory_fn = box_exponent if kind == "W" else lloyd_exponent
        bottom.plot(fine, 1 / theory_fn(fine, size), color=colour, linewidth=1.4)
        bottom.errorbar(
            BAND, 1 / found, 2 * error / found**2, fmt="o", color=colour, markersize=3.6
        )
        if kind == "W":
            bottom.plot(
                0,
                1 / box_exponent(0.0, size),
                "D",
                markersize=9,
                markerfacecolor="none",
                color=colour,
            )
        symbol = "box, W" if kind == "W" else "Cauchy, $\\Gamma$"
        labels.append((f"{symbol} = {size:g}", 1 / theory_fn(fine[-1], size), colour))
    log_axis(bottom.yaxis)
    title = "Localisation length: points measured, curves and, at the centre, diamonds by formula"
    style_axes(bottom, xlabel="energy E / t", ylabel="$\\xi$ of amplitudes (sites)", title=title)
    label_right(bottom, labels)
    return figure


def main(num_sites: int = 2**18, out: Path = Path("runs/examples")) -> tuple[dict, dict]:
    """Measure, print a table, draw it.

    Args:
        num_sites: length of every chain, a multiple of ``2 NUM_BLOCKS``.
        out: folder of the picture.

    Returns:
        ``{Gamma: (density, standard error, theory)}`` over ``ENERGIES``, and ``{("W" or "Gamma",
        size): (exponent, standard error, theory)}`` over ``BAND``.
    """
    cauchy_key, box_key = jax.random.split(jax.random.key(0))
    cauchy = jax.random.cauchy(cauchy_key, (NUM_CHAINS, num_sites), jnp.float32)
    box = jax.random.uniform(box_key, (NUM_CHAINS, num_sites), jnp.float32, -0.5, 0.5)
    z = jnp.asarray(ENERGIES + 1j * BROADENING, jnp.complex64)
    densities = {
        g: (*map(np.asarray, density_of_states(g * cauchy[0], z)), lloyd_density(ENERGIES, g))
        for g in LLOYD
    }
    z = jnp.asarray(BAND + 1j * NUDGE, jnp.complex64)
    exponents = {
        ("W", w): (*map(np.asarray, lyapunov_exponent(w * box, z)), box_exponent(BAND, w))
        for w in BOX
    }
    g = LLOYD[1]
    exponents["Gamma", g] = (
        *map(np.asarray, lyapunov_exponent(g * cauchy, z)),
        lloyd_exponent(BAND, g),
    )

    rows = {f"density of states, Gamma = {g:g}": row for g, row in densities.items()}
    rows |= {
        f"Lyapunov exponent, {kind} = {size:g}": row for (kind, size), row in exponents.items()
    }
    print(
        f"chains of {num_sites} sites; root mean squares over the energies, relative to the theory"
    )
    print(f"{'':<34}{'measured - theory':>20}{'standard error':>18}")
    for name, (found, error, theory) in rows.items():
        deviation, noise = (math.sqrt(np.mean((x / theory) ** 2)) for x in (found - theory, error))
        print(f"{name:<34}{deviation:>20.2e}{noise:>18.2e}")
    out.mkdir(parents=True, exist_ok=True)
    draw(densities, exponents).savefig(out / "disordered_chain.png")
    print(f"wrote {out / 'disordered_chain.png'}")
    return densities, exponents


if __name__ == "__main__":
    main()
