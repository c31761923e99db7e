"""Pictures of what a trained VFE transformer does with a text: attention, steps of inference, how
far beliefs come, and frames.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfejax.models.protocol import merging
from vfejax.models.vfe import energy
from vfejax.models.vfe.config import VFEConfig
from vfejax.models.vfe.energy import Places
from vfejax.models.vfe.inference import senders
from vfejax.models.vfe.model import VFETransformer, creator
from vfejax.numerics import identity_like
from vfejax.types import Array, Maps, PyTree

__all__ = ["Traces", "maps", "traces"]

_TEXTS = "Means over windows of the validation text."


class Traces(NamedTuple):
    """What inference did with texts, by layer.

    Attributes:
        attention: weights between posteriors, ``[layers, b, heads, n, n]``.
        length: Fisher length of every step, ``[layers, steps, b, n, heads]``.
        change: KL of beliefs from their priors after every step, nats, of the same shape.
        turn: how far posterior frames are turned, ``|A - 1| / 2^(1/2)``, which is the angle in
            radians where it is small, ``[layers, b, n, heads]``; None without frames.
    """

    attention: Array
    length: Array
    change: Array
    turn: Array | None


def traces(module: VFETransformer, tokens: Array) -> Traces:
    """What inference does with texts ``[b, n]`` of real tokens."""
    rule, here = module.rule, jnp.arange(tokens.shape[1], dtype=jnp.int32)
    turn, places = module.turn(here[None]), Places(here, here)

    def step(block: Any, carry: PyTree, none: None) -> tuple[PyTree, Traces]:
        prior, posterior, info, _ = module.infer(block, carry, turn, places)
        transport, tau = block.transport(turn), block.strength().temperature
        own = rule.family.receivers(posterior, transport, rule.layout)
        rows = senders(posterior, transport, rule)
        weights = energy.attention(rule.reader, own, rows, tau, places)
        last = rule.family.divergence(posterior, prior, rule.layout)
        change = jnp.concatenate([info.self_coupling, last[None]])[1:]
        found = Traces(weights, info.length, change, _turned(posterior.frame))
        return block.finish(carry, prior, posterior, None), found

    return module.blocks.scan(step, module.embed(tokens, here[None]))[1]


def _turned(frame: Array | None) -> Array | None:
    if frame is None:
        return None
    return jnp.sqrt(jnp.sum((frame - identity_like(frame)) ** 2, axis=(-2, -1)) / 2)


def _attention(traces: Traces) -> dict[str, Array]:
    layers, heads, *_ = traces.attention.shape
    return {
        f"layer {i}, head {h}": traces.attention[i, h] for i in range(layers) for h in range(heads)
    }


def _steps(traces: Traces) -> dict[str, Array]:
    return {f"layer {i}": length for i, length in enumerate(jnp.mean(traces.length, axis=-1))}


def _changes(traces: Traces) -> dict[str, Array]:
    nats = jnp.sum(traces.change, axis=-1)
    # Rounding may take a divergence below 0, where no picture begins. NaN stays.
    return {f"layer {i}": jnp.where(x <= 0, 0 * x, x) for i, x in enumerate(nats)}


def _frames(traces: Traces) -> dict[str, Array]:
    assert traces.turn is not None  # for the type checker
    return {f"layer {i}": heads.T for i, heads in enumerate(traces.turn)}


def _mean(found: Traces) -> Traces:
    """The mean over texts of batches of one."""
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), found)
    turn = None if mean.turn is None else mean.turn[:, 0]
    return Traces(mean.attention[:, 0], mean.length[:, :, 0], mean.change[:, :, 0], turn)


def _steps_picture(values: Callable[..., dict[str, Array]]) -> Maps:
    return Maps(
        values,
        name="inference",
        title="Steps of inference",
        caption=f"Fisher length of every step of each agent, mean over heads. {_TEXTS}",
        xlabel="token",
        ylabel="step",
        label="Fisher length",
    )


def _changes_picture(values: Callable[..., dict[str, Array]]) -> Maps:
    return Maps(
        values,
        name="beliefs",
        title="Paths of beliefs",
        caption=f"KL of each agent's belief from its prior after every step, all heads. {_TEXTS}",
        xlabel="token",
        ylabel="step",
        label="KL from the prior (nats)",
    )


def _frames_picture(values: Callable[..., dict[str, Array]]) -> Maps:
    return Maps(
        values,
        name="frames",
        title="Frames",
        caption=f"How far the posterior frame of each head is turned, |A - 1| / sqrt 2. {_TEXTS}",
        xlabel="token",
        ylabel="head",
        label="turn (radians, for small ones)",
    )


def maps(config: VFEConfig, vocab_size: int, length: int, dtype: jnp.dtype = jnp.float32) -> Maps:
    """Attention of every head, how far every step of inference moves beliefs and how far they have
    come, and frames.

    Args:
        config, vocab_size, length, dtype: as :func:`vfejax.models.vfe.model.build` takes them.

    Returns:
        Panels ``[receivers, senders]`` for each layer and head; with further pictures of
        ``[steps, tokens]`` and, where there are frames, ``[heads, tokens]``, for each layer. All
        are means over texts.
    """
    restored = merging(creator(config, vocab_size, length, dtype))

    def seen(panels_fn: Callable[[Traces], dict[str, Array]]) -> Callable[..., dict[str, Array]]:
        def values(params: PyTree, tokens: Array) -> dict[str, Array]:
            # One text at a time: attention takes n^2 numbers for each head.
            found = jax.lax.map(lambda row: traces(restored(params), row[None]), tokens)
            return panels_fn(_mean(found))

        return values

    further = []
    if config.steps:
        further += [_steps_picture(seen(_steps)), _changes_picture(seen(_changes))]
    further += [_frames_picture(seen(_frames))] if config.frames != "identity" else []
    return Maps(
        seen(_attention),
        name="attention",
        title="Attention between agents",
        caption=f"Share of its attention that each token gives to each token before it. {_TEXTS}",
        xlabel="token that is read",
        ylabel="token that reads",
        label="attention weight",
        columns=config.heads,
        further=tuple(further),
    )
