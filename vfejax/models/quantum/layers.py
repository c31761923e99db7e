"""Layers of density matrices: tokens as states, mixing with their predecessors, evolution, and
readout.

A state rho is kept as one real matrix, ``Re rho + Im rho``
(:func:`vfejax.quantum.hermitian.packed`): mixing, dephasing and populations act on it as they do on
rho. It is float32 (float64 in a float64 model) whatever the arithmetic of the projections is. phi
is the golden ratio throughout.
"""

import functools
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike

from vfejax.devices import alike
from vfejax.models import kernel_products
from vfejax.models.blocks import normal
from vfejax.models.quantum.config import QuantumTransformerConfig
from vfejax.numerics import at_least_float32
from vfejax.quantum import density
from vfejax.quantum.channels import dephase
from vfejax.quantum.density import GOLDEN_RATIO
from vfejax.quantum.evolution import evolve_packed
from vfejax.quantum.hamiltonian import symmetric
from vfejax.quantum.hermitian import unpacked
from vfejax.types import Array

__all__ = [
    "GATE",
    "WINDOW",
    "GivensEmbedding",
    "Measurement",
    "QuantumBlock",
    "causal_mix",
    "mixing_weights",
    "position_scale",
    "rare_token_dephasing",
]

WINDOW = 8
"""Predecessors that a token's state is mixed with."""

GATE = GOLDEN_RATIO**-3
"""0.236: over d, the free energy in nats up to which the gate leaves a state alone; over the number
of blocks, the dephasing after each.
"""

_DT = GOLDEN_RATIO**-5  # inverse nats: H is in nats and hbar = 1
_FIRST_COUPLING = 1.0 / GOLDEN_RATIO  # lam
_FIRST_ANGLES = 1.0  # standard deviation, radians: tokens that share a basis vector must differ
# Standard deviation of the entries of H, nats: at d = 16 phases of about 1 per block.
_FIRST_LEVELS = 1.0


def rare_token_dephasing(counts: ArrayLike) -> Array:
    """Dephasing of each token, ``1 - clip(s / ln V, 0, 1)^(1 / phi)`` with the surprise ``s =
    -log(count / total)`` nats.

    A token as rare as one of V equally frequent ones, or rarer, keeps its coherence; the more
    frequent it is, the more of it is lost.

    Args:
        counts: how often each of the V tokens occurs in the training text, ``[V]``; 0 is as rare as
            can be.

    Returns:
        ``[V]`` in [0, 1], of the default floating dtype.

    Raises:
        ValueError: for counts of another shape.
    """
    counts = jnp.asarray(counts, float)
    if counts.ndim != 1 or counts.shape[0] < 2:
        raise ValueError(f"counts must be [V] for V >= 2 tokens, got shape {counts.shape}")
    surprise = -jnp.log(counts / jnp.sum(counts))
    return 1.0 - jnp.clip(surprise / math.log(counts.shape[0]), 0.0, 1.0) ** (1.0 / GOLDEN_RATIO)


def position_scale(positions: Array, period: int, dtype: jnp.dtype) -> Array:
    """Factor of H at each position, ``1 + sin^2(pi i / period) / phi``: between 1 and phi, the same
    again after ``period`` tokens.

    Defined at every position, and a text of any length meets no other factors than training on
    ``period`` tokens did.

    Args:
        positions: i, integers of any shape.
        period: number of tokens after which the factors repeat.
        dtype: of the factors.
    """
    phase = (positions % period).astype(dtype) / period
    return 1.0 + jnp.sin(jnp.pi * phase) ** 2 / GOLDEN_RATIO


def mixing_weights(coupling: Array, positions: Array) -> Array:
    """Share of each predecessor in a mixed state, ``[n, WINDOW + 1]``; entry 0 is the token itself,
    entry d the one d places before.

    The predecessors are mixed in one after the other, from the farthest to the nearest, by ``rho <-
    (1 - lam eps_d) rho + lam eps_d rho_{i-d}`` with ``eps_d = exp(-d / phi)``. The shares are the
    coefficients of the sum that results. Rows sum to 1, and predecessors before the first token
    have no share.

    Args:
        coupling: lam, a scalar in [0, 1].
        positions: integers ``[n]`` from 0.
    """
    distance = jnp.arange(1, WINDOW + 1, dtype=positions.dtype)
    share = coupling * jnp.exp(-distance.astype(coupling.dtype) / GOLDEN_RATIO)
    left = jnp.concatenate([jnp.ones((1,), share.dtype), jnp.cumprod(1.0 - share)])
    present = positions[:, None] >= distance[None]
    others = jnp.where(present, (share * left[:-1])[None], 0.0)
    return jnp.concatenate([left[jnp.minimum(positions, WINDOW)][:, None], others], axis=1)


