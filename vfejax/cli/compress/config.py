"""Options of ``vfejax compress``: their meaning, their defaults, their limits."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from vfejax.cli import options as configuration
from vfejax.cli.limits import check, check_counts, check_numbers, check_run
from vfejax.cli.options import RunOptions
from vfejax.errors import UserError
from vfejax.models.table import MODELS
from vfejax.runs.artefact import SUFFIX

__all__ = ["HALF", "SIZES", "CompressConfig", "check_values", "parse"]

SIZES = ("experts", "hidden", "heads", "dim", "layers")
"""Options of a model that compression can make smaller."""
_BITS = (2, 3, 4, 5, 6, 7, 8)
HALF = 16
_FILE = "model" + SUFFIX

if TYPE_CHECKING:
    _ModelName = str
else:
    _ModelName = Literal[tuple(MODELS)]


@dataclass(frozen=True)
class CompressConfig(RunOptions):
    """Compress a trained model into one small file: prune it, distil it, round it to few bits.

    The student begins as the pruned teacher, or fresh with --student. It learns from the teacher
    and from the text, at the end with rounded weights. The file is read again in a fresh process,
    and evaluated there.
    """

    SESSION: ClassVar[tuple[str, ...]] = (*RunOptions.SESSION, "file")
    CHANGEABLE: ClassVar[tuple[str, ...]] = ("checkpoint_every", "final_windows", "beside")
    INPUTS: ClassVar[tuple[str, ...]] = ("run",)

    run: Path = Path("runs/train")
    """Directory of the teacher, which vfejax train wrote and which stays as it is."""
    out: Path = Path("runs/compress")
    """Run directory to create. If it ends in .safetensors, it names the file of the compressed
    model, and the run directory is the name without the ending.
    """
    resume: bool = False
    """Continue the run in --out from its newest checkpoint, with its own settings; a --file is
    named again.
    """
    file: Path | None = None
    """Where the compressed model is written; by default model.safetensors in --out."""
    seed: int = 0
    """Seed of batches, and of the weights of a fresh student."""

    bits: int = 4
    """Bits for each weight of the kernels, 2 to 8; or 16 for float16, without rounding to a grid.
    Routers, recurrences, norms and other small parts are float16 in any case.
    """
    embedding_bits: int = 8
    """Bits for each weight of the embedding and of other tables, 2 to 8."""
    group: int = 64
    """Number of weights that share a scale, which takes 16 bits; 0 for a whole column."""

    experts: int | None = None
    """Experts that stay in each block; by default half of the teacher's."""
    hidden: int | None = None
    """Hidden units that stay in each feed-forward layer; all by default."""
    heads: int | None = None
    """Heads of a fresh student. A pruned one has as many as --dim leaves."""
    dim: int | None = None
    """Width of the residual stream that stays, with its share of the heads; all by default."""
    layers: int | None = None
    """Blocks that stay; all by default."""
    operators: tuple[int, ...] = ()
    """Blocks of a ResNet-BK, numbered from 0, that become linear operators on delayed streams,
    fitted on the windows of calibration.
    """
    operator_rank: int = 32
    """Rank of the operators: (4 + 1) dim rank multiplications a token."""
    expert_score: Literal["contribution", "activation", "frequency"] = "contribution"
    """Score by which experts are kept: the norm of their output on the tokens they read, weighted
    by the router; that norm without the weight; or how many tokens they read.
    """
    merge: bool = False
    """Merge similar experts instead of removing some."""
    low_rank: int = 0
    """Replace kernels by two factors of this rank, where that makes them smaller; 0 for none."""
    sparsity: float = 0.0
    """Share of the weights of every kernel that are set to 0, those that contribute least to its
    outputs.
    """
    calibration_windows: int = 96
    """Windows of training text on which the scores of pruning are measured."""

    student: _ModelName | None = None
    """Model of a fresh student, in place of the pruned teacher. --experts, --hidden, --heads, --dim
    and --layers are its options; the others are the teacher's, if it is of the same kind, or its
    defaults.
    """
    order: Literal["prune-first", "quantise-first"] = "prune-first"
    """Prune, distil, round; or round before pruning, and distil with rounded weights throughout."""
    beside: Path | None = None
    """Run directory of another compression of the same teacher, such as one in the other --order,
    whose file is shown beside this one.
    """
    steps: int = 300
    """Updates of the student; 0 for none."""
    rounded_share: float = 0.3
    """Share of the updates, at their end, that learn with rounded weights."""
    temperature: float = 2.0
    """Divides the logits of teacher and student where they are compared."""
    weight: float = 0.7
    """Weight of the comparison with the teacher, from 0 (the text alone) to 1 (the teacher
    alone).
    """
    hidden_weight: float = 0.0
    """Weight of the comparison of hidden states after the blocks, in nats."""

    batch_size: int = 0
    """Sequences per update; 0 for as many as the teacher's."""
    learning_rate: float = 1e-3
    """Largest learning rate of AdamW, reached after the warm-up."""
    warmup_steps: int = 30
    """Updates over which the learning rate rises; it then falls along a cosine."""
    final_rate: float = 0.1
    """Learning rate at the end, as a fraction of the largest."""
    weight_decay: float = 0.1
    """Decay of weight matrices, relative to the learning rate."""
    clip_norm: float = 1.0
    """Gradients whose global norm exceeds this are scaled down to it."""
    beta2: float = 0.99
    """Decay rate of AdamW's average of squared gradients."""

    eval_every: int = 100
    """Updates between evaluations, a multiple of --log-every."""
    eval_windows: int = 200
    """Windows of --length tokens, evenly spaced in the validation text, that an evaluation reads; 0
    for all.
    """
    final_windows: int = 20_000
    """Windows, evenly spaced in the validation text, by which the stages are judged; 0 for all."""


