"""The quantum causal transformer against itself written out state by state in NumPy, its gradients,
its ablations, and its run from the command line.
"""

import functools
import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from helpers.blank_png import BLANK
from jax.test_util import check_grads

from vfejax.cli.main import main
from vfejax.models.quantum import model as quantum_transformer
from vfejax.models.quantum.layers import (
    WINDOW,
    causal_mix,
    mixing_weights,
    position_scale,
    rare_token_dephasing,
)
from vfejax.models.quantum.model import QuantumTransformerConfig, decohered_difference
from vfejax.runs import load, report
from vfejax.training.losses import next_token_loss
from vfejax.training.optimizer import adamw
from vfejax.training.step import trainer
from vfejax.types import TrainState

pytestmark = pytest.mark.usefixtures("library_promotion")

PHI = (1 + math.sqrt(5)) / 2
VOCABULARY, LENGTH, BATCH, DIM = (
    9,
    11,
    2,
    4,
)  # longer than the window, more tokens than basis states
COUNTS = np.array([0, 1, 5, 200, 3, 90, 40, 1, 7])


def _config(**options):
    return QuantumTransformerConfig(
        **({"dim": DIM, "width": 5, "hidden": 6, "measure_every": 1} | options)
    )


def _build(dtype=jnp.float64, counts=COUNTS, **options):
    return quantum_transformer.build(_config(**options), VOCABULARY, LENGTH, dtype, counts)


@functools.cache
def _apply(**options):
    """The model's compiled function, for all tests that share it."""
    return jax.jit(_build(**options).apply)


def _params(rng):
    """Weights large enough for every part of the formula to matter."""
    abstract = jax.eval_shape(_build().init, jax.random.key(0))
    params = jax.tree.map(lambda x: rng.normal(size=x.shape), abstract)
    params["tokens"]["dephasing"] = np.array(rare_token_dephasing(COUNTS))
    params["blocks"]["block"]["coupling"] = np.array([0.4, 1.1])
    return params


@pytest.fixture
def tokens(rng):
    return rng.integers(0, VOCABULARY, (BATCH, LENGTH)).astype(np.int32)


def _embedded(angles, strength, token):
    psi = np.eye(DIM)[token % DIM]
    for j in range(DIM):
        turn, k = np.eye(DIM), (j + 1) % DIM
        turn[j, j] = turn[k, k] = np.cos(angles[j])
        turn[j, k], turn[k, j] = -np.sin(angles[j]), np.sin(angles[j])
        psi = turn @ psi
    rho = np.outer(psi, psi)
    return (1 - strength) * rho + strength * np.diag(np.diag(rho))


