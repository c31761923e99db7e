"""One layer: from the beliefs below to priors, from priors to beliefs, and their free energy.

    p_i = N(z_i + d_i, exp(r tanh((t_i + s + e_i) / r)))
    (d_i, e_i) = W_2 gelu(W_1 norm(z_i) + b)
    q_i = argmin_q  alpha KL(q || p_i) + sum_h lambda_h A_h(q, {Omega_ij p_j})

z_i and t_i are mean and log variance of the belief below. Log variances stay between -r and r:
without a bound those of rare tokens run off to where a divergence is thousands of nats. The argmin
is found by exact coordinate descent: for given attention the minimum has the mean natural
parameters of prior and messages, and attention is the minimum for given beliefs. So F never rises.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.devices import alike
from vfejax.models.pure_fep import energy
from vfejax.models.pure_fep.frames import Frames, to_common, token_frames
from vfejax.models.pure_fep.gaussians import (
    IrrepGaussian,
    Irreps,
    from_natural,
    kl_divergence,
    natural_parameters,
)
from vfejax.numerics import matmul
from vfejax.types import Array

__all__ = [
    "Ancestors",
    "Layer",
    "Rules",
    "Surroundings",
    "couplings",
    "descend",
    "frames_of",
    "layer_energy",
    "layer_prior",
    "map_prior",
]


class Layer(NamedTuple):
    """What a layer learns.

    Attributes:
        expand: ``[h c, hidden]``, W_1.
        offset: ``[hidden]``, b.
        contract: ``[hidden, h c + h r]``, W_2: changes of the mean and of the log variance.
        log_variance: ``[h, r]``, s.
        coupling: ``[h]``, of which a sigmoid makes lambda.
        links: ``[h, length]``, preferences for distances.
        frames: ``[v, h, 3]``, coordinates of the tokens' frames in radians.
    """

    expand: Array
    offset: Array
    contract: Array
    log_variance: Array
    coupling: Array
    links: Array
    frames: Array


class Rules(NamedTuple):
    """Numbers that a layer does not learn: options of
    :class:`vfejax.models.pure_fep.config.PureFEPConfig`.

    Attributes:
        kind: the irreps of a head.
        rates: turns of the frames per token, ``[h]``.
        self_weight: alpha.
        belief_weight: lambda_b.
        prior_weight: lambda_g.
        temperature: tau, in nats.
        steps: descents of the beliefs.
        log_variance_bound: r.
    """

    kind: Irreps
    rates: np.ndarray
    self_weight: float
    belief_weight: float
    prior_weight: float
    temperature: float
    steps: int
    log_variance_bound: float


class Surroundings(NamedTuple):
    """Where the agents of a layer stand: tokens ``[b, n]``, positions ``[b, n]`` and distances to
    the senders ``[n, m]``.
    """

    tokens: Array
    positions: Array
    lags: Array


class Ancestors(NamedTuple):
    """Beliefs of all layers in the common frame ``[l, b, n, h, c]``, and their weights ``[l]`` in
    the prior of this one.
    """

    beliefs: IrrepGaussian
    weights: Array


def couplings(layer: Layer, rules: Rules) -> Array:
    """lambda of every head, ``[h]``, between 0 and twice the weight of the alignment."""
    return 2.0 * rules.belief_weight * jax.nn.sigmoid(layer.coupling)


def frames_of(layer: Layer, around: Surroundings, rules: Rules) -> Frames:
    """The frames of the agents of a layer.

    Args:
        layer: the layer.
        around: where the agents stand.
        rules: the numbers of the model.
    """
    rotation = token_frames(layer.frames, around.tokens, rules.kind)
    return Frames(rotation, around.positions, rules.rates)


def map_prior(layer: Layer, below: IrrepGaussian, bound: float) -> IrrepGaussian:
    """Priors from the beliefs below, in the agents' own frames, ``[b, n, h, c]``.

    Args:
        layer: the layer.
        below: beliefs of the layer below, ``[b, n, h, c]``.
        bound: of the log variances, of both signs.
    """
    mean = below.mean.reshape(*below.mean.shape[:-2], -1)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(mean), axis=-1, keepdims=True) + 1e-6)
    features = jax.nn.gelu(matmul(mean * scale, layer.expand) + layer.offset)
    change = matmul(features, layer.contract)
    width = mean.shape[-1]
    widths = change[..., width:].reshape(below.log_variance.shape)
    return IrrepGaussian(
        below.mean + change[..., :width].reshape(below.mean.shape),
        bound * jnp.tanh((below.log_variance + layer.log_variance + widths) / bound),
    )


def layer_prior(
    layer: Layer,
    below: IrrepGaussian,
    around: Surroundings,
    ancestors: Ancestors | None,
    rules: Rules,
) -> IrrepGaussian:
    """Priors in the common frame, drawn to the ancestors' beliefs where there are any.

    Args:
        layer: the layer.
        below: beliefs of the layer below, ``[b, n, h, c]``.
        around: where the agents stand.
        ancestors: beliefs of the layers above; None for none.
        rules: the numbers of the model.
    """
    place = frames_of(layer, around, rules)
    prior = to_common(map_prior(layer, below, rules.log_variance_bound), place, rules.kind)
    if ancestors is None:
        return prior
    own = natural_parameters(prior, rules.kind)
    others = natural_parameters(ancestors.beliefs, rules.kind)
    pooled = energy.pooled_prior(own.mean, own.log_variance, others, ancestors.weights)
    return from_natural(*pooled, rules.kind)


def descend(
    layer: Layer,
    prior: IrrepGaussian,
    senders: IrrepGaussian,
    around: Surroundings,
    rules: Rules,
) -> tuple[IrrepGaussian, Array]:
    """Beliefs of the free phase, in the common frame, and the attention of the last step.

    Every step is a natural-gradient step of length 1 on F_i for given attention, which is its exact
    minimum there.

    Args:
        layer: the layer.
        prior: of the receivers, ``[b, n, h, c]``, in the common frame.
        senders: beliefs with which senders begin the layer, ``[b, m, h, c]``, in the common frame.
        around: where the agents stand.
        rules: the numbers of the model.

    Returns:
        Beliefs ``[b, n, h, c]``, and ``beta [b, h, n, m]``.
    """

    def found(prior: IrrepGaussian, lags: Array) -> tuple[IrrepGaussian, Array]:
        belief, weights = _descended(layer, prior, senders, lags, rules)
        return belief, jnp.swapaxes(weights, 1, 2)

    belief, weights = energy.by_receivers(found, prior, around.lags)
    return belief, jnp.swapaxes(weights, 1, 2)


def _descended(
    layer: Layer, prior: IrrepGaussian, senders: IrrepGaussian, lags: Array, rules: Rules
) -> tuple[IrrepGaussian, Array]:
    """:func:`descend` of receivers that are read at once."""
    log_weight = energy.link_weights(layer.links, lags)
    own, sent = natural_parameters(prior, rules.kind), natural_parameters(senders, rules.kind)
    strength = couplings(layer, rules)[:, None, None]

    def mixed(own: Array, sent: Array, pulls: Array) -> Array:
        messages = jnp.einsum("bhnm,bmhx->bnhx", pulls, sent, precision="highest")
        total = rules.self_weight + jnp.swapaxes(jnp.sum(pulls, axis=-1), 1, 2)[..., None]
        return (rules.self_weight * own + messages) / total

    def step(carry: tuple, none: None) -> tuple[tuple, None]:
        weights = energy.attention(carry[0], senders, log_weight, rules.kind, rules.temperature)
        information, precision = (
            mixed(*pair, strength * weights) for pair in zip(own, sent, strict=True)
        )
        return (from_natural(information, precision, rules.kind), weights), none

    batch, _, heads, _ = prior.mean.shape
    nothing, _ = alike(jnp.zeros((batch, heads, *lags.shape), prior.mean.dtype), prior.mean)
    return jax.lax.scan(step, (prior, nothing), length=rules.steps)[0]


def layer_energy(
    layer: Layer,
    prior: IrrepGaussian,
    belief: IrrepGaussian,
    around: Surroundings,
    ancestors: Ancestors | None,
    rules: Rules,
) -> energy.EnergyTerms:
    """F_i of every token without the observation, ``[b, n]`` for each term.

    Args:
        layer: the layer.
        prior: of receivers and senders, in the common frame.
        belief: of receivers, in the agents' own frames.
        around: where the agents stand.
        ancestors: beliefs of the layers above; None for none.
        rules: the numbers of the model.
    """
    kind, place = rules.kind, frames_of(layer, around, rules)
    q = to_common(belief, place, kind)

    def paid(receivers: IrrepGaussian, lags: Array) -> Array:
        log_weight = energy.link_weights(layer.links, lags)
        found = energy.alignment_energy(receivers, prior, log_weight, kind, rules.temperature)
        return jnp.swapaxes(found, 1, 2)

    def alignment(receivers: IrrepGaussian) -> Array:
        return jnp.swapaxes(energy.by_receivers(paid, receivers, around.lags), 1, 2)

    zero = jnp.zeros(around.tokens.shape, belief.mean.dtype)
    agreement = jnp.einsum("h,bhn->bn", couplings(layer, rules), alignment(q))
    priors = rules.prior_weight * jnp.sum(alignment(prior), axis=1) if rules.prior_weight else zero
    tower = zero
    if ancestors is not None:
        tower = energy.hyperprior_energy(prior, *ancestors, kind)
    own = rules.self_weight * kl_divergence(q, prior, kind)
    return energy.EnergyTerms(own, agreement, priors, tower, zero)