def check_values(config: CompressConfig) -> None:
    """Raise a UserError that names the option and its limits for the first value that is out of
    them.
    """
    check_run(config)
    _check_places(config)
    listed = ", ".join(map(str, _BITS))
    check(config.bits in (*_BITS, HALF), "bits", config.bits, f"one of {listed}, {HALF}")
    value = config.embedding_bits
    check(value in _BITS, "embedding-bits", value, f"one of {listed}")
    counts = ["group", "low_rank", "batch_size", "warmup_steps", "eval_windows", "final_windows"]
    check_counts(config, counts, 0)
    check_counts(config, ["calibration_windows", "eval_every", "operator_rank"], 1)
    for name in SIZES:
        if getattr(config, name) is not None:
            check_counts(config, [name], 1)
    check_numbers(config, ["learning_rate", "clip_norm", "temperature"], positive=True)
    check_numbers(config, ["weight_decay", "hidden_weight"], positive=False)
    for name in ("rounded_share", "weight", "final_rate"):
        value = getattr(config, name)
        check(0 <= value <= 1, name, value, "between 0 and 1")
    check(0 <= config.sparsity < 1, "sparsity", config.sparsity, "at least 0 and below 1")
    check(0 <= config.beta2 < 1, "beta2", config.beta2, "at least 0 and below 1")
    fits = config.eval_every % config.log_every == 0
    check(fits, "eval-every", config.eval_every, f"a multiple of --log-every {config.log_every}")
    _check_together(config)


def _check_places(config: CompressConfig) -> None:
    """Refuse what would replace the teacher, or could not be told from a directory."""
    assert config.file is not None  # parse has set it
    check(config.out.name != SUFFIX, "out", config.out, f"a name with more than {SUFFIX}")
    check(config.file.suffix == SUFFIX, "file", config.file, f"a name that ends in {SUFFIX}")
    if os.path.realpath(config.out) == os.path.realpath(config.run):
        raise UserError(
            f"--out {config.out}: is the run directory of the teacher, which stays as it is; give "
            "another name"
        )


def _check_together(config: CompressConfig) -> None:
    """Options that exclude one another."""
    if config.student is None:
        check(config.heads is None, "heads", config.heads, "left out without --student")
    else:
        check(not config.merge, "merge", True, "left out with --student")
        check(config.steps > 0, "steps", config.steps, "at least 1 with --student")
        check(not config.operators, "operators", config.operators, "left out with --student")
    if config.low_rank:
        check(config.sparsity == 0, "sparsity", config.sparsity, "0 with --low-rank")


def parse(arguments: Sequence[str]) -> CompressConfig:
    """Flags over the configuration file (or, with --resume, over the run's own configuration) over
    the defaults; a file in --out taken apart into --file and the run's directory.
    """
    program = "vfejax compress"
    flags = configuration.parse(CompressConfig, arguments, program=program)
    if flags.out.suffix == SUFFIX:
        _check_single(flags)
        arguments = [*arguments, f"--out={flags.out.with_suffix('')}", f"--file={flags.out}"]
    config = configuration.parse_run(CompressConfig, arguments, program=program)
    if config.out.suffix == SUFFIX:  # the configuration file says so
        _check_single(config)
        out, file = config.out.with_suffix(""), config.out
        return dataclasses.replace(config, out=out, file=file)
    return dataclasses.replace(config, file=config.file or config.out / _FILE)


def _check_single(config: CompressConfig) -> None:
    check(config.file is None, "file", config.file, f"left out when --out ends in {SUFFIX}")