def _norm(x, scale):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6) * scale


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _oracle(params, tokens, config):
    """Logits ``[n, V]`` and the measured quantities of one sequence: loops, sequential mixing,
    SciPy's exponential.
    """
    params = jax.tree.map(np.asarray, params)
    embedding, blocks = params["tokens"], params["blocks"]["block"]
    states = [_embedded(embedding["angles"][t], embedding["dephasing"][t], t) for t in tokens]
    x = [np.diag(rho) @ params["values"]["kernel"] for rho in states]
    found = []
    for layer in range(config.blocks):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], blocks)
        hamiltonian = np.zeros((DIM, DIM))
        hamiltonian[np.tril_indices(DIM)] = block["hamiltonian"]
        hamiltonian += np.tril(hamiltonian, -1).T
        lam = 1 / (1 + np.exp(-block["coupling"]))
        before, states = states, []
        for i, rho in enumerate(before):
            for d in range(min(i, 8), 0, -1):
                eps = lam * math.exp(-d / PHI)
                other = before[i - d] if config.mixing == "convex" else np.diag(np.diag(rho))
                rho = (1 - eps) * rho + eps * other
            rho = np.diag(np.diag(rho)) if config.decohere else rho
            levels = np.linalg.eigvalsh(rho)
            entropy = -sum(p * math.log(p) for p in levels if p > 0)
            coherence = np.abs(rho - np.diag(np.diag(rho))).sum()
            energies = np.diag(hamiltonian) - np.diag(hamiltonian).mean()
            free_energy = energies @ np.diag(rho).real - entropy / (1 + PHI * coherence)
            found.append((free_energy, entropy, np.trace(rho @ rho).real, coherence))
            scale = 1 + math.sin(math.pi * i / LENGTH) ** 2 / PHI
            step = scipy.linalg.expm(-1j * scale * PHI**-5 * hamiltonian)
            if not (config.gate and abs(free_energy) <= PHI**-3 / DIM):
                rho = step @ rho @ step.conj().T
            populations = np.diag(rho).real
            x[i] = x[i] + populations @ block["values"]["kernel"]
            hidden = _gelu(_norm(x[i], block["norm"]["scale"]) @ block["mlp_in"]["kernel"])
            x[i] = x[i] + hidden @ block["mlp_out"]["kernel"]
            eps = PHI**-3 / config.blocks
            states.append((1 - eps) * rho + eps * np.diag(np.diag(rho)))
    return np.stack(
        [_norm(h, params["norm"]["scale"]) @ params["output"]["kernel"] for h in x]
    ), np.array(found)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gate": True},
        pytest.param({"decohere": True}, marks=pytest.mark.slow),
        {"mixing": "dephasing"},
    ],
    ids=lambda o: "".join(o) or "default",
)
def test_the_model_is_its_formula(options, tokens, rng):
    params = _params(rng)
    prediction = _apply(**options)(params, tokens, None)
    logits, found = zip(*(_oracle(params, row, _config(**options)) for row in tokens), strict=True)
    # Norms of small vectors amplify the rounding of two eigensolvers.
    np.testing.assert_allclose(prediction.logits, np.stack(logits), rtol=1e-9, atol=1e-10)
    names = ("free_energy_nats", "entropy_nats", "purity", "coherence")
    means = [prediction.diagnostics[name] for name in names]
    # A pure state's zero eigenvalues are rounding, of which x log x is taken.
    np.testing.assert_allclose(means, np.mean(found, axis=(0, 1)), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(prediction.losses["free_energy_term"], 0.01 * means[0])
    if "gate" in options:
        still = np.abs(np.stack(found)[..., 0]) <= PHI**-3 / DIM
        assert still.any()
        assert not still.all()


def test_measuring_fewer_states_takes_every_so_many_from_the_last_back(tokens, rng):
    params = _params(rng)
    found = np.stack([_oracle(params, row, _config())[1] for row in tokens]).reshape(
        BATCH, 2, LENGTH, 4
    )
    prediction = _apply(measure_every=4)(params, tokens, None)
    np.testing.assert_allclose(
        prediction.diagnostics["purity"], found[:, :, [2, 6, 10], 2].mean(), rtol=1e-12
    )
    silent = jax.eval_shape(_build(free_energy_weight=0.0).apply, params, tokens, None)
    assert silent.losses == {}


@pytest.mark.slow  # all leaves in one direction: tests/models/test_sequence_models.py
def test_gradient_of_every_leaf_is_that_of_finite_differences(rng):
    """Each leaf on its own, the angles too, with the free energy in the loss."""
    model = _build(free_energy_weight=0.7)
    params = _params(rng)
    windows = rng.integers(0, VOCABULARY, (BATCH, LENGTH + 1)).astype(np.int32)
    loss_fn = jax.value_and_grad(lambda p: next_token_loss(model, p, windows, None, None)[0])
    value_and_grad = jax.jit(loss_fn)
    leaves, tree = jax.tree.flatten(params)
    gradient = jax.tree.leaves(value_and_grad(params)[1])
    step = 1e-5
    for place, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(params)):
        direction = rng.standard_normal(leaf.shape)
        values = []
        for sign in (2, 1, -1, -2):
            moved = [*leaves[:place], leaf + sign * step * direction, *leaves[place + 1 :]]
            values.append(float(value_and_grad(jax.tree.unflatten(tree, moved))[0]))
        slope = (8 * (values[1] - values[2]) - (values[0] - values[3])) / (12 * step)
        name = jax.tree_util.keystr(path)
        if "dephasing" in name:
            assert not np.any(gradient[place])
            assert abs(slope) > 1e-3  # it matters, but does not learn
            continue
        # Five-point differences: rounding of the loss over the step, 1e-16 / 1e-5, is the larger
        # part.
        np.testing.assert_allclose(
            np.sum(gradient[place] * direction), slope, rtol=1e-6, atol=1e-8, err_msg=name
        )


