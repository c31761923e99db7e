"""The examples run, write their picture, and say what their docstrings claim."""

import importlib.util
import re
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest

pytestmark = pytest.mark.slow  # the README's programs run by default
EXAMPLES = Path(__file__).parents[1] / "examples"


def _load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _is_drawn(path):
    """Whether a picture is there and not blank."""
    return np.ptp(matplotlib.image.imread(path)[..., :3]) > 0.5


def test_three_agents_agree(capsys):
    example = _load("three_agents")
    printed = capsys.readouterr().out
    before, after = map(float, re.search(r"free energy (\S+) -> (\S+) nats", printed).groups())
    assert after < 0.1 * before
    np.testing.assert_allclose(after, example.energy_fn(example.state.position), rtol=0, atol=0.005)
    before, after = map(float, re.search(r"farthest apart (\S+) -> (\S+) nats", printed).groups())
    assert after < 0.01 * before


def test_camps_jump_where_theory_loses_a_stable_state(tmp_path, capsys):
    example = _load("phase_transition")
    curves, stationary = example.main(num_agents=8, out=tmp_path)
    for name, end in (("from two camps", -1), ("from consensus", 0)):
        found = np.ptp(curves[name].population.belief.mean[..., 0], axis=1)
        expected = np.array([distances[end] for distances in stationary])
        # Grid of the theory 2e-5, float32, and slow convergence beside a jump.
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)
        clusters = curves[name].order.num_clusters
        np.testing.assert_array_equal(clusters, np.where(found > np.sqrt(2), 2, 1))
    assert {len(distances) for distances in stationary} == {1, 3}
    assert capsys.readouterr().out.count("one cluster from temperature") == 2
    assert _is_drawn(tmp_path / "phase_transition.png")


def test_agents_that_agree_form_two_scales_and_one_leaves(tmp_path, capsys):
    example = _load("emergence")
    info, scores = example.main(out=tmp_path)
    assert scores["groups against the truth"] == 1
    assert scores["pairs against the truth"] == 1
    assert np.argwhere(info.dissolved.left)[:, 1].tolist() == [example.PULLED]
    assert not np.any(info.dissolved.dissolved)
    np.testing.assert_array_equal(
        np.flatnonzero(info.active[-1]), [*range(example.NUM_AGENTS), 16, 17, 18, 19, 22, 23]
    )
    assert f"{example.PULLED} leaves meta-agent" in capsys.readouterr().out
    assert _is_drawn(tmp_path / "emergence.png")


def test_sensor_network_comes_close_to_maximum_likelihood(tmp_path, capsys):
    rows = _load("sensor_network").main(num_agents=12, num_steps=400, out=tmp_path)
    alone, run, best = (rows[name] for name in ("a sensor alone", "this run", "maximum likelihood"))
    # Finite alignment keeps a sensor's belief a little nearer to its own data than the joint
    # estimate is.
    assert run[0] < 1.5 * best[0]
    assert run[0] < 0.5 * alone[0]
    # Degrees: the two estimators differ by far less than either differs from the truth.
    assert run[1] < best[1] + 1.0
    printed = capsys.readouterr().out
    for name, (place, turn) in rows.items():
        line = next(line for line in printed.splitlines() if line.startswith(name))
        assert f"{1e3 * place:.1f} mm" in line
        assert f"{turn:.2f} deg" in line
    assert _is_drawn(tmp_path / "sensor_network.png")


@pytest.fixture(scope="module")
def flows(tmp_path_factory):
    """The table of the example, and where it drew."""
    example = _load("hamiltonian_vs_gradient")
    out = tmp_path_factory.mktemp("flows")
    rows = example.main(num_agents=4, num_gradients=300, out=out)
    return example, rows, out


def test_drift_falls_with_the_order_of_each_scheme(flows):
    example, rows, _ = flows
    for name, order in (("Verlet", 2), ("Yoshida", 4)):
        short, long = (rows[f"{name}, {dt:g} per gradient"][1] for dt in example.STEPS[:2])
        # Equal evaluations cover twice the time at twice the step, and the next order of dt enters:
        # half an order either way.
        assert abs(np.log2(long / short) - order) < 0.5


def test_fourth_order_wins_at_short_steps(flows):
    example, rows, _ = flows
    dt = example.STEPS[0]
    assert rows[f"Yoshida, {dt:g} per gradient"][1] < 0.1 * rows[f"Verlet, {dt:g} per gradient"][1]


