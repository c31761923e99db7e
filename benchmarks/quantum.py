"""Evolution of T density matrices under one shared H, its gradient, entropies, and the quantum
transformer, side by side in one run.

    python benchmarks/quantum.py [--quick] [--cases 16x64 48x1024]

ours     quantum.evolution.evolve, jit; H real symmetric [d, d], a time step per state [T], rho
         complex64 [T, d, d]; gradients of H, rho and dt
(a)      jnp.linalg.eigh of the shared H, U of every state, autodiff through both
(b)      jax.scipy.linalg.expm of -i dt H for one state after the other (jax.lax.map: a batch of
         them can deadlock jaxlib on two cores), autodiff
(c)      shifts: two evaluations per entry of H, d (d + 1) / 2 entries, and two for all dt at once;
         timed at 5x64, elsewhere the count times our forward time. An entry of H is no gate of its
         own, for which a two-term rule would be exact: the shifts are small, and exact rules take
         more evaluations. rho has no gradient here
(d)      PennyLane's adjoint differentiation of one Trotter step, a Pauli rotation for each of the
         136 real strings on four qubits, two pure states in turn; not the same function: it agrees
         to first order in dt, where its gradient is checked
(e)      dynamiqs, one time step for all states: its propagator of H, applied to the stack; autodiff
(f)      QuTiP, likewise: the exponential of H, applied to one state after the other, no gradient
floor    real matrix products, 8 forward and 12 backward, over the rate of a large one; or bytes of
         inputs and outputs over the bandwidth of a large copy, where that is longer. Ours takes 4
         and 6

"grad" is forward and backward together; a ratio is theirs / ours (above 1: we are faster). Methods
run interleaved. Times are processor time of all threads, the median of up to 15 rounds; of
entropies the clock's, the best. What the backward pass adds, over forward, is the median of ratios
of neighbouring turns, in brackets the middle half of them; the same function finds it for the table
of claims. Errors are relative 2-norms against complex128 in NumPy, by divided differences of the
exponential. Values and gradients are checked against it before anything is timed. PennyLane,
dynamiqs and QuTiP are optional: without one its rows are left out, and the last line says so. The
tables of docs/results/density_matrices.md come last.
"""

import argparse
import functools
import os
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np
from claim_rows.density_matrices import Method, adjoint, compiled, method, problem
from claim_rows.measure import backward_over_forward
from quantum_methods import (
    dynamiqs,
    dynamiqs_evolve,
    eigh_evolve,
    errors,
    expm_evolve,
    pennylane,
    pennylane_method,
    qutip,
    qutip_method,
    real_strings,
    reference,
    shifts,
)
from quantum_times import floor, interleaved, rates

from vfejax.models.quantum import model as quantum_transformer
from vfejax.quantum import density
from vfejax.quantum.evolution import evolve
from vfejax.training.losses import next_token_loss

CASES = tuple((d, num) for d in (5, 16, 48, 128) for num in (64, 1024))
SHIFT_CASE, PENNYLANE_CASE, DEGENERATE_CASE = (5, 64), (16, 2), (16, 64)
# Entries of the stack of states up to which (b) is asked: its autodiff keeps some 40 arrays of that
# size.
LARGEST_EXPM = 2_500_000
FIELDS = (np.complex64, np.float32, np.complex128, np.float64)
VOCABULARY, BATCH, LENGTH = 96, 12, 64


def row(
    name: str, d: int, num: int, times: dict, mine: Method, found: list[float | None] | None
) -> None:
    """One line of the table of evolutions; what a method does not have is left blank."""
    forward, both = (times.get((name, of)) for of in ("forward", "both"))
    cells = [f"{name:<14} {d:>4} {num:>5}"]
    cells += [f"{'':>10}" if x is None else f"{1e3 * x:>10.3f}" for x in (forward, both)]
    for of, seconds in (("forward", forward), ("both", both)):
        cells.append(
            f"{'':>9}"
            if seconds is None or name == "ours"
            else f"{seconds / times['ours', of]:>9.2f}"
        )
    cells.append(
        f"{'':>31}"
        if found is None
        else " ".join(f"{'':>7}" if x is None else f"{x:>7.0e}" for x in found)
    )
    cells.append(f"{mine.memory / 1e6:>8.1f} {mine.seconds:>7.1f}" if name == "ours" else "")
    print(" ".join(cells).rstrip(), flush=True)


