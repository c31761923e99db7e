"""The report of a compression: every stage with its bytes and its loss, and the file read again in
a fresh process.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vfejax.cli.compress import teacher as teachers
from vfejax.cli.compress.config import CompressConfig
from vfejax.cli.compress.student import Student, dense
from vfejax.cli.compress.teacher import Teacher
from vfejax.compression import storage
from vfejax.compression.storage import Form
from vfejax.errors import UserError
from vfejax.figures import compression as figures
from vfejax.figures import training as training_figures
from vfejax.runs import artefact
from vfejax.runs.artefact import Content
from vfejax.runs.directory import RunDirectory
from vfejax.runs.loop import Outcome
from vfejax.runs.metrics import read_metrics
from vfejax.runs.report import Picture, Report
from vfejax.training import sharding
from vfejax.training.evaluate import EvaluateFn, evaluator
from vfejax.types import PyTree

__all__ = ["Result", "build", "summary_text"]

_HEADER = (
    *("stage", "bytes", "of float32", "of bfloat16", "loss (nats)", "change (%)"),
    "tokens per second",
)


@dataclass(frozen=True)
class Stage:
    """One row of the table: the size of a file, and the loss of its weights."""

    stage: str
    bytes: int
    loss: float
    tokens_per_second: float | None


class _Bench:
    """Sizes and losses of weights on the same windows."""

    def __init__(self, config: CompressConfig, teacher: Teacher) -> None:
        self.teacher = teacher
        self.windows = teacher.valid_windows(config.final_windows)

    def content(self, name: str, options: Any, forms: Mapping[str, Form], **more: Any) -> Content:
        """What a file of this model says."""
        teacher = self.teacher
        settings = teachers.settings(teacher, name, options)
        known = {"step": teacher.step, "valid_loss": float("nan"), "inputs": teacher.inputs}
        return Content(
            settings, teacher.corpus.vocabulary, dict(forms), teacher.checksum, **(known | more)
        )

    def size(self, params: PyTree, content: Content) -> int:
        """Bytes of the file that these weights would make."""
        return artefact.num_bytes(artefact.encode(params, content.forms), content)

    def loss(self, evaluate_fn: EvaluateFn, params: PyTree) -> tuple[float, float]:
        """Nats per token, and tokens per second of what is compiled already."""
        evaluate_fn(params, self.windows, stop_fn=lambda: True)
        began = time.monotonic()
        found = evaluate_fn(params, self.windows)
        return found.nats_per_token, found.num_tokens / (time.monotonic() - began)


class Result(NamedTuple):
    """What the loop left behind, and what its judgement needs.

    Attributes:
        config: the command's options.
        teacher: what was compressed.
        student: what it became.
        outcome: of the loop.
        run: the run's directory, held.
        evaluate_fn: of the student.
        say: tells the user what goes on.
        beside: the last row of another compression, to be shown beside the stages.
    """

    config: CompressConfig
    teacher: Teacher
    student: Student
    outcome: Outcome
    run: RunDirectory
    evaluate_fn: EvaluateFn
    say: Callable[[str], None]
    beside: dict[str, Any] | None = None


def build(result: Result) -> tuple[Report, dict[str, Any]]:
    """Write the file, judge all stages; what the run shows in the end, and its summary.

    Raises:
        UserError: when the file cannot be written or does not come back as it was.
    """
    config, teacher, student, outcome = result[:4]
    summary: dict[str, Any] = {
        "model": student.name,
        "data": teacher.corpus.name,
        "steps": outcome.step,
        "teacher_weights": sum(x.size for x in jax.tree.leaves(teacher.params)),
        "weights": sum(x.size for x in jax.tree.leaves(student.params)),
    }
    metrics = read_metrics(result.run)
    if outcome.interrupted:
        notes = ["The run was interrupted before its end, so no file was written; --resume goes on"]
        return Report("vfejax compress", list(summary.items()), notes=notes), summary
    stages, equal = _stages(result)
    summary["file"], summary["bit_for_bit"] = str(config.file), equal
    single, half = (_bytes(stages[0], teacher, width) for width in (4, 2))
    summary["stages"] = [
        asdict(stage)
        | {
            "ratio_to_float32": single / stage.bytes,
            "ratio_to_bfloat16": half / stage.bytes,
            "change_per_cent": 100 * (stage.loss / stages[0].loss - 1),
        }
        for stage in stages
    ]
    summary["beside"] = [] if result.beside is None else [result.beside]
    report = Report(
        "vfejax compress",
        [_cells(stage) for stage in (*summary["stages"], *summary["beside"])],
        _pictures(metrics, stages, summary["beside"]),
        notes=_notes(config, summary),
        header=_HEADER,
    )
    return report, summary


def _bytes(first: Stage, teacher: Teacher, width: int) -> int:
    """Size of the teacher's file with so many bytes for every weight."""
    leaves = jax.tree.leaves(teacher.params)
    return first.bytes - sum(x.size * (x.dtype.itemsize - width) for x in leaves)