def test_conserved_flows_do_not_settle_and_friction_does(flows):
    example, rows, _ = flows
    friction = rows[f"Verlet, friction {example.FRICTION}"]
    assert friction[1] < 0
    assert friction[0] < min(row[0] for name, row in rows.items() if "per gradient" in name)
    assert rows["natural gradient"][0] < friction[0]


def test_flows_are_compared_at_equal_cost_and_drawn(flows):
    _, rows, out = flows
    assert {row[2] for row in rows.values()} == {300}
    assert _is_drawn(out / "hamiltonian_vs_gradient.png")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Densities and exponents of the example on short chains, and where it drew."""
    example = _load("disordered_chain")
    out = tmp_path_factory.mktemp("chain")
    return example, *example.main(num_sites=2**15, out=out), out


def test_density_of_states_is_the_theory(chain):
    example, densities, _, out = chain
    found, _, theory = densities[0.0]
    # Nothing is random in the clean chain: rounding of float32, times |T - z| / Im z = 100.
    np.testing.assert_allclose(found, theory, rtol=1e-5)
    inside = np.abs(example.ENERGIES) < 1.7
    arcsine = 1 / (np.pi * np.sqrt(4 - example.ENERGIES[inside] ** 2))
    # Broadening takes away Im z^2 rho'' / 2: 0.1 % at |E| = 1.625.
    np.testing.assert_allclose(found[inside], arcsine, rtol=1.5e-3)
    for gamma in example.LLOYD[1:]:
        found, error, theory = densities[gamma]
        # Root mean square over 49 energies in units of the standard error: 1, give or take what
        # neighbouring energies share.
        assert 0.6 < np.sqrt(np.mean(((found - theory) / error) ** 2)) < 1.5
        assert np.median(error / theory) < 0.1
    assert _is_drawn(out / "disordered_chain.png")


def test_lyapunov_exponent_is_the_theory(chain):
    example, _, exponents, _ = chain
    found, error, theory = exponents["Gamma", 0.1]
    assert np.max(np.abs(found - theory) / error) < 4
    assert np.mean(error / theory) < 0.03
    for width in example.BOX:
        found, error, theory = exponents["W", width]
        # The second order leaves out up to 6 % at W = 2, which falls as W^2.
        assert np.all(np.abs(found - theory) < 4 * error + 0.06 * (width / 2) ** 2 * theory)
        assert abs(np.mean(found / theory) - 1) < 0.05


def test_the_bands_centre_is_not_the_second_order(chain):
    example, _, exponents, _ = chain
    found, error, theory = exponents["W", 1.0]
    centre = example.BAND == 0
    np.testing.assert_allclose(1 / theory[centre], 105.0, rtol=1e-3)
    assert np.all(np.abs(found - theory)[centre] < 3 * error[centre])


@pytest.mark.usefixtures("library_promotion")
def test_language_model_learns_and_writes(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("the rose is red, the violet blue, and so are you.\n" * 200)
    small = {"layers": 1, "dim": 32, "heads": 4, "hidden": 32}
    loss, sample = _load("train_language_model").main(
        str(text), num_steps=150, num_tokens=60, **small
    )
    # Uniform would be ln 20 = 3.0; the text is one line for ever.
    assert loss < 1.0
    assert len(sample) == 60
    assert set(sample) <= set(text.read_text())
    printed = capsys.readouterr().out
    assert f"validation loss {loss:.3f}" in printed
    assert sample in printed


@pytest.mark.usefixtures("library_promotion")
def test_hamiltonian_is_learnt_to_the_cramer_rao_bound(tmp_path, capsys):
    shots = (10_000, 10_000_000)
    example = _load("learn_hamiltonian")
    rabi_error, table, rows = example.main(num_shots=shots, num_runs=6, out=tmp_path)
    # float64: phases of up to 20 radians, through eigenvectors.
    assert rabi_error < 1e-13
    # (-H, D H D): what a kind of preparations cannot tell agrees to rounding.
    told = {name: tuple(difference > 1e-12 for difference in row) for name, row in table.items()}
    assert list(told.values()) == [(False, False), (False, True), (True, True)]
    for _, bound, ratio in rows.values():
        # Chi square with 6 x 9 degrees of freedom over their number: 1 +- 0.19, four standard
        # deviations.
        assert abs(ratio - 1) < 0.77
        assert bound[0] < bound[1] < bound[2]
    few, many = (history for history, *_ in rows.values())
    assert few[:, 0].min() > 0.1
    assert many[:, -1].max() < 1e-3
    # The error falls as one over the root of the shots.
    assert 10 < np.median(few[:, -1]) / np.median(many[:, -1]) < 100
    assert f"{rows[shots[1]][2]:.2f}" in capsys.readouterr().out
    assert _is_drawn(tmp_path / "learn_hamiltonian.png")


def test_a_network_with_an_energy_keeps_it_and_one_without_does_not(library_promotion, tmp_path):
    example = _load("hamiltonian_network")
    rows = example.main(num_steps=400, num_times=200, out=tmp_path)
    (loss, error), (_, plain_error) = rows.values()
    assert loss < 0.05  # of which the noise alone is 0.034
    assert error < 0.01
    assert plain_error > 10 * error
    assert _is_drawn(tmp_path / "hamiltonian_network.png")


@pytest.mark.usefixtures("library_promotion")
def test_message_passing_finds_what_the_data_were_drawn_from(capsys):
    results = _load("message_passing").main()
    (used, share), error, found, distance, (num_factors, gap), angle = results
    # A cluster may be shared by two components: a maximum of the bound, not the largest.
    assert 3 <= used <= 5
    assert share > 0.98
    # standard deviation 0.3 / sqrt(100)
    assert np.abs(error).max() < 0.12
    assert found > 0.95
    assert distance.max() < 0.15
    assert num_factors == 2
    # Two numbers from fourteen equations: the noise of an entry is averaged.
    assert gap < 0.6
    # Thirteen periods of a damped oscillation.
    assert abs(angle - 0.4) < 0.05
    assert len(capsys.readouterr().out.splitlines()) == 6


@pytest.mark.usefixtures("library_promotion")
def test_predictive_coding_and_backpropagation_learn_the_spirals(capsys):
    example = _load("predictive_coding")
    # The first of the rates is too slow to be chosen.
    example.RATES = (1e-4, 1e-2)
    results = example.main(["--seeds", "2", "--steps", "400"])
    assert capsys.readouterr().out.count("accuracy") == 2
    # Guessing has 0.5. Of points near the border between the arms both leave some.
    assert results["predictive coding"].mean() > 0.9
    assert results["backpropagation"].mean() > 0.95


def test_reflexes_hold_loads_and_swing_back(tmp_path, capsys):
    springs, sampled, cars = _load("reflex").main(num_series=4, out=tmp_path)
    for case in ("as known", "load", "stiffness x 2", "mass x 4"):
        # Float32, and an approach as exp(-t) for 20 units of time.
        assert springs[case, "reflex"][0] < 1e-3
        assert 4.5 < springs[case, "reflex"][1] < 6.0
    # Without an integral of errors the spring rests where forces balance.
    np.testing.assert_allclose(springs["load", "PD"][0], 0.5, rtol=1e-3)
    np.testing.assert_allclose(springs["load", "LQR"][0], 0.5 / np.sqrt(2), rtol=1e-3)
    assert springs["load", "PID"][0] < 1e-3
    for case in ("load", "stiffness x 2", "mass x 4"):
        assert sampled[case, "reflex"][0] < 2e-3
    assert sampled["noise", "PID"][1] < sampled["noise", "reflex"][1]
    # Its sense of acceleration is noisy: the regulator is better there.
    assert springs["noise", "LQR"][0] < springs["noise", "reflex"][0] < 0.2
    for name, arrived in (("reflex", 1.0), ("pumping", 1.0), ("full force", 0.0)):
        assert cars["as known", name][0] == arrived
    assert cars["as known", "pumping"][1] < cars["as known", "reflex"][1] < 20
    assert cars["as known", "reflex"][2] < cars["as known", "pumping"][2]
    assert capsys.readouterr().out.count(": reflex") == 6 + 6 + 4
    assert _is_drawn(tmp_path / "reflex.png")


def test_a_planner_above_a_hand_looks_first(tmp_path, capsys):
    rows = _load("mixed_hierarchy").main(num_trials=16, out=tmp_path)
    at_target, at_other, sure = rows["expected free energy"]
    # A mean of noise of 0.8 over 2.8 correlation times lies in 3 % of trials.
    assert at_target >= 14 / 16
    assert at_other <= 2 / 16
    assert 0.85 < sure < 1
    assert rows["utility alone"] == (0.0, 0.0, 0.5)
    assert "at the target" in capsys.readouterr().out
    assert _is_drawn(tmp_path / "mixed_hierarchy.png")


def test_a_cue_is_worth_what_the_best_policy_makes_of_it(tmp_path, capsys):
    rows = _load("t_maze").main(num_episodes=200, num_cues=3, out=tmp_path)
    best, agent, plan = (
        rows[name] for name in ("optimal", "expected free energy", "preferences alone")
    )
    # A coin tells nothing; a cue that is right in three of four cases is followed; the truth is
    # worth two steps of the reward of 3 nats.
    np.testing.assert_allclose(best[:, 0], [0.0, 1.5, 6.0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(agent[[0, 2], 0], [0.0, 6.0], rtol=0, atol=1e-6)
    assert agent[2, 2] == best[2, 2] == 1
    assert (agent[:, 0] < best[:, 0] + 4 * agent[:, 3] + 1e-6).all()
    assert not plan[:, 0].any()
    assert "worth 6.00 nats" in capsys.readouterr().out
    assert _is_drawn(tmp_path / "t_maze.png")


def test_an_agent_learns_the_grid_that_it_walks_on(tmp_path, capsys):
    results, reference = _load("learn_grid").main(num_learners=2, num_episodes=50, out=tmp_path)
    for rewards, looks, moves in results.values():
        assert rewards[:, -10:].mean() > max(0.3 * reference, 2 * rewards[:, :10].mean())
        assert looks[:, -1].mean() < 0.5 * looks[:, 0].mean()
        assert moves[:, -1].mean() < 0.6 * moves[:, 0].mean()
    assert f"the world is known: {reference:.1f}" in capsys.readouterr().out
    assert _is_drawn(tmp_path / "learn_grid.png")


def test_what_moves_an_agent_is_found_from_its_actions(tmp_path, capsys):
    truth, found, errors = _load("fit_behaviour").main(
        num_subjects=2, num_episodes=80, num_updates=8, out=tmp_path
    )
    distances = [(x - y) / e for x, y, e in zip(found, truth, errors, strict=True)]
    # Four numbers of a standard normal distribution.
    assert np.max(np.abs(distances)) < 4
    assert np.median(errors.log_reward) < 0.5
    assert capsys.readouterr().out.count("standard errors") == 2
    assert _is_drawn(tmp_path / "fit_behaviour.png")


@pytest.mark.usefixtures("library_promotion")
def test_learned_weights_send_the_tokens_to_the_sign(tmp_path, capsys):
    with jax.enable_x64(False):
        found = _load("token_allocation").main(num_pictures=4, num_steps=120, out=tmp_path)
    rows = found["rows"]
    learned = rows.pop("learned weights")
    assert learned[0] < 0.7 * min(error for error, _ in rows.values())
    assert learned[1] > 3 * max(share for _, share in rows.values())
    # The entropy of the noise is not what the loss asks for.
    assert found["weights"][0] < 0.5 < found["weights"][2]
    assert capsys.readouterr().out.count("%") == 4
    assert _is_drawn(tmp_path / "token_allocation.png")


@pytest.mark.usefixtures("library_promotion")
def test_a_taught_student_says_what_its_teacher_says(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("the rose is red, the violet blue, and so are you.\n" * 200)
    example = _load("distil")
    example.LENGTH, example.BATCH = 24, 6
    losses = example.main(str(text), teacher_steps=100, num_steps=50)
    # Uniform would be ln 20 = 3.0; the text is one line for ever.
    assert losses["teacher"] < losses["student, taught"] < losses["student, text alone"] < 3.0
    assert capsys.readouterr().out.count("weights") == 3


def test_koopman_spectrum_tells_true_eigenvalues_from_spurious_ones(tmp_path):
    example = _load("koopman_spectrum")
    (values, errors), chaos = example.main(out=tmp_path)
    np.testing.assert_allclose(values[:5], [0.9, 0.81, 0.729, 0.5, 0.45], rtol=0, atol=1e-5)
    assert min(errors[5:]) > 5 * max(errors[:5])
    np.testing.assert_allclose(chaos[1], -0.1933 + 0.1909j, rtol=0, atol=0.02)
    assert _is_drawn(tmp_path / "slow_manifold.png")
    assert _is_drawn(tmp_path / "logistic_map.png")


@pytest.mark.usefixtures("library_promotion")
def test_learned_observables_come_nearer_to_the_spectrum_than_polynomials(tmp_path, capsys):
    example = _load("learned_lifting")
    with jax.enable_x64(False):
        found = example.main(num_samples=20_000, num_updates=300, out=tmp_path)
    off = {
        name: np.abs(found[name] - example.TRUTH)[1:].max() for name in ("learned", "polynomials")
    }
    # Observables that are nearly constant at the start; 2000 samples that do not depend on each
    # other leave 0.03. Four seeds have 0.076 to 0.085, polynomials 0.18.
    assert off["learned"] < 0.1 < off["polynomials"]
    assert abs(found["learned"][0] - example.RATE) < 0.03
    assert capsys.readouterr().out.count("off by at most") == 2
    assert _is_drawn(tmp_path / "learned_lifting.png")