def case(d: int, num: int, speeds: tuple[float, float]) -> str:
    """Check, time and print one size; its row of the page."""
    inputs = problem(d, num)
    expected = reference(inputs)
    methods = {"ours": method(evolve, inputs), "(a) eigh": method(eigh_evolve, inputs)}
    if d * d * num <= LARGEST_EXPM:
        methods["(b) expm"] = method(expm_evolve, inputs)
    found = {name: errors(m.both(), expected) for name, m in methods.items()}
    for name, error in found.items():
        # Rounding of single precision; autodiff through eigh divides it by the gaps between levels,
        # which is shown and not judged.
        judged = error[:1] if name == "(a) eigh" else error
        assert max(judged) < 1e-4, (name, error)
    calls = {
        (name, of): getattr(m, of) for name, m in methods.items() for of in ("forward", "both")
    }
    evaluations = d * (d + 1) + 2
    if (d, num) == SHIFT_CASE:
        run, evaluations = shifts(inputs)
        ct_h, ct_dt = run()
        error = errors((expected[0], (expected[1][0], ct_h, ct_dt)), expected)[2:]
        assert max(error) < 1e-2, error
        found["(c) shifts"] = [None, None, *error]
        calls["(c) shifts", "both"] = run
    times = interleaved(calls) | floor(d, num, speeds)
    if ("(c) shifts", "both") not in times:
        times["(c) estimate", "both"] = evaluations * times["ours", "forward"]
    for name in dict.fromkeys(name for name, _ in times):
        row(name, d, num, times, methods["ours"], found.get(name))
    backward = backward_over_forward(methods["ours"].forward, methods["ours"].both)
    print(f"{'':<14} (c) takes {evaluations} evaluations; backward / forward {backward}")
    forward, both = (times["ours", of] for of in ("forward", "both"))
    cells = f"{1e3 * forward:.2f}", f"{forward / times['floor', 'forward']:.1f}"
    return _line(f"{d} x {num}", *cells, f"{1e3 * both:.2f}", str(backward))


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(*header: str, rows: list[str]) -> str:
    return "\n".join([_line(*header), _line("---", *["---:"] * (len(header) - 1)), *rows, ""])


def pennylane_case() -> None:
    """(d), a block of its own: pure states."""
    d, num = PENNYLANE_CASE
    rng = np.random.default_rng(0)
    psi = rng.standard_normal((num, d)) + 1j * rng.standard_normal((num, d))
    psi = psi / np.linalg.norm(psi, axis=-1, keepdims=True)
    rho = psi[:, :, None] * psi[:, None, :].conj()
    inputs = problem(d, num)._replace(rho=rho.astype(np.complex64))
    words, strings = real_strings(4)
    forward, gradient = pennylane_method(psi, inputs, words, strings)
    small = inputs._replace(dt=inputs.dt / 100)
    expected = np.einsum("wjk,jk->w", strings, reference(small)[1][1])
    error = np.linalg.norm(gradient(small.dt) - expected) / np.linalg.norm(expected)
    # The Trotter error is first order in dt |H|, which is about 0.01 here.
    assert error < 0.05, error
    mine = method(evolve, inputs)
    calls = {("ours", "forward"): mine.forward, ("ours", "both"): mine.both}
    calls |= {
        ("(d) PennyLane", "forward"): forward,
        ("(d) PennyLane", "both"): lambda: gradient(inputs.dt),
    }
    times = interleaved(calls)
    for name in ("ours", "(d) PennyLane"):
        row(name, d, num, times, mine, None)


def one_step_case(d: int, num: int) -> None:
    """(e) and (f), a block of their own: one time step for all states."""
    inputs = problem(d, num)
    dt = inputs.dt[0]
    value, (ct_rho, ct_h, ct_dt) = reference(inputs._replace(dt=np.full(num, dt)))
    inputs, expected = inputs._replace(dt=dt), (value, (ct_rho, ct_h, np.sum(ct_dt)))
    methods = {"ours": method(evolve, inputs)}
    if dynamiqs is not None:
        methods["(e) dynamiqs"] = method(dynamiqs_evolve, inputs)
    found = {name: errors(m.both(), expected) for name, m in methods.items()}
    for name, error in found.items():
        assert max(error) < 1e-4, (name, error)
    calls = {
        (name, of): getattr(m, of) for name, m in methods.items() for of in ("forward", "both")
    }
    if qutip is not None:
        run = qutip_method(inputs)
        assert np.linalg.norm(run() - value) < 1e-5 * np.linalg.norm(value)
        calls["(f) QuTiP", "forward"] = run
    times = interleaved(calls)
    for name in dict.fromkeys(name for name, _ in times):
        row(name, d, num, times, methods["ours"], found.get(name))