class GivensEmbedding(nnx.Module):
    """Tokens as states: basis vector ``token mod d`` turned by d learned Givens angles, then
    dephased if the token is frequent.

    Args:
        vocab_size: number of tokens, V.
        dim: dimension d of the states.
        counts: how often each token occurs in the training text, ``[V]``; None for no dephasing.
            The strengths are kept as a parameter, ``dephasing``, that no gradient reaches: so
            weights that are read back bring them along, without the text.
        dtype: that of the model; states are at least single precision.
        rngs: where first weights come from.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        counts: ArrayLike | None = None,
        *,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dim, real = dim, at_least_float32(dtype)
        self.angles = nnx.Param(normal(_FIRST_ANGLES)(rngs.params(), (vocab_size, dim), real))
        self.dephasing = (
            None if counts is None else nnx.Param(rare_token_dephasing(counts).astype(real))
        )

    def __call__(self, tokens: Array) -> Array:
        """``tokens [...]`` to states ``[..., d, d]``, which are real: packed, too. A token outside
        the vocabulary has NaN.
        """
        angles = jnp.take(self.angles[...], tokens, axis=0)
        rho = density.pure_state(density.givens_state(tokens % self.dim, angles))
        if self.dephasing is not None:
            strength = jax.lax.stop_gradient(self.dephasing[...])
            rho = dephase(rho, jnp.take(strength, tokens, axis=0))
        return rho


def _weighted(states: Array, weights: Array) -> Array:
    """``sum_d weights[i, d] states[:, i + d]``, ``[b, n, d, d]``, for ``weights [n, m]`` and at
    least ``n + m - 1`` states.
    """
    n, m = weights.shape
    shares = [states[:, d : d + n] * weights[None, :, d, None, None] for d in range(m)]
    return functools.reduce(jnp.add, shares)


@jax.custom_vjp
def causal_mix(states: Array, coupling: Array, positions: Array) -> Array:
    """``sum_d w_d(i) rho_{i-d}`` with :func:`mixing_weights`; every token reads the states that
    came in, so all positions are mixed at once.

    The gradient is exact: the transposed sum for the states, and one more sum, with ``dw/dlam``,
    for lam (autodiff takes three times as long).

    Args:
        states: of the WINDOW positions before and then the n tokens, real ``[b, WINDOW + n, d,
            d]``.
        coupling: lam, a scalar.
        positions: integers ``[n]``.

    Returns:
        ``[b, n, d, d]``.
    """
    return _weighted(states, mixing_weights(coupling, positions)[:, ::-1])


def _causal_mix_forward(
    states: Array, coupling: Array, positions: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    return causal_mix(states, coupling, positions), (states, coupling, positions)


def _causal_mix_backward(
    residuals: tuple[Array, Array, Array], ct: Array
) -> tuple[Array, Array, None]:
    states, coupling, positions = residuals
    weights, slope = jax.jvp(
        lambda c: mixing_weights(c, positions), (coupling,), (jnp.ones_like(coupling),)
    )
    products = (ct * _weighted(states, slope[:, ::-1])).reshape(-1, ct.shape[-1] ** 2)
    # As a product: XLA on a CPU writes all nine slices of the states before a sum.
    ct_coupling = jnp.sum(products @ jnp.ones_like(products[0]))
    # State m is read by position m - WINDOW + d as its predecessor d.
    rows = jnp.pad(weights, ((WINDOW, WINDOW), (0, 0)))
    readers = jnp.stack([rows[d : d + states.shape[1], d] for d in range(WINDOW + 1)], axis=1)
    ct_states = _weighted(jnp.pad(ct, ((0, 0), (WINDOW, WINDOW), (0, 0), (0, 0))), readers)
    return ct_states, ct_coupling, None


causal_mix.defvjp(_causal_mix_forward, _causal_mix_backward)


class Measurement(NamedTuple):
    """Sums over measured states: free energy and entropy (nats), purity and coherence; and how many
    states there are.
    """

    free_energy_nats: Array
    entropy_nats: Array
    purity: Array
    coherence: Array
    states: Array


class QuantumBlock(nnx.Module):
    """Causal mixing, evolution under the block's own H scaled by position, and what the populations
    say, added to a residual stream:

        x <- x + W p,    x <- x + W_out gelu(W_in norm(x));

    the evolved states, a little dephased, are the next block's.

    Args:
        config: the model's options.
        period: that of :func:`position_scale`.
        dtype: that of the projections.
        rngs: where first weights come from.
    """

    def __init__(
        self,
        config: QuantumTransformerConfig,
        period: int,
        *,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        real, dim = at_least_float32(dtype), config.dim
        linear = partial(
            kernel_products.linear, use_bias=False, dtype=dtype, param_dtype=real, rngs=rngs
        )
        self.config, self.period, self.dtype = config, period, dtype
        self.coupling = nnx.Param(
            jnp.full((), math.log(_FIRST_COUPLING / (1.0 - _FIRST_COUPLING)), real)
        )
        self.hamiltonian = nnx.Param(
            normal(_FIRST_LEVELS)(rngs.params(), (dim * (dim + 1) // 2,), real)
        )
        self.values = linear(dim, config.width, kernel_init=normal(0.02))
        self.norm = nnx.LayerNorm(
            config.width, use_bias=False, dtype=dtype, param_dtype=real, rngs=rngs
        )
        out_scale = 0.02 / (2 * config.blocks) ** 0.5
        self.mlp_in = linear(config.width, config.hidden, kernel_init=normal(0.02))
        self.mlp_out = linear(config.hidden, config.width, kernel_init=normal(out_scale))

    def mixed(self, states: Array, places: Array) -> Array:
        """States that enter the evolution, ``[b, n, d, d]``.

        Args:
            states: of the predecessors and the tokens, ``[b, WINDOW + n, d, d]``.
            places: how many tokens stand before each, ``[n]``.
        """
        coupling = jax.nn.sigmoid(self.coupling[...])
        if self.config.mixing == "convex":
            rho = causal_mix(*alike(states, coupling, places))
        else:
            rho = dephase(states[:, WINDOW:], 1.0 - mixing_weights(coupling, places)[:, 0])
        return dephase(rho, 1.0) if self.config.decohere else rho

    def measure(self, rho: Array, hamiltonian: Array) -> dict[str, Array]:
        """Free energy (nats; :func:`vfejax.quantum.density.free_energy`), its parts and the purity
        of each state rho, complex ``[..., d, d]``.

        Energies are counted from their mean: a shift of H moves no state, and would lower F without
        end.
        """
        energies = jnp.diagonal(hamiltonian) - jnp.mean(jnp.diagonal(hamiltonian))
        entropy, coherence = density.von_neumann_entropy(rho), density.coherence(rho)
        temperature = density.coherence_temperature(rho)
        free_energy = density.mean_energy(rho, energies) - temperature * entropy
        found = {"free_energy_nats": free_energy, "entropy_nats": entropy}
        return found | {"purity": density.purity(rho), "coherence": coherence}

    def __call__(
        self,
        x: Array,
        rho: Array,
        past: Array,
        places: Array,
        positions: Array,
        mask: Array | None = None,
    ) -> tuple[tuple[Array, Array], Array, Measurement]:
        """One block.

        Args:
            x: residual stream ``[b, n, width]``.
            rho: states ``[b, n, d, d]``.
            past: the block's own inputs at the ``WINDOW`` places before, ``[b, WINDOW, d, d]``; 0
                where there is none.
            places: how many tokens stand before each, ``[n]``.
            positions: in the text, for the scale of H, ``[b or 1, n]``.
            mask: True at real tokens, ``[b, n]``, with padding behind them; None when all are.

        Returns:
            ``(x, rho)`` for the next block, the past of the place after the last, and what
            :meth:`measure` finds in the states that enter the evolution. With the gate these are
            the states of all places, else of every ``config.measure_every``-th, counted back from
            the last real token of each row.
        """
        config = self.config
        states = jnp.concatenate([past, rho], axis=1)
        rho = self.mixed(states, places)
        hamiltonian = symmetric(self.hamiltonian[...])
        chosen, counted = _measured_states(rho, 1 if config.gate else config.measure_every, mask)
        found = self.measure(unpacked(chosen), hamiltonian)
        scale = position_scale(positions, self.period, hamiltonian.dtype)
        evolved = evolve_packed(rho, hamiltonian, _DT * scale)
        if config.gate:
            still = jnp.abs(found["free_energy_nats"]) <= GATE / config.dim
            evolved = jnp.where(still[..., None, None], rho, evolved)
        populations = checkpoint_name(density.populations(evolved), "populations")
        x = x + self.values(populations.astype(self.dtype))
        x = x + self.mlp_out(nnx.gelu(self.mlp_in(self.norm(x))))
        return (
            (x, dephase(evolved, GATE / config.blocks)),
            states[:, -WINDOW:],
            _measurement(found, counted),
        )


def _measured_states(rho: Array, stride: int, mask: Array | None) -> tuple[Array, Array | None]:
    """States at every ``stride``-th place counted back from the last real token, ``[b, m, d, d]``,
    and which of them count, ``[b, m]`` (None: all); with stride 1 in their own order.
    """
    n = rho.shape[1]
    if stride == 1:
        return rho, mask
    if mask is None:
        # By index: the transpose of a strided slice makes XLA on a CPU work out the states' whole
        # cotangent several times over.
        return rho[:, jnp.arange((n - 1) % stride, n, stride)], None
    last = jnp.sum(mask, axis=1, dtype=jnp.int32) - 1
    back = stride * jnp.arange(-(-n // stride), dtype=jnp.int32)
    places = last[:, None] - back[None]
    chosen = jnp.take_along_axis(rho, jnp.maximum(places, 0)[..., None, None], axis=1)
    return chosen, places >= 0


def _measurement(found: dict[str, Array], counted: Array | None) -> Measurement:
    """What was measured, added up over the states that count."""
    first = found["purity"]
    if counted is None:
        sums = {name: jnp.sum(values) for name, values in found.items()}
        return Measurement(**sums, states=jnp.asarray(first.size, first.dtype))
    sums = {
        name: jnp.sum(jnp.where(counted, values, jnp.zeros((), values.dtype)))
        for name, values in found.items()
    }
    return Measurement(**sums, states=jnp.sum(counted, dtype=first.dtype))