def test_mixing_weights_are_what_sequential_mixing_leaves(rng):
    lam = 0.7
    weights = jax.jit(mixing_weights)(lam, np.arange(12))
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-14)
    for i in range(12):
        expected = np.eye(WINDOW + 1)[0]
        for d in range(min(i, WINDOW), 0, -1):
            eps = lam * math.exp(-d / PHI)
            expected = (1 - eps) * expected + eps * np.eye(WINDOW + 1)[d]
        np.testing.assert_allclose(weights[i], expected, rtol=1e-13)


def test_gradient_of_causal_mixing(rng):
    states = rng.normal(size=(2, WINDOW + 5, 3, 3))

    def value(states, coupling):
        return jnp.sum(causal_mix(states, coupling, jnp.arange(6, 11)) ** 2)

    check_grads(jax.jit(value), (states, np.array(0.6)), order=1, modes=["rev"], rtol=1e-7)


def test_position_scale_lies_between_one_and_phi_and_repeats():
    @jax.jit
    def scales(places):
        return position_scale(places, 10, jnp.float32)

    scale = np.asarray(scales(np.arange(40)))
    assert scale.min() == 1.0
    np.testing.assert_allclose(scale.max(), PHI, rtol=1e-6)
    assert np.array_equal(scale[:10], scale[30:])
    far = scales(np.full(40, 2**31 - 1))
    np.testing.assert_allclose(far, scale[7], rtol=1e-6)


def test_frequent_tokens_lose_coherence_and_rare_ones_keep_it():
    strength = np.asarray(rare_token_dephasing(COUNTS))
    total = COUNTS.sum()
    # 1 in 347 is rarer than 1 in V = 9; 200 in 347 is not.
    assert np.array_equal(strength == 0, total >= len(COUNTS) * COUNTS)
    expected = 1 - (math.log(total / 200) / math.log(9)) ** (1 / PHI)
    np.testing.assert_allclose(strength[3], expected, rtol=1e-13)
    assert strength[3] == strength.max() < 1
    np.testing.assert_allclose(rare_token_dephasing(np.ones(7)), 0.0, rtol=0, atol=1e-15)


def test_dephasing_is_kept_with_the_weights(tokens, rng):
    """A model built from other counts reads it with them."""
    init = jax.jit(lambda key: _build().init(key)["tokens"]["dephasing"])
    found, params = init(jax.random.key(0)), _params(rng)
    np.testing.assert_allclose(found, rare_token_dephasing(COUNTS), rtol=1e-14)
    other = jax.jit(_build(counts=np.ones(VOCABULARY)).apply)
    expected = _apply()(params, tokens, None).logits
    np.testing.assert_array_equal(other(params, tokens, None).logits, expected)


@pytest.mark.slow  # its gradient is zero: tests/models/test_sequence_models.py
def test_dephasing_is_never_trained(tokens, rng):
    model, start = _build(), _params(rng)
    method = trainer(model, adamw(1e-2, weight_decay=0.5), jax.random.key(1))
    step, windows = jax.jit(method.step), np.pad(tokens, ((0, 0), (0, 1)))
    optimizer_state = jax.jit(adamw(1e-2, weight_decay=0.5).init)(start)
    state = TrainState(jnp.zeros((), jnp.int32), start, optimizer_state)
    for _ in range(3):
        state, _ = step(state, windows)
    before, after = start["tokens"], state.params["tokens"]
    np.testing.assert_array_equal(after["dephasing"], before["dephasing"])
    assert not np.array_equal(after["angles"], before["angles"])


def test_states_keep_single_precision_in_a_half_precision_model():
    model = _build(jnp.bfloat16)
    params = jax.eval_shape(model.init, jax.random.key(0))
    state = jax.eval_shape(lambda p: model.init_decode(p, BATCH), params)
    chex.assert_type(state.states, jnp.float32)
    chex.assert_shape(state.states, (2, BATCH, WINDOW, DIM, DIM))


