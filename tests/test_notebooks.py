"""The notebooks run from top to bottom, with short settings, and are committed as they ran."""

import ast
import os
import re
from pathlib import Path

import jax
import nbformat
import numpy as np
import pytest
from IPython.display import Image
from matplotlib.figure import Figure

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SHORT = {
    "01_agents": {"num_agents": 6, "num_steps": 16},
    "02_resolvent": {"num_sites": 300, "num_tokens": 512},
    "03_density_matrices": {"num_times": 20, "depths": (1, 8)},
    "04_toroidal_attention": {"num_places": 48, "lengths": (32, 64), "num_steps": 40},
    "05_emergence": {"num_steps": 40, "num_waves": 40},
    "06_vfe_transformer": {"num_updates": 10, "num_agents": 12, "num_windows": 64},
    "07_message_passing": {"num_points": 60, "num_sweeps": 10, "length": 100},
    "08_generalised_filtering": {"num_samples": 40, "num_series": 3, "num_rounds": 4},
    "09_active_inference": {"num_models": 4, "num_episodes": 8, "num_trials": 4},
    "11_energy_learning": {"num_epochs": 2, "num_steps": 20},
    "10_koopman": {"num_rows": 400, "num_updates": 20},
    "12_compression": {
        "num_updates": 10,
        "num_taught": 6,
        "num_windows": 64,
        "layers": 1,
        "bits": (3, 8),
    },
}


def _outputs(notebook):
    return [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]


def _pictures(notebook):
    return [output for output in _outputs(notebook) if "image/png" in output.get("data", {})]


def _printed(notebook):
    return "".join(output.text for output in _outputs(notebook) if output.output_type == "stream")


def _read(name):
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def test_every_notebook_is_here():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(SHORT)


@pytest.mark.parametrize("name", SHORT)
def test_committed_with_its_pictures(name):
    notebook = _read(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(output.output_type != "error" for output in _outputs(notebook))
    assert len(_pictures(notebook)) >= 4
    assert os.path.getsize(NOTEBOOKS / f"{name}.ipynb") < 300_000


@pytest.fixture
def defaults():
    """JAX as a notebook finds it, which then configures it for the process, and as it was."""
    reader = {
        "jax_enable_x64": False,
        "jax_numpy_dtype_promotion": "standard",
        "jax_numpy_rank_promotion": "allow",
    }
    before = {name: jax.config.values[name] for name in reader}
    for name, value in reader.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def _run(notebook):
    """Run the cells one after the other, in this process, where JAX is imported and much is
    compiled already: a kernel of its own takes 5 s. Return what the cells show.
    """
    namespace, shown = {"__name__": "__main__"}, []
    for number, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        source = cell.source.replace("%matplotlib inline", "")
        body = ast.parse(source, f"cell {number}").body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), f"cell {number}", "exec"), namespace)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), str(number), "eval"), namespace))
    return shown