def degenerate_case() -> None:
    """Errors at H = 0, where all levels are equal."""
    d, num = DEGENERATE_CASE
    inputs = problem(d, num)
    inputs = inputs._replace(hamiltonian=np.zeros_like(inputs.hamiltonian))
    expected = reference(inputs)
    for name, evolve_fn in {
        "ours": evolve,
        "(a) eigh": eigh_evolve,
        "(b) expm": expm_evolve,
    }.items():
        value, rho, h, _ = errors(method(evolve_fn, inputs).both(), expected)
        cells = " ".join("    NaN" if np.isnan(x) else f"{x:>7.0e}" for x in (value, rho, h))
        print(f"{name:<14} {d:>4} {num:>5} {cells}", flush=True)


def entropy_case(d: int, num: int) -> str:
    """Check, time and print the entropies of one stack of states in single precision, beside LAPACK
    through NumPy; the row of the page has speeds relative to it in every field and precision.
    """
    # Half of it I / d: the slope, a logarithm, is then known to rounding.
    rho = 0.5 * problem(d, num).rho + np.eye(d, dtype=np.complex64) / (2 * d)

    def both(rho):
        value, pull_back = jax.vjp(density.von_neumann_entropy, rho)
        return value, pull_back(jnp.ones_like(value))

    with_gradient = compiled(both, rho)[0]
    w, v = np.linalg.eigh(rho.astype(np.complex128))
    value, (slope,) = with_gradient()
    # JAX's cotangent is the transpose of -(log rho + 1).
    expected = -((v * (np.log(w) + 1)[:, None, :]) @ adjoint(v)).swapaxes(-1, -2)
    error = [
        np.linalg.norm(x - y) / np.linalg.norm(y)
        for x, y in ((value, _entropy(w)), (slope, expected))
    ]
    assert max(error) < 1e-4, error
    times = {dtype: _entropy_times(rho, dtype) for dtype in FIELDS}
    forward, lapack = times[np.complex64]
    gradient = interleaved({"both": with_gradient})["both"]
    print(
        f"{'entropy':<14} {d:>4} {num:>5} {1e3 * forward:>10.3f} {1e3 * gradient:>10.3f} "
        f"{1e6 * forward / num:>8.1f} {1e3 * lapack:>10.3f} {lapack / forward:>9.2f} "
        f"{error[0]:>7.0e} {error[1]:>7.0e}",
        flush=True,
    )
    return _line(f"{d} x {num}", *(f"{theirs / ours:.2f}" for ours, theirs in times.values()))


def _entropy(levels: np.ndarray) -> np.ndarray:
    return -np.sum(levels * np.log(levels), axis=-1)


def _entropy_times(rho: np.ndarray, dtype: type) -> tuple[float, float]:
    """Seconds by the clock of our entropies and of NumPy's in one field and precision: LAPACK's
    threads spend processor time while they wait.
    """
    with jax.enable_x64(True):
        states = (rho if np.issubdtype(dtype, np.complexfloating) else rho.real).astype(dtype)
        ours = compiled(density.von_neumann_entropy, states)[0]
        lapack = functools.partial(lambda x: _entropy(np.linalg.eigvalsh(x)), states)
        found = interleaved({"ours": ours, "lapack": lapack}, 15, time.perf_counter, min)
    return found["ours"], found["lapack"]


def _model_gradient(config: quantum_transformer.QuantumTransformerConfig, dtype: jnp.dtype):
    model = quantum_transformer.build(config, VOCABULARY, LENGTH, dtype)

    def loss(params, windows):
        return next_token_loss(model, params, windows, None, None)[0]

    return model, loss


