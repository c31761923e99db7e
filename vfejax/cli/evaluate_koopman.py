"""``vfejax evaluate --koopman``: what it costs to replace blocks of a trained model by linear maps
of their streams, beside skipping them.
"""

from typing import Any

import jax
import numpy as np

from vfejax.cli.trained_run import Trained
from vfejax.data.batches import Batches, evaluation_windows
from vfejax.data.corpus import Split
from vfejax.errors import UserError
from vfejax.models import span_fit, spans
from vfejax.models.block_hooks import silent
from vfejax.training import sharding
from vfejax.training.cost import product_flops
from vfejax.training.evaluate import evaluator
from vfejax.types import Array, PyTree, SequenceModel

__all__ = ["cost_per_block", "lines", "measure", "spans_of"]

DELAYS = 4
_PER_UNKNOWN = 45  # tokens that are fitted for each unknown of a channel
_WINDOWS = 240  # that each replacement is judged on, at most
_CHUNK = 96  # windows that are fitted at once


def spans_of(num_layers: int) -> list[tuple[int, ...]]:
    """Every block, both halves, all but the last, and all.

    >>> spans_of(3)
    [(0,), (1,), (2,), (1, 2), (0, 1), (0, 1, 2)]
    """
    middle, every = num_layers // 2, tuple(range(num_layers))
    found: list[tuple[int, ...]] = [(block,) for block in every]
    found += [every[middle:], every[:middle], every[:-1], every]
    return list(dict.fromkeys(span for span in found if span))


def cost_per_block(model: SequenceModel, params: Any, length: int) -> float:
    """Operations of a block's matrix products for one token, in the mean over blocks, at a length.

    Args:
        model: whose blocks can be visited.
        params: its weights, or their shapes.
        length: tokens of a sequence.
    """
    visit = model.visit
    assert visit is not None  # for the type checker
    tokens = jax.ShapeDtypeStruct((1, length), np.int32)

    def skip(number: Array, block_fn: Any, hidden: Array) -> tuple[Array, Any, Array]:
        return hidden, silent(block_fn, hidden), number

    whole = product_flops(lambda p, t: model.apply(p, t).logits, params, tokens)
    numbers = jax.eval_shape(lambda p, t: visit(p, t, skip)[1], params, tokens)
    rest = product_flops(lambda p, t: visit(p, t, skip)[0].logits, params, tokens)
    return (whole - rest) / (length * len(numbers))


def _fitted(of: Trained, text: Split, spans: list[tuple[int, int]], dim: int) -> span_fit.Fit:
    """Linear maps of the training text's streams."""
    length, unknowns = of.config.length, 1 + DELAYS * dim
    batches = max(1, round(_PER_UNKNOWN * unknowns / (_CHUNK * length)))
    # Other batches than those of training, whose seed is this one.
    sampler = Batches(text.tokens, _CHUNK, length, of.config.seed + 2**64)
    tokens = sampler.at(0, batches)[:, :, :-1]

    def fit(params: PyTree, tokens: Array) -> span_fit.Fit:
        return span_fit.fitted(of.model, params, tokens, spans, delays=DELAYS)

    return jax.jit(fit)(of.params, tokens)


def measure(of: Trained, train: Split, judged: Split, windows: int) -> dict[str, Any]:
    """The table: loss in nats per token when a span is replaced, and operations per token.

    Args:
        of: the run.
        train: the text that maps are fitted on.
        judged: the text that they are judged on.
        windows: of which at most so many windows; 0 for all.

    Raises:
        UserError: for a model whose blocks cannot be replaced.
    """
    if of.model.visit is None or of.model.watch is None:
        raise UserError(
            f"--koopman: the blocks of {of.config.model} are of several kinds, or hand on more "
            "than one stream, and cannot be replaced; evaluate a run of another model"
        )
    tokens = jax.ShapeDtypeStruct((1, of.config.length), np.int32)
    hidden = jax.eval_shape(of.model.watch, of.params, tokens)[1].hidden
    num_layers, dim = hidden.shape[0], hidden.shape[-1]
    chosen = spans_of(num_layers)
    fit = _fitted(of, train, [(span[0], span[-1] + 1) for span in chosen], dim)
    padding, settings = of.vocabulary.padding_id, of.config
    read = evaluation_windows(
        judged.tokens, settings.length, settings.batch_size, padding,
        limit=min(windows or _WINDOWS, _WINDOWS),
    )  # fmt: skip
    mesh = sharding.data_mesh(settings.batch_size)
    evaluate_fn = evaluator(spans.replaced(of.model), mesh, padding)

    def loss(span: tuple[int, ...], maps: spans.DelayMap | None = None) -> float:
        way = spans.route(num_layers, dim, span, maps, DELAYS)
        return evaluate_fn({"model": of.params, "route": way}, read).nats_per_token

    rows = []
    for span in chosen:
        ends = (span[0], span[-1] + 1)
        rows.append(
            {
                "blocks": list(span),
                "identity": loss(span),
                "affine": loss(span, span_fit.delay_map(fit, ends, 1)),
                "delay": loss(span, span_fit.delay_map(fit, ends, DELAYS)),
                "one_operator": loss(span, span_fit.one_map(fit, len(span))),
                "explained_affine": float(span_fit.explained(fit, ends, 1)),
                "explained_delay": float(span_fit.explained(fit, ends, DELAYS)),
            }
        )
    cost = {
        "block": cost_per_block(of.model, of.params, settings.length),
        "affine": 2 * dim**2,
        "delay": 2 * DELAYS * dim**2,
    }
    return {"untouched": loss(()), "delays": DELAYS, "flops_per_token": cost, "spans": rows}


def lines(found: dict[str, Any]) -> list[str]:
    """The table as lines of text."""
    cost, untouched = found["flops_per_token"], found["untouched"]
    names = ["identity", "affine", "delay", "one_operator"]
    heads = ["skipped", "affine", f"{found['delays']} delays", "one K"]
    title = "Blocks replaced by linear maps of their stream, in nats per token"
    columns = "".join(f"{head:>10}" for head in heads) + f"{'R2':>8}{'R2, delays':>12}"
    table = ["", f"{title} ({untouched:.4f} untouched)", f"{'blocks':<10}{columns}"]
    for row in found["spans"]:
        first, last = row["blocks"][0], row["blocks"][-1]
        shown = f"{first}" if first == last else f"{first}-{last}"
        nats = "".join(f"{row[name]:>10.4f}" for name in names)
        shares = f"{row['explained_affine']:>8.3f}{row['explained_delay']:>12.3f}"
        table.append(f"{shown:<10}{nats}{shares}")
    costs = f"a block {cost['block']:,.0f}, an affine map {cost['affine']:,}"
    delays = f"one of {found['delays']} delays {cost['delay']:,}"
    return [*table, f"Operations per token: {costs}, {delays}"]