@pytest.mark.slow
@pytest.mark.usefixtures("defaults")
@pytest.mark.parametrize("name", SHORT)
def test_runs_from_top_to_bottom(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    committed, notebook = _read(name), _read(name)
    settings = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert settings.source.startswith("SETTINGS = ")
    settings.source = f"SETTINGS = {SHORT[name]}"
    pictures = [value for value in _run(notebook) if isinstance(value, Image | Figure)]
    assert len(pictures) == len(_pictures(committed))
    assert capsys.readouterr().err == ""


def test_agents_notebook_says_what_it_claims():
    printed = _printed(_read("01_agents"))
    lines = {line.split("  ")[0]: line for line in printed.splitlines()}
    for name in ("local gauge", "global gauge"):
        # Relative to F of 10^5 nats, summed over pairs in float64.
        assert float(lines[name].split()[-1]) < 1e-12
    assert float(lines["frames left behind"].split()[-1]) > 1e-3
    assert "slopes equal the formulas: True" in printed


def test_resolvent_notebook_says_what_it_claims():
    printed = _printed(_read("02_resolvent"))

    def number(before, after=r"\s"):
        return float(re.search(re.escape(before) + r"\s*([-+.e\d]+)" + after, printed).group(1))

    assert 100 < number("complex64: overflows at site") < 130
    assert 850 < number("complex128: overflows at site") < 1000
    assert number("complex64 at 1500 sites: largest relative error") < 1e-6
    assert number("largest |g^L|", ",") <= 1
    # Losses left by the gradient and by the two shortcuts, in per cent of the start.
    exact, square, inverse = (
        float(
            re.search(rf"^{re.escape(rule)}\s.*left after 400 steps (\d+) %", printed, re.M).group(
                1
            )
        )
        for rule in ("exact", "-G^2", "-1/G^2")
    )
    assert 2 * exact < square < 100 < inverse
    assert number("sweep above the diagonal, largest entry:") == 0
    assert number("g^L_i    largest change before site 60:") == 0
    assert number("G_{ii}   largest change before site 60:") > 0.1
    assert number("next token from G and g^L of the past: right", " %") > 85
    # Coin tosses: four standard deviations of a mean of 16383.
    assert abs(number("next token from g^L alone of the past: right", " %") - 50) < 1.6
    assert number("clean chain against theory: largest relative difference") < 1e-10
    # Neighbouring energies share their noise, hence not closer to 1.
    assert number("Cauchy energies:") < 2
    for claim in (
        "against a dense inverse of 200 sites, complex128: largest relative error",
        "exact adjoint against the dense matrix:",
        "sweep against the systems cut off after each site:",
        "sweeps from both ends against the dense inverse:",
        "reaches by recursion against the formula: largest relative difference",
        "streaming against batch: g^L",
    ):
        assert number(claim, r"[\s,]") < 1e-10


def test_density_matrix_notebook_says_what_it_claims():
    printed = _printed(_read("03_density_matrices"))

    def numbers(line):
        return re.search(line.replace("#", r"\s*([-+\d.]+(?:e[-+]\d+)?)"), printed, re.M).groups()

    def number(line):
        (found,) = numbers(line)
        return float(found)

    assert number("half level 0, half level 1, against half .*: difference#") < 1e-14
    assert re.findall(r"valid: (\w+)", printed) == ["True", "True", "False"]
    assert re.findall(r"entropy never falls: (\w+)", printed) == ["True", "True", "False"]
    # Rounding of eigenvalues that are 0.
    assert all(
        float(least) > -1e-14 for least in re.findall(r"least Choi eigenvalue\s+(\S+)", printed)
    )
    for kept in ("trace", "purity", "entropy", "energy"):
        # Entropy: a level of 1e-16 instead of 0 adds 1e-16 log 1e-16 to it.
        assert number(f"^{kept} .*largest change up to t = 10:#") < 1e-13
    for start in ("H = 0 ", r"H = diag\(1, 1, 1, 2, 2\) "):
        assert number(f"{start}.*autodiff through eigh\\s+nan\\s+sinc form#") < 1e-13
    assert number("sinc form, largest relative error#") < 1e-13
    assert number("autodiff through eigh at gap 1e-8:#") > 1e-10
    for loss in ("any observable", "populations"):
        short, middle = map(
            float, numbers(f"^{loss}\\s+couplings: median error# % at t = 0.01,# % at 0.1")
        )
        # First order: a tenth of the step, a tenth of the error.
        assert 7 < middle / short < 13
        assert middle > 5
    assert numbers("^populations\\s+levels   : median error# % at t = 0.01,# % at 0.1,# %") == (
        "100.00",
        "100.0",
        "100",
    )
    assert number("float32: .* after 1 layer,# after 1000") < 1e-4
    assert number("float64: .* after 1 layer,# after 1000") < 1e-12
    assert number("MiB,# times as much") > 20
    assert number("Gibbs state F =#") == number("-log Z =#")
    assert number("least of the random states above it by#") > 0
    assert "F = energy - T S: True" in printed
    assert "gradient at the pure state is finite: True" in printed


def test_toroidal_notebook_says_what_it_claims():
    printed = _printed(_read("04_toroidal_attention"))

    def numbers(pattern):
        return [float(x) for x in re.search(pattern, printed, re.MULTILINE).groups()]

    number = r"\s*([-+.e\d]+?)"
    largest, bound = numbers(rf"largest distance{number}, bound{number}$")
    assert largest == bound
    for name in ("geometric", "snapped", "mixed"):
        # Answers of order 1 in float64.
        assert numbers(rf"^{name} +largest error of a roll{number},")[0] < 1e-12
    assert numbers(rf"^standard +largest error of a roll{number},")[0] > 0.1
    assert numbers(rf"by the Fourier transform:{number}$")[0] < 1e-12
    assert numbers(rf"block-wise against dense:{number}$")[0] < 1e-12
    assert numbers(rf"round the ring: largest difference{number}$")[0] < 1e-12
    dense, blocks = (numbers(rf"^{name}.*N = 1024:{number} MB$")[0] for name in ("dense", "block"))
    assert dense > 30 * blocks
    assert printed.count("kept everywhere: True") == 3
    assert "triangle inequality holds: True" in printed


def test_emergence_notebook_says_what_it_claims():
    printed = _printed(_read("05_emergence"))

    def numbers(pattern):
        return [float(x) for x in re.search(pattern, printed, re.MULTILINE).groups()]

    number = r"\s*([-+.e\d]+?)"
    assert "a chain: []" in printed
    assert "two groups and a bridge: [[0, 1, 2, 3], [5, 6, 7, 8]]" in printed
    match, even, others = numbers(
        rf"^cost{number} nats, with even weights{number}, least .*nearby{number}$"
    )
    assert match < min(even, others)
    assert len(re.findall(r"form meta-agent 1[6-9]$", printed, re.MULTILINE)) == 4
    assert len(re.findall(r"form meta-agent 2[23]$", printed, re.MULTILINE)) == 2
    assert re.findall(r"(\d+) leaves meta-agent", printed) == ["5"]
    assert "meta-agents that dissolved: 0" in printed
    assert "half-time: groups 1.00, pairs 1.00" in printed
    # Sums of a few hundred nats in float64.
    assert numbers(rf"sum to the drop: largest difference{number} nats$")[0] < 1e-10
    assert re.findall(r"of the steps, adjusted Rand index (\S+)", printed) == ["1.00"] * 3
    assert "eight places and six slots: 6 meta-agents, 2 groups refused" in printed
    stationary = re.findall(r"^bottom_up .* precision (\S+) in .* stationary (\S+)$", printed, re.M)
    for precision, limit in stationary[:2]:
        # On its way there: the run ends before the last tenth.
        assert 0.9 * float(limit) < float(precision) < float(limit)
    assert stationary[2][1] == "none"
    assert float(stationary[2][0]) > 20
    assert numbers(rf"against the formula: largest difference{number}$")[0] < 1e-12
    for motion in ("underdamped", "critically damped", "overdamped", "among 2", "among 3"):
        # Second order: dt^2 = 4e-4 times numbers of order 1.
        assert numbers(rf"{motion}: off the closed form by{number}$")[0] < 1e-3
    assert numbers(rf"^spectral derivatives: largest relative error{number},")[0] < 1e-10
    assert numbers(rf"^after a change of gauge: holonomy .* off by{number} radians")[0] < 1e-12
    found = numbers(rf"density: off the formula by{number}, changed by the gauge by{number}$")
    assert max(found) < 1e-12


def test_language_models_of_agents_notebook_says_what_it_claims():
    printed = _printed(_read("06_vfe_transformer"))

    def number(before):
        return float(re.search(re.escape(before) + r"\s*([-+.e\d]+)", printed).group(1))

    assert number("attention differs by") < 1e-5
    assert number("attention to agents of one's own camp:") > 0.7
    assert number("steps that raise what their agent pays:") == 0
    frequencies = number("frequencies:")
    for name in ("vfe", "pure-fep"):
        size, loss = re.search(
            rf"{name}: ([\d,]+) parameters, last losses ([.\d]+)", printed
        ).groups()
        assert int(size.replace(",", "")) < 100_000
        assert float(loss) < frequencies - 0.5
    assert number("1 steps:") < number("0 steps:")


def test_message_passing_notebook_says_what_it_claims():
    printed = _printed(_read("07_message_passing"))

    def numbers(pattern):
        return [float(x) for x in re.search(pattern, printed, re.MULTILINE).groups()]

    number = r"\s*([-+.e\d]+?)"
    # Sums of a few numbers below 60 in float32.
    assert numbers(rf"^least rise of the ELBO in a sweep:{number} nats$")[0] > -1e-5
    elbo, evidence = numbers(rf"^ELBO after the last sweep{number}, log evidence{number} nats$")
    assert evidence - 0.1 < elbo < evidence
    assert "refused: label cannot start at a uniform belief" in printed
    components, right = numbers(rf"^best start:{number} components,{number}% of points")
    assert components == 3
    assert right > 99
    assert numbers(rf"tenth of the noise:{number} of 6$") == [3]
    error, noise, _ = numbers(rf"nothing was seen:{number}, noise{number}, image{number}$")
    assert error < noise
    assert abs(numbers(rf"noise, found:{number}$")[0] / noise - 1) < 0.1
    chain, alone = numbers(rf"by the chain:{number}%, one by one:{number}%$")
    assert chain > 90 > alone
    # A sum of 400 numbers in float32.
    assert numbers(rf"log evidence - 1 ={number}$")[0] < 1e-5
    kinds = re.findall(r"^kind of mean (\S+), share (\S+)$", printed, re.MULTILINE)
    # Means of 240 and 160 waiting times, which overlap little.
    np.testing.assert_allclose(np.array(kinds, float), [[2, 0.6], [0.05, 0.4]], rtol=0.4)
    assert numbers(rf"^two kinds: ELBO higher by{number} nats$")[0] > 100


def test_generalised_filtering_notebook_says_what_it_claims():
    printed = _printed(_read("08_generalised_filtering"))

    def number(before):
        return float(re.search(re.escape(before) + r"\s*([-+.e\d]+)", printed).group(1))

    assert number("drawn derivatives: largest relative error") < 0.1
    assert number("float32 at order 10: Hermite") < 1e-6
    assert number("at dt = s / 50:") > 0.99
    assert number("at dt = 2 s:") < 0.5
    assert 90 < number("inside their 95 % intervals:") < 99
    names = ("smooth noise, S", "embedded noise", "Kalman filter", "exact, past", "exact, all")
    errors = {name: number(f"{name:16s} RMS error") for name in names}
    assert errors["smooth noise, S"] > errors["embedded noise"] > errors["Kalman filter"]
    assert errors["Kalman filter"] >= errors["exact, past"] > errors["exact, all"]
    assert abs(number("rate:") - 0.6) < 0.06
    assert abs(number("noise: standard deviation") - 0.1) < 0.03
    kalman, embedded, smooth = (
        number(f"{name:22s} RMS error of the angle")
        for name in ("extended Kalman filter", "embedded noise", "smooth noise, S")
    )
    assert kalman < embedded < 0.1
    assert smooth > 1
    right, wrong = (float(x) for x in re.findall(r"of an observation (\S+) nats", printed))
    assert right < 5
    assert wrong > 500


def test_active_inference_notebook_says_what_it_claims():
    printed = _printed(_read("09_active_inference"))

    def numbers(pattern):
        return [float(x) for x in re.search(pattern, printed, re.MULTILINE).groups()]

    number = r"\s*([-+.e\d]+)"
    # Sums of a few numbers below 20 in float32.
    assert numbers(rf"largest rise of F in a sweep:{number} nats")[0] < 1e-5
    assert numbers(rf"at the end: least{number}, median")[0] > -1e-5
    assert numbers(rf"decompose it differ by{number} nats")[0] < 1e-5
    values = {
        name: numbers(rf"^{name} +-G{number} +utility{number} +information{number}")
        for name in ("centre", "left", "right", "cue")
    }
    assert max(values, key=lambda name: values[name][0]) == "cue"
    best, success = numbers(rf"^optimal +utility{number} nats, reward found{number}, exactly")
    for name in ("sophisticated", "fixed policies"):
        utility, found, asked = numbers(
            rf"^{name} +utility{number} nats, reward found{number}, asked first{number}"
        )
        # Of 400 episodes: a standard error of 0.015, each worth 18 nats.
        assert abs(found - success) < 0.06
        assert abs(utility - best) < 1.1
        assert asked == 1
    assert numbers(rf"^utility alone +utility{number}") == [0.0]
    back, rewarded = numbers(rf"^looking back.* with{number} \(.*last trials{number}$")
    at_once, _ = numbers(rf"^at every step.* with{number} \(.*last trials{number}$")
    assert abs(back - 0.9) < 0.05
    assert abs(rewarded - 0.9) < 0.06
    assert at_once < 0.7


def test_koopman_notebook_says_what_it_claims():
    printed = _printed(_read("10_koopman"))

    def numbers(pattern):
        return [float(x) for x in re.search(pattern, printed).groups()]

    # float32, 2000 rows, each of which moves the factor.
    assert numbers(r"merged .* difference ([\d.e-]+)")[0] < 1e-5
    near, others = numbers(r"residual at most ([\d.]+); others at least ([\d.]+)")
    assert 3 * near < others
    least, window, true = (
        numbers(rf"{name}: (?:modulus at noise 0.8 )?([\d.]+), ([\d.]+)")
        for name in ("least squares", "window", "truth")
    )
    for small, right, goal in zip(least, window, true, strict=True):
        assert abs(right - goal) < 0.5 * abs(small - goal)
    one, many = numbers(r"intervals: (\d+) % one step ahead, (\d+) % over")
    assert abs(one - 90) < 5
    assert abs(many - 90) < 8
    learned, powers = (
        numbers(rf"{name}\s+[\d.]+ ([\d.]+)")[0] for name in ("learned", "polynomials")
    )
    assert abs(learned - 0.81) < 0.5 * abs(powers - 0.81)
    exact, operators, identity = (
        numbers(rf"{name}\s+loss ([\d.]+)")[0] for name in ("exact", "operators", "identity")
    )
    assert exact < identity < operators


def test_compression_notebook_says_what_it_claims():
    printed = _printed(_read("12_compression"))

    def numbers(pattern):
        return [float(x) for x in re.search(pattern, printed).groups()]

    errors = re.search("groups of 64: (.*)", printed).group(1)
    two, three, four, *_ = (float(x.split()[-1]) for x in errors.split(","))
    assert 1.8 < two / three < 2.2  # a bit halves the error
    assert 1.8 < three / four < 2.2
    rounded, base = numbers(r"4 bits:.*loss ([\d.]+) \(([\d.]+) before\)")
    assert rounded < base + 0.02
    every, best, worst = numbers(
        r"all four: ([\d.]+), the best two: ([\d.]+), the worst two: ([\d.]+)"
    )
    assert every < best < worst
    (without,) = numbers(r"the text alone .* in 3 bits ([\d.]+)")
    (late,) = numbers(r"taught  .* in 3 bits ([\d.]+)")
    (aware,) = numbers(r"rounded at the end .* in 3 bits ([\d.]+)")
    assert aware < late < without
    assert "read back bit for bit: True" in printed
    before, now = numbers(r"loss ([\d.]+) before, ([\d.]+) now")
    assert now < before


def test_energy_learning_notebook_says_what_it_claims():
    printed = _printed(_read("11_energy_learning"))

    def numbers(pattern):
        return [float(x) for x in re.search(pattern, printed).groups()]

    for name, order in (("one-sided", 1), ("centred", 2), ("4 points", 4), ("8 points", 8)):
        assert abs(numbers(rf"{name} +slope ([\d.]+)")[0] / order - 1) < 0.2
    right, best = numbers(r"epochs: ([\d.]+) %, best possible ([\d.]+) %")
    assert 80 < right < best < 100
    sizes = {
        name: [
            float(x.replace(",", ""))
            for x in re.search(f"{name}: (.*) KiB", printed)[1].split(", ")
        ]
        for name in ("equilibrium propagation", "backpropagation")
    }
    assert len(set(sizes["equilibrium propagation"])) == 1
    assert sizes["backpropagation"][-1] > 20 * sizes["backpropagation"][0]
    kept, lost = (
        numbers(rf"{name} network: mean square of the change of energy (\S+)")[0]
        for name in ("Hamiltonian", "plain")
    )
    assert kept < 0.3 * lost
