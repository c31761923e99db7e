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
import itertools
import os
import platform
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from claim_rows.density_matrices import Method, Problem, adjoint, compiled, method, problem
from claim_rows.measure import backward_over_forward

from vfejax.models.quantum import model as quantum_transformer
from vfejax.quantum import density
from vfejax.quantum.evolution import evolve
from vfejax.training.losses import next_token_loss

try:
    import pennylane
except ImportError:
    pennylane = None

try:
    import dynamiqs
except ImportError:
    dynamiqs = None

try:
    import qutip
except ImportError:
    qutip = None

CASES = tuple((d, num) for d in (5, 16, 48, 128) for num in (64, 1024))
SHIFT_CASE, PENNYLANE_CASE, DEGENERATE_CASE = (5, 64), (16, 2), (16, 64)
# Entries of the stack of states up to which (b) is asked: its autodiff keeps some 40 arrays of that
# size.
LARGEST_EXPM = 2_500_000
FIELDS = (np.complex64, np.float32, np.complex128, np.float64)
VOCABULARY, BATCH, LENGTH = 96, 12, 64


def reference(inputs: Problem) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Evolved states and cotangents of rho, H and dt in double precision, one state after the
    other.
    """
    rho, h, dt, cotangent = (x.astype(np.result_type(x.dtype, np.float64)) for x in inputs)
    w, v = np.linalg.eigh(h)
    gap = w[:, None] - w
    value, ct_rho, ct_dt, integral = (
        np.empty_like(rho),
        np.empty_like(rho),
        np.empty_like(dt),
        np.zeros_like(h),
    )
    for i, t in enumerate(dt):
        p, a = np.exp(-1j * t * w), cotangent[i].T
        u = (v * p) @ v.T
        value[i] = u @ rho[i] @ adjoint(u)
        ct_rho[i] = (adjoint(u) @ a @ u).T
        # dL = 2 Re tr(A dU rho U^dag), and dU = V (D o V^T dH V) V^T with D the divided differences
        # of exp(-i t w).
        m = v.T @ (rho[i] @ adjoint(u) @ a) @ v
        divided = np.where(
            gap == 0, -1j * t * p[:, None], (p[:, None] - p) / np.where(gap == 0, 1.0, gap)
        )
        integral += 2 * (m.T * divided).real
        ct_dt[i] = 2 * (np.diagonal(m) @ (-1j * w * p)).real
    ct_h = v @ integral @ v.T
    return value, (ct_rho, 0.5 * (ct_h + ct_h.T), ct_dt)


def errors(found: tuple, expected: tuple) -> list[float]:
    """Relative errors of rho', and of the cotangents of rho, H (its symmetric part) and dt;
    absolute where the reference is 0.
    """
    value, (ct_rho, ct_h, ct_dt) = jax.tree.map(np.asarray, found)
    pairs = zip(
        (value, ct_rho, 0.5 * (ct_h + ct_h.T), ct_dt), (expected[0], *expected[1]), strict=True
    )
    return [
        float(np.linalg.norm(got - want) / (np.linalg.norm(want) or 1.0)) for got, want in pairs
    ]


def eigh_evolve(rho, hamiltonian, dt):
    """(a)."""
    levels, basis = jnp.linalg.eigh(hamiltonian)
    u = (basis * jnp.exp(-1j * dt[:, None] * levels)[:, None, :]) @ basis.T
    return u @ rho @ adjoint(u)


def expm_evolve(rho, hamiltonian, dt):
    """(b)."""
    u = jax.lax.map(lambda t: jax.scipy.linalg.expm(-1j * t * hamiltonian), dt)
    return u @ rho @ adjoint(u)


def shifts(inputs: Problem) -> tuple[Callable[[], object], int]:
    """(c): cotangents of H and dt, and the number of evaluations it takes; one evaluation after the
    other.
    """
    d = inputs.hamiltonian.shape[0]
    # Steps at which truncation (their square) and rounding (their inverse) are both below 1e-3 of
    # the gradient.
    step_h, step_dt = 0.1, 0.01
    rows, columns = np.tril_indices(d)
    units = np.zeros((len(rows), d, d), np.float32)
    units[np.arange(len(rows)), rows, columns] = units[np.arange(len(rows)), columns, rows] = step_h

    def run(rho, hamiltonian, dt, cotangent):
        def values(hamiltonian, dt):
            return jnp.sum(jnp.real(cotangent * evolve(rho, hamiltonian, dt)), axis=(-2, -1))

        def entry(unit):
            return jnp.sum(values(hamiltonian + unit, dt) - values(hamiltonian - unit, dt)) / (
                2 * step_h
            )

        slopes = jax.lax.map(entry, units)
        # An entry off the diagonal moves two entries of H together.
        half = jnp.zeros_like(hamiltonian).at[rows, columns].set(0.5 * slopes)
        ct_dt = (values(hamiltonian, dt + step_dt) - values(hamiltonian, dt - step_dt)) / (
            2 * step_dt
        )
        return half + half.T, ct_dt

    return compiled(run, *inputs)[0], 2 * (len(rows) + 1)


def real_strings(num_qubits: int) -> tuple[list[str], np.ndarray]:
    """Pauli words with an even number of Y, a basis of the real symmetric matrices, and their
    matrices.
    """
    pauli = {
        "I": np.eye(2),
        "X": np.array([[0, 1], [1, 0]]),
        "Y": np.array([[0, -1j], [1j, 0]]),
        "Z": np.diag([1, -1]),
    }
    words = [
        "".join(w) for w in itertools.product("IXYZ", repeat=num_qubits) if w.count("Y") % 2 == 0
    ]
    return words, np.stack(
        [functools.reduce(np.kron, [pauli[c] for c in word]) for word in words]
    ).real


def pennylane_method(psi: np.ndarray, inputs: Problem, words: list[str], strings: np.ndarray):
    """(d): forward pass, and gradient by the coefficients of the strings in H, at any time
    steps.
    """
    wires = range(len(words[0]))
    observables = inputs.cotangent.swapaxes(-1, -2).astype(np.complex128)
    coefficients = np.einsum("wjk,jk->w", strings, inputs.hamiltonian) / len(strings[0])
    device = pennylane.device("default.qubit", wires=len(wires))

    @pennylane.qnode(device, diff_method="adjoint")
    def energy(angles, psi, observable):
        pennylane.StatePrep(psi, wires=wires)
        for angle, word in zip(angles, words, strict=True):
            pennylane.PauliRot(angle, word, wires=wires)
        return pennylane.expval(pennylane.Hermitian(observable, wires=wires))

    slope = pennylane.grad(energy, argnums=0)

    def sweep(call: Callable, dt: np.ndarray, requires_grad: bool) -> list:
        # With angles to be trained PennyLane computes the gradient along with the value.
        angles = functools.partial(pennylane.numpy.array, requires_grad=requires_grad)
        return [
            call(angles(2 * t * coefficients), *x)
            for t, *x in zip(dt.astype(np.float64), psi, observables, strict=True)
        ]

    def gradient(dt: np.ndarray) -> np.ndarray:
        return np.einsum("tw,t->w", np.stack(sweep(slope, dt, True)), 2.0 * dt)

    return (lambda: sweep(energy, inputs.dt, False)), gradient


def _timed(call: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def _batch(call: Callable[[], object], first: float, clock: Callable[[], float]) -> float:
    """Seconds per call of a batch of about 20 ms, after a call that warms caches and thread
    pools: processor time is known to a few ms.
    """
    count = max(1, int(0.02 / first))
    call()
    return _timed(lambda: [call() for _ in range(count)], clock) / count


def interleaved(
    calls: dict[object, Callable[[], object]],
    rounds: int = 15,
    clock: Callable[[], float] = time.process_time,
    of_rounds: Callable[[list[float]], float] = np.median,
) -> dict[object, float]:
    """Seconds per call, the median of rounds. Every round runs all, ``rounds`` rounds or 10 s; what
    takes above 0.1 s runs once a round.

    The slow must not use up the time of the others: above 0.5 s they run in two rounds, above 4 s
    in one.
    """
    for call in calls.values():
        call()
    firsts = {name: _timed(call, time.perf_counter) for name, call in calls.items()}
    times: dict[object, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for turn in range(rounds):
        for name, call in calls.items():
            first = firsts[name]
            if turn == 0 or first <= 0.5 or (first <= 4 and turn < 2):
                slow = first > 0.1
                times[name].append(_timed(call, clock) if slow else _batch(call, first, clock))
        if time.perf_counter() - began > 10:
            break
    return {name: float(of_rounds(values)) for name, values in times.items()}


def rates() -> tuple[float, float]:
    """FLOP/s of a float32 product of size 1024, and bytes read plus bytes written per second of a
    pass over 128 MB; median of 30.
    """
    x = jnp.ones((1024, 1024), jnp.float32)
    product = compiled(jnp.matmul, x, x)[0]
    source = jnp.ones(2**25, jnp.float32)
    copy = compiled(jnp.negative, source)[0]
    seconds = interleaved({"product": product, "copy": copy}, rounds=30)
    return 2 * 1024**3 / seconds["product"], 2 * source.nbytes / seconds["copy"]


def floor(d: int, num: int, speeds: tuple[float, float]) -> dict[tuple[str, str], float]:
    """Seconds that forward, and forward with gradient, cannot go below."""
    flops, bandwidth = speeds
    work = {"forward": (8, 2), "both": (20, 4)}
    return {
        ("floor", of): max(products * 2 * d**3 * num / flops, stacks * 8 * d * d * num / bandwidth)
        for of, (products, stacks) in work.items()
    }


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


def dynamiqs_evolve(rho, hamiltonian, dt):
    """(e)."""
    times = jnp.stack([jnp.zeros_like(dt), dt])
    solution = dynamiqs.sepropagator(hamiltonian, times, progress_meter=False)
    u = solution.propagators.to_jax()[-1]
    return u @ rho @ adjoint(u)


def qutip_method(inputs: Problem) -> Callable[[], np.ndarray]:
    """(f), from objects that are made before the clock starts."""
    hamiltonian = qutip.Qobj(inputs.hamiltonian.astype(np.float64))
    states, dt = [qutip.Qobj(x.astype(np.complex128)) for x in inputs.rho], float(inputs.dt)

    def run() -> np.ndarray:
        u = (-1j * dt * hamiltonian).expm()
        adjoint = u.dag()
        return np.stack([(u @ x @ adjoint).full() for x in states])

    return run


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
