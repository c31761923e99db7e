"""Learning by energies and by operators in place of backpropagation: figures of kept runs."""

from typing import Any

from claim_rows.agents import STUDY
from claim_rows.measure import KEPT, PART, REFUTED, Found, interval, runs, short

DIGITS = "benchmarks/measured/equilibrium/runs.jsonl"
OPERATORS = "benchmarks/measured/koopman_language/runs.jsonl"
REVERSIBLE = "benchmarks/measured/reversible/runs.jsonl"
ENOUGH = 0.95  # of the test images
_Runs = dict[int, dict[str, Any]]


def _digits(arm: str) -> _Runs:
    """The runs of an arm on the digits, by seed."""
    jobs = [run for run in runs(DIGITS) if run["job"]["kind"] == "test"]
    return {run["job"]["seed"]: run for run in jobs if run["job"]["arm"] == arm}


def _epochs(run: dict[str, Any]) -> int:
    """Epochs until enough test images are right."""
    return 1 + next(i for i, right in enumerate(run["accuracy"]) if right >= ENOUGH)


def _updates(run: dict[str, Any]) -> int:
    return _epochs(run) * run["updates"]


def _passes(run: dict[str, Any]) -> int:
    """Sweeps over the layers, there and back."""
    return sum(run["forces"][: _epochs(run)])


def fewer_gradients() -> Found:
    """Updates, and passes through the layers, that equilibrium propagation and backpropagation
    need for the digits.
    """
    ours, plain = _digits("equilibrium, hard"), _digits("plain network")
    updates = [_updates(plain[seed]) / _updates(run) for seed, run in ours.items()]
    passes = [_passes(plain[seed]) / _passes(run) for seed, run in ours.items()]
    soft, through = _digits("equilibrium, soft"), _digits("backpropagation, soft")
    same = [_updates(through[seed]) / _updates(run) for seed, run in soft.items()]
    figure = (
        f"until 95 % are right {min(updates):.1f} to {max(updates):.1f} times fewer updates and "
        f"{min(passes):.3f} to {max(passes):.3f} times fewer passes through the layers than a "
        f"plain network; {min(same):.1f} to {max(same):.1f} times fewer updates than "
        "backpropagation through the same relaxation"
    )
    most = max(updates)
    verdict = KEPT if most >= 10 else PART if most >= 1.1 else REFUTED
    return Found(figure, f"{verdict}: an equilibrium is many passes")


def no_backpropagation() -> Found:
    """Accuracy and loss of what learns without backpropagation, beside what learns with it."""
    ours, plain = _digits("equilibrium, hard"), _digits("plain network")
    change = [100 * (ours[s]["accuracy"][-1] - plain[s]["accuracy"][-1]) for s in sorted(ours)]
    figures = [f"digits, equilibrium propagation {interval(change, 1)} points"]
    losses: dict[tuple[str, str], dict[int, float]] = {}
    for run in runs(STUDY):
        if run["job"]["stage"] == "final" and run["job"]["steps"] == 2000:
            key = run["job"]["arm"], run["job"]["text"]
            losses.setdefault(key, {})[run["job"]["seed"]] = run["loss"]
    for text in ("wikitext", "shakespeare"):
        mine, theirs = losses["pure-fep", text], losses["gpt-modern", text]
        change = [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]
        figures.append(f"{text}, Pure-FEP {interval(change)} nats to gpt-modern")
    reason = "it learns, as well in small networks, and with a loss in language"
    return Found("; ".join(figures), f"{PART}: {reason}")


def _gradients(arm: str) -> _Runs:
    """The runs of an arm at the rate that training text chose, by seed."""
    jobs = [run for run in runs(OPERATORS) if run["job"]["part"] == "gradients"]
    mine = [run for run in jobs if run["job"]["arm"] == arm]
    first = min((run for run in mine if run["job"]["seed"] == 0), key=lambda r: r["training_loss"])
    rate = first["job"]["rate"]
    return {run["job"]["seed"]: run for run in mine if run["job"]["rate"] == rate}


def _less(arm: str, other: str) -> str:
    mine, theirs = _gradients(arm), _gradients(other)
    seeds = sorted(mine.keys() & theirs.keys())
    return interval([mine[seed]["loss"] - theirs[seed]["loss"] for seed in seeds])


def koopman_gradients() -> Found:
    """Operations and loss when gradients pass the blocks by linear operators."""
    exact, ours = _gradients("exact"), _gradients("operators")
    cheaper = exact[0]["flops"] / ours[0]["flops"]
    figure = (
        f"{short(cheaper)} times cheaper (operations of products a token of the same batch), loss "
        f"{_less('operators', 'exact')} nats to exact gradients at equal tokens, "
        f"{_less('operators', 'identity')} to blocks passed by the identity"
    )
    verdict = KEPT if cheaper >= 100 else PART if cheaper >= 1.1 else REFUTED
    reason = "what a block costs is its own weights' gradient, which no operator saves"
    return Found(figure, f"{verdict}: {reason}")


def koopman_only() -> Found:
    """Loss when blocks do not learn by backpropagation at all."""
    exact, ours = _gradients("exact"), _gradients("readout")
    cheaper = exact[0]["flops"] / ours[0]["flops"]
    figure = (
        f"an update {short(cheaper)} times cheaper, loss {_less('readout', 'exact')} nats to exact "
        f"gradients at equal tokens, {_less('readout', 'exact, a third of the updates')} at equal "
        "operations"
    )
    worse = [
        ours[seed]["loss"] > run["loss"]
        for seed, run in _gradients("exact, a third of the updates").items()
    ]
    return Found(figure, REFUTED if all(worse) else PART)


def energy_penalty() -> Found:
    """What a penalty on changes of a learned energy does to the loss."""
    jobs = [run for run in runs(REVERSIBLE) if run["job"]["stage"] == "final"]
    losses: dict[str, dict[int, float]] = {}
    for run in jobs:
        losses.setdefault(run["job"]["arm"], {})[run["job"]["seed"]] = run["loss"]
    plain, figures, helped = losses["reversible, quarter"], [], False
    for arm, mine in losses.items():
        if "penalty" not in arm:
            continue
        change = [mine[seed] - plain[seed] for seed in sorted(mine.keys() & plain.keys())]
        figures.append(f"{interval(change)} nats (weight {arm.split()[-1]})")
        helped |= max(change) < 0
    return Found("; ".join(figures), PART if helped else f"{REFUTED}: the loss does not change")
