"""The skeletons of CONTRIBUTING.md do what their recipes say."""

import doctest
import importlib.util
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.agents import alignment, pairwise
from vfejax.beliefs.gaussian import Gaussian
from vfejax.dynamics.rollout import rollout
from vfejax.geometry import irreps
from vfejax.types import Batch

SKELETONS = Path(__file__).parents[1] / "docs" / "skeletons"


def test_examples_of_the_skeletons_run():
    for path in sorted(SKELETONS.glob("*.py")):
        failed, _ = doctest.testmod(_load(path.stem))
        assert failed == 0, path.name


def _load(name):
    spec = importlib.util.spec_from_file_location(f"skeleton_{name}", SKELETONS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_energy_is_the_mean_divergence_over_the_neighbours(rng):
    uniform = _load("energy").uniform
    num_agents = 5
    mean = jnp.asarray(rng.normal(size=(num_agents, 3)))
    gaussian = Gaussian(mean, jnp.tile(jnp.eye(3), (num_agents, 1, 1)))
    phi = jnp.asarray(rng.normal(size=(num_agents, 3)))
    group = irreps.so3((1,))
    pairwise_kl = jax.jit(lambda gaussian, phi: pairwise.pairwise_kl(gaussian, phi, group))
    divergences = np.asarray(pairwise_kl(gaussian, phi))
    others = ~np.eye(num_agents, dtype=bool)
    log_weight = jnp.where(others, 0.0, -jnp.inf)
    energy = uniform(jnp.asarray(divergences), log_weight, alignment.rows())
    expected = np.where(others, divergences, 0.0).sum(axis=1) / (num_agents - 1)
    # Sums of five numbers.
    chex.assert_trees_all_close(energy, expected, rtol=20 * np.finfo(np.float64).eps)


def test_energy_of_an_agent_without_neighbours_is_zero_with_zero_gradient():
    uniform = _load("energy").uniform
    no_neighbour = jnp.full((1, 4), -jnp.inf)

    def energy(divergence):
        return jnp.sum(uniform(divergence, no_neighbour, alignment.rows()))

    value, gradient = jax.value_and_grad(energy)(jnp.asarray([[1.0, 2.0, 3.0, jnp.inf]]))
    assert value == 0
    chex.assert_trees_all_close(gradient, jnp.zeros_like(gradient), rtol=0)


def test_integrator_has_its_order():
    midpoint = _load("integrator").midpoint

    def error(num_steps):
        flow = midpoint(lambda x: 0.5 * jnp.sum(x * x), 1.0 / num_steps)
        state, info = rollout(flow, flow.init(jnp.ones(2)), num_steps)
        chex.assert_shape(info.energy, (num_steps,))
        return float(jnp.max(jnp.abs(state.position - jnp.exp(-1.0))))

    # Second order; the third adds dt, about 0.05, to the slope.
    assert abs(np.log2(error(16) / error(32)) - 2) < 0.1


def test_integrator_ignores_the_key():
    flow = _load("integrator").midpoint(lambda x: 0.5 * x * x, 0.1)
    start = flow.init(jnp.ones(()))
    with_key, without = (rollout(flow, start, 3, key) for key in (jax.random.key(0), None))
    chex.assert_trees_all_equal(with_key, without)


VOCAB_SIZE, LENGTH = 11, 6


@pytest.fixture(scope="module")
def model(library_promotion):
    """The skeleton of a model through its entry, as the commands and the tests see it."""
    entry = _load("model").ENTRY
    model = entry.build(entry.tiny, VOCAB_SIZE, LENGTH, jnp.float32)
    return model, jax.jit(model.init)(jax.random.key(0))


@pytest.fixture
def tokens():
    return jax.random.randint(jax.random.key(1), (2, LENGTH), 0, VOCAB_SIZE)


def test_model_reads_no_future_token(model, tokens):
    model, params = model
    changed = tokens.at[:, 4].set((tokens[:, 4] + 1) % VOCAB_SIZE)
    apply = jax.jit(model.apply)
    before, after = (apply(params, Batch(x), None).logits for x in (tokens, changed))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.any(before[:, 4] != after[:, 4])


def test_model_decodes_what_it_applies(model, tokens):
    model, params = model
    state = model.init_decode(params, 2)
    decode = jax.jit(model.decode)
    for i in range(LENGTH):
        logits, state = decode(params, state, tokens[:, i])
    whole = jax.jit(model.apply)(params, Batch(tokens), None).logits[:, -1]
    # Sums of 8 products, float32.
    chex.assert_trees_all_close(logits, whole, rtol=1e-5, atol=1e-5)


def test_model_refuses_an_option_by_name():
    skeleton = _load("model")
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        skeleton.build(skeleton.DecayConfig(dim=0), VOCAB_SIZE, LENGTH)


def test_command_makes_a_run_and_resumes_it_bit_for_bit(tmp_path, capsys):
    main = _load("command").main
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["--out", str(whole), "--steps", "40", "--checkpoint-every", "20"]) == 0
    # The minimum is at 1.
    assert "the particle is at 0.9" in capsys.readouterr().out
    assert main(["--out", str(parts), "--steps", "20", "--checkpoint-every", "20"]) == 0
    assert main(["--out", str(parts), "--steps", "40", "--resume"]) == 0
    for run in (whole, parts):
        assert (run / "report.html").is_file()
    assert (whole / "metrics.csv").read_bytes() == (parts / "metrics.csv").read_bytes()