def _stages(result: Result) -> tuple[list[Stage], bool]:
    """All stages in their order, and whether the file came back bit for bit."""
    config, teacher, student, outcome, run, evaluate_fn, say, _ = result
    say("evaluating the stages")
    bench, stages = _Bench(config, teacher), []

    def add(
        stage: str, evaluate: EvaluateFn, params: PyTree, content: Content, kept: PyTree
    ) -> None:
        loss, pace = bench.loss(evaluate, params)
        stages.append(Stage(stage, bench.size(kept, content), loss, pace))

    padding = teacher.corpus.vocabulary.padding_id
    own = evaluator(teacher.model, sharding.data_mesh(teacher.config.batch_size), padding)
    plain = bench.content(teacher.config.model, teacher.options, {})
    add("teacher", own, teacher.params, plain, teacher.params)
    if config.order == "quantise-first":
        forms = {n: f for n, f in student.forms.items() if n in storage.leaf_names(teacher.params)}
        rounded = bench.content(teacher.config.model, teacher.options, forms)
        leaves = artefact.encode(teacher.params, forms)
        read = artefact.decode(leaves, rounded, jax.eval_shape(lambda: teacher.params))
        add("rounded", own, read, rounded, teacher.params)
    ranks = {"ranks": student.ranks}
    sparse = {name: Form(sparse=True) for name, form in student.forms.items() if form.sparse}
    exact = bench.content(student.name, student.options, sparse, **ranks)
    read_fn = jax.jit(dense)
    if config.student is None and (student.sizes or student.ranks or sparse):
        add("pruned", evaluate_fn, read_fn(student.params), exact, student.params)
    params = outcome.state.params["student"]
    if outcome.step:
        add("distilled", evaluate_fn, read_fn(params), exact, params)
    leaves = artefact.encode(params, student.forms)
    packed = bench.content(student.name, student.options, student.forms, **ranks)
    read = artefact.decode(leaves, packed, jax.eval_shape(dense, params))
    loss, pace = bench.loss(evaluate_fn, read)
    assert config.file is not None  # parse has set it
    if config.file.parent == run.path:
        run.file(config.file.name)
    step = outcome.step
    size = artefact.write(config.file, leaves, packed._replace(step=step, valid_loss=loss))
    stages.append(Stage("rounded and packed", size, loss, pace))
    say("reading the file in a fresh process")
    again = _afresh(config, config.file)
    stages.append(Stage("file, read again", size, again, None))
    return stages, again == loss