def model_case(dim: int) -> str:
    """The transformer's loss and its gradient; its error without the free energy, whose slope at
    singular states depends on the precision. Its row of the page.
    """
    config = quantum_transformer.QuantumTransformerConfig(dim=dim)
    bare = quantum_transformer.QuantumTransformerConfig(dim=dim, free_energy_weight=0.0)
    model, loss = _model_gradient(config, jnp.float32)
    params = jax.jit(model.init)(jax.random.key(0))
    windows = np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, LENGTH + 1), np.int32)
    single = compiled(jax.grad(_model_gradient(bare, jnp.float32)[1]), params, windows)[0]()
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        double = compiled(jax.grad(_model_gradient(bare, jnp.float64)[1]), wide, windows)[0]()
        double = jax.tree.map(np.asarray, double)
    pairs = list(zip(jax.tree.leaves(single), jax.tree.leaves(double), strict=True))
    error = np.sqrt(
        sum(np.sum((x - y) ** 2) for x, y in pairs) / sum(np.sum(y**2) for _, y in pairs)
    )
    assert error < 1e-3, error
    forward, _, _ = compiled(loss, params, windows)
    both, seconds, memory = compiled(jax.value_and_grad(loss), params, windows)
    times = interleaved({"forward": forward, "both": both})
    ratio = times["both"] / times["forward"]
    print(
        f"{'transformer':<14} {dim:>4} {BATCH * LENGTH:>5} {1e3 * times['forward']:>10.3f} "
        f"{1e3 * times['both']:>10.3f} "
        f"{ratio:>9.2f} {error:>7.0e} {memory / 1e6:>8.1f} {seconds:>7.1f}",
        flush=True,
    )
    backward = backward_over_forward(forward, both)
    cells = (f"{1e3 * times[of]:.1f}" for of in ("forward", "both"))
    return _line(str(dim), *cells, str(backward), f"{1 + backward.median:.2f}")


def _size(text: str) -> tuple[int, int]:
    d, _, num = text.partition("x")
    if not (d.isdigit() and num.isdigit() and int(d) >= 2 and int(num) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 16x64")
    return int(d), int(num)


def main() -> None:
    """Run the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="64 states only, and the smaller transformer"
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        type=_size,
        metavar="DxT",
        help="these sizes only, such as 16x64 48x1024",
    )
    options = parser.parse_args()
    cases = options.cases or [(d, num) for d, num in CASES if num == 64 or not options.quick]
    size = f"{'what':<14} {'d':>4} {'T':>5}"
    speeds = rates()
    print(
        f"{size} {'forward ms':>10} {'grad ms':>10} {'ratio fwd':>9} {'r. grad':>9} "
        f"{'err rho_':>7} {'rho':>6} {'H':>7} {'dt':>7} {'temp MB':>8} {'compile':>7}"
    )
    evolutions, entropies = [], []
    for d, num in cases:
        evolutions.append(case(d, num, speeds))
        jax.clear_caches()
    if pennylane is not None:
        pennylane_case()
    print("\none time step for all states")
    for d, num in cases:
        one_step_case(d, num)
    print(f"\nH = 0\n{size} {'err rho_':>7} {'rho':>6} {'H':>7}")
    degenerate_case()
    print(
        f"\n{size} {'forward ms':>10} {'grad ms':>10} {'us/state':>8} {'NumPy ms':>10} "
        f"{'ratio':>9} {'err S':>7} {'slope':>7}"
    )
    for d, num in cases:
        entropies.append(entropy_case(d, num))
    print(
        f"\n{size} {'forward ms':>10} {'grad ms':>10} {'grad/fwd':>9} {'error':>7} "
        f"{'temp MB':>8} {'compile':>7}"
    )
    models = [model_case(dim) for dim in ((16,) if options.quick else (16, 48))]
    print(f"\nproducts {speeds[0] / 1e9:.0f} GFLOP/s, copy bandwidth {speeds[1] / 1e9:.1f} GB/s")
    versions = (
        f"jax {jax.__version__}, numpy {np.__version__}, "
        f"pennylane {pennylane.__version__ if pennylane else 'absent'}, "
        f"dynamiqs {dynamiqs.__version__ if dynamiqs else 'absent'}, "
        f"qutip {qutip.__version__ if qutip else 'absent'}"
    )
    device = f"{jax.devices()[0].device_kind} ({jax.device_count()} device, {os.cpu_count()} cores)"
    print(f"{versions}, python {platform.python_version()}, {device}\n")
    times = "forward", "over the floor", "with gradient", "backward / forward"
    print(_table("d x states", *times, rows=evolutions))
    print(_table("d", *times[::2], times[3], "gradient / forward", rows=models))
    print(_table("d x states", *(field.__name__ for field in FIELDS), rows=entropies))


if __name__ == "__main__":
    main()
