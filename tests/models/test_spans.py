"""Spans of blocks replaced by linear maps: what is linear is found, and changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.linear_model import DELAYS, DIM, LAYERS, VOCABULARY, linear_model

from vfejax.models import span_fit, spans
from vfejax.types import SequenceModel

pytestmark = pytest.mark.usefixtures("library_promotion")

ALONE, TOGETHER = (1, 2), (0, 3)
# A map of two delays after another is one of three, after a third of four.
WIDEST = LAYERS * (DELAYS - 1) + 1


@pytest.fixture(scope="module")
def model():
    return linear_model()


@pytest.fixture(scope="module")
def params(model):
    return jax.device_get(jax.jit(model.init)(jax.random.key(0)))


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, VOCABULARY, (3, 8, 12))


@pytest.fixture(scope="module")
def fit(model, params, tokens):
    def find(params, tokens):
        return span_fit.fitted(model, params, tokens, (ALONE, TOGETHER), delays=WIDEST, ridge=1e-18)

    return jax.jit(find)(params, tokens)


def test_blocks_that_are_linear_are_found_and_replaced_without_a_trace(model, params, tokens, fit):
    """One block is found to rounding. A span of blocks is linear in more delays than one of its
    blocks, but for the biases at the beginning of a window: each delay explains more.
    """
    run = jax.jit(spans.replaced(model).apply)
    logits = np.asarray(jax.jit(model.apply)(params, tokens[0]).logits)

    @jax.jit
    def maps(fit):
        left, right, bias = span_fit.low_rank_map(fit, ALONE, DELAYS, DIM)
        shares = [span_fit.explained(fit, TOGETHER, delays) for delays in (1, 2, WIDEST)]
        low_rank = spans.DelayMap(left @ right, bias)
        own = span_fit.explained(fit, ALONE, DELAYS)
        return span_fit.delay_map(fit, ALONE, DELAYS), low_rank, own, shares

    whole, low_rank, own, shares = jax.device_get(maps(fit))

    def found(span, maps):
        way = spans.route(LAYERS, DIM, range(*span), maps, WIDEST)
        return run({"model": params, "route": way}, tokens[0]).logits

    close = {"rtol": 1e-7, "atol": 1e-7}  # rounding, times the condition of the samples
    np.testing.assert_array_equal(found((0, 0), None), logits)
    np.testing.assert_allclose(found(ALONE, whole), logits, **close)
    np.testing.assert_allclose(found(ALONE, low_rank), logits, **close)
    assert np.max(np.abs(found(ALONE, None) - logits)) > 0.1
    np.testing.assert_allclose(own, 1.0, rtol=0, atol=1e-12)
    assert shares == sorted(shares)
    assert shares[0] < 0.9 < shares[-1] <= 1


def test_a_low_rank_map_is_the_best_of_its_rank(fit):
    """The error of a kernel is measured by the factor: no other map of rank 1 has a smaller one,
    and the lost share is that of the singular values which are left out.
    """
    factor, size = fit.factors[ALONE], 1 + DELAYS * DIM
    values = np.linalg.svd(factor.cross[1:size], compute_uv=False)
    left, right, _ = span_fit.low_rank_map(fit, ALONE, DELAYS, 1)
    scale = jnp.tile(fit.units.scale[ALONE[0]], DELAYS)[:, None]
    predicted = factor.now[1:size, 1:size] @ (left * scale) @ right
    lost = jnp.sum((factor.cross[1:size] - predicted) ** 2)
    np.testing.assert_allclose(lost, np.sum(values[1:] ** 2), rtol=1e-8)


def test_powers_of_one_operator_are_spans_of_equal_blocks(model, params, tokens):
    """Blocks that read the token alone and are all the same are one operator."""
    kernel, bias = params["blocks"]
    kernel = np.broadcast_to(kernel[:1, :DIM], (LAYERS, DIM, DIM))
    same = params | {"blocks": spans.DelayMap(kernel, np.broadcast_to(bias[:1], bias.shape))}
    fit = jax.jit(
        lambda params: span_fit.fitted(model, params, tokens, (ALONE,), delays=1, ridge=1e-18)
    )(same)

    @jax.jit
    def both(same, fit):
        way = spans.route(LAYERS, DIM, (1, 2), span_fit.one_map(fit, 2))
        found = spans.replaced(model).apply({"model": same, "route": way}, tokens[0]).logits
        return found, model.apply(same, tokens[0]).logits

    np.testing.assert_allclose(*both(same, fit), rtol=1e-6, atol=1e-6)


def test_streams_in_half_precision_are_fitted_in_single(model, params, tokens):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)

    def find(params, tokens):
        return span_fit.fitted(model, params, tokens, (ALONE,), delays=1)

    assert span_fit.streams(model, half, tokens[0]).dtype == jnp.bfloat16
    kept = jax.tree.leaves(jax.eval_shape(find, half, tokens))
    assert {x.dtype for x in kept} == {jnp.dtype(jnp.float32)}


def test_a_model_whose_blocks_cannot_be_visited_is_refused():
    bare = SequenceModel(None, None, None, None, None)
    with pytest.raises(ValueError, match="model must have blocks that hand on one stream"):
        spans.replaced(bare)
    with pytest.raises(ValueError, match="model must have blocks that hand on one stream"):
        span_fit.streams(bare, {}, jnp.ones((1, 2), int))


@pytest.mark.parametrize(
    ("span", "rows", "message"),
    [
        ([LAYERS], DIM, f"span must hold numbers of blocks below {LAYERS}, got"),
        ([-1], DIM, f"span must hold numbers of blocks below {LAYERS}, got"),
        ([], DIM, "span must name the blocks that maps replace, got none"),
        ([0], 2 * DIM, "of at most 1 delays, got"),
    ],
)
def test_a_route_that_leads_nowhere_is_named(span, rows, message):
    maps = spans.DelayMap(jnp.zeros((rows, DIM)), jnp.zeros(DIM))
    with pytest.raises(ValueError, match=message):
        spans.route(LAYERS, DIM, span, maps)