def _afresh(config: CompressConfig, file: Path) -> float:
    """The loss that ``vfejax evaluate`` finds for the file."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "figures.json"
        words = ["evaluate", f"--run={file}", "--out", str(found), "--quiet"]
        words += ["--windows", str(config.final_windows)]
        # It finds modules where this one does, and not in the working directory.
        code = f"import sys; sys.path[:] = {sys.path!r}; from vfejax.cli.main import main; "
        code += "sys.exit(main(sys.argv[1:]))"
        # The memory of an accelerator that this process holds is not there for the other one.
        environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        command = [sys.executable, "-c", code, *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            problem = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"{file}: a fresh process cannot evaluate it: {problem}")
        return float(json.loads(found.read_text())["loss_nats_per_token"])


def _cells(stage: Mapping[str, Any]) -> tuple[Any, ...]:
    pace = stage["tokens_per_second"]
    return (
        stage["stage"],
        stage["bytes"],
        Decimal(f"{stage['ratio_to_float32']:.2f}"),
        Decimal(f"{stage['ratio_to_bfloat16']:.2f}"),
        Decimal(f"{stage['loss']:.4f}"),
        Decimal(f"{stage['change_per_cent']:+.2f}"),
        "" if pace is None else round(pace),
    )


def _notes(config: CompressConfig, summary: Mapping[str, Any]) -> list[str]:
    bits = "16" if config.bits == 16 else f"{config.bits}, of embeddings {config.embedding_bits}"
    notes = [
        f"Bytes are those of a file with weights, vocabulary and settings; losses are means over "
        f"the same windows of the validation text. Bits per weight: {bits}; the rest is float16.",
        f"{summary['file']} is what vfejax evaluate and vfejax generate take as --run.",
    ]
    if not summary["bit_for_bit"]:
        notes.append(
            "The loss in the fresh process differs in its last digits: another device or another "
            "number of devices adds up in another order."
        )
    return notes


def _pictures(
    metrics: dict[str, np.ndarray], stages: list[Stage], others: list[dict[str, Any]]
) -> Iterator[Picture]:
    groups = {"stages": {stage.stage: [stage.bytes, stage.loss] for stage in stages[:-1]}}
    if others:
        groups["beside"] = {row["stage"]: [row["bytes"], row["loss"]] for row in others}
    figure = figures.loss_against_bytes(groups, level=stages[0].loss)
    caption = "Every stage as a point: the size of its file, and its loss on the validation text."
    yield Picture("bytes", "Loss against bytes", caption, figure)
    if len(metrics["step"]) < 2:
        return
    levels = {"teacher": stages[0].loss}
    figure = training_figures.loss_curves(
        metrics["step"], metrics["loss"], metrics["valid_loss"], levels=levels
    )
    caption = (
        "Cross-entropy of the student on training batches and on the validation text, with the "
        "weights that it reads: rounded ones at the end."
    )
    yield Picture("loss", "Loss", caption, figure)


def summary_text(summary: Mapping[str, Any]) -> str:
    """The summary for a terminal."""
    lines = [
        f"{summary['model']}, {summary['weights']:,} of {summary['teacher_weights']:,} weights, "
        f"{summary['steps']} steps on {summary['data']}, {summary['seconds']} s"
    ]
    if "stages" in summary:
        lines.append(
            f"{'':<24}{'bytes':>11}{'of float32':>12}{'of bfloat16':>13}{'loss':>9}{'change':>10}"
            f"{'tokens/s':>10}"
        )
        for stage in (*summary["stages"], *summary.get("beside", ())):
            pace = stage["tokens_per_second"]
            lines.append(
                f"{stage['stage']:<24}{stage['bytes']:>11,}{stage['ratio_to_float32']:>11.2f}x"
                f"{stage['ratio_to_bfloat16']:>12.2f}x{stage['loss']:>9.4f}"
                f"{stage['change_per_cent']:>+9.2f}%"
                + (f"{'':>10}" if pace is None else f"{pace:>10,.0f}")
            )
        same = "bit for bit" if summary["bit_for_bit"] else "NOT bit for bit"
        lines.append(f"file: {summary['file']}, read again {same}")
    else:
        lines.append("no file was written; go on with --resume")
    return "\n".join(lines)