@pytest.mark.slow  # without the gate: tests/models/test_sequence_models.py
def test_decoding_with_the_gate_equals_reading_at_once(tokens, rng):
    model, params = _build(gate=True), _params(rng)
    expected = _apply(gate=True)(params, tokens, None).logits
    state = model.init_decode(params, BATCH)
    decode = jax.jit(model.decode)
    for t in range(LENGTH):
        logits, state = decode(params, state, tokens[:, t])
        np.testing.assert_allclose(logits, expected[:, t], rtol=1e-9, atol=1e-11)


def test_decisive_test_tells_a_model_that_uses_coherence_from_one_that_cannot(tokens, rng):
    """Under a diagonal H populations stand still, whatever the off-diagonal entries are."""
    params = _params(rng)
    difference = jax.jit(lambda p: decohered_difference(_config(), LENGTH, p, tokens, jnp.float64))
    assert np.abs(difference(params)).max() > 0.1
    row, column = np.tril_indices(DIM)
    params["blocks"]["block"]["hamiltonian"] *= row == column
    np.testing.assert_allclose(difference(params), 0.0, rtol=0, atol=1e-11)


def test_dephasing_alone_carries_nothing_from_one_token_to_another(tokens, rng):
    params, apply = _params(rng), _apply(mixing="dephasing")
    changed = tokens.copy()
    changed[:, :5] = (changed[:, :5] + 1) % VOCABULARY
    before, after = apply(params, tokens, None).logits, apply(params, changed, None).logits
    assert np.array_equal(before[:, 5:], after[:, 5:])
    assert not np.allclose(before[:, :5], after[:, :5])


@pytest.mark.parametrize(
    ("options", "counts", "message"),
    [
        ({"dim": 1}, None, "dim must be at least 2, got 1"),
        ({"blocks": 0}, None, "blocks must be at least 1"),
        ({"measure_every": 0}, None, "measure_every must be at least 1"),
        (
            {"free_energy_weight": math.nan},
            None,
            "free_energy_weight must be at least 0 and finite",
        ),
        ({}, np.ones(VOCABULARY - 1), r"counts must be \[vocab_size = 9\], got shape \(8,\)"),
    ],
)
def test_wrong_numbers_are_named(options, counts, message):
    with pytest.raises(ValueError, match=message):
        _build(counts=counts, **options)


def test_counts_of_another_shape_are_named():
    with pytest.raises(ValueError, match=r"counts must be \[V\].*\(2, 3\)"):
        rare_token_dephasing(np.ones((2, 3)))


@pytest.mark.slow  # its parts have quick tests: dephasing and measures above, ablations in cli
def test_a_run_trains_evaluates_with_its_ablation_and_generates(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "figure_png", lambda figure: BLANK)
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("the cat sat on the mat\nthe dog sat on the log\n" * 20)
    small = [
        *("--quantum.dim", "5"),
        *("--quantum.width", "8"),
        *("--quantum.hidden", "8"),
        "--sample-tokens",
        "0",
    ]
    size = [*("--length", "8"), *("--batch-size", "4"), *("--steps", "4"), *("--eval-windows", "4")]
    every = [*("--log-every", "2"), *("--eval-every", "4"), *("--checkpoint-every", "4")]
    flags = ["--text", str(text), "--out", str(run), "--quiet"]
    assert main(["train", "--model", "quantum", *small, *size, *every, *flags]) == 0
    trained = load(run)
    frequent = trained.params["tokens"]["dephasing"][trained.vocabulary.encode("t ")]
    rare = trained.params["tokens"]["dephasing"][trained.vocabulary.encode("c")]
    assert frequent.min() > rare.max()
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"free_energy_term", "free_energy_nats", "purity", "coherence", "entropy_nats"} <= set(
        header
    )
    out = tmp_path / "e.json"
    assert main(["evaluate", "--run", str(run), "--out", str(out)]) == 0
    assert "decohered_loss_nats_per_token" in capsys.readouterr().out
    found = json.loads(out.read_text())
    summary = json.loads((run / "summary.json").read_text())
    assert found["loss_nats_per_token"] == summary["valid"]["loss_nats_per_token"]
    assert abs(found["decohered_loss_nats_per_token"] - found["loss_nats_per_token"]) > 1e-6
    assert main(["generate", "--run", str(run), "--prompt", "the ", "--tokens", "12"]) == 0
    assert capsys.readouterr().out.startswith("the ")
