"""A run read back: its settings, its metrics, its summary, and the language model that it trained.

``vfejax.runs.load(path)`` is the function of this module.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.data import tokenizers
from vfejax.data.files import one_line, read_errors
from vfejax.data.population_arrays import load_npz
from vfejax.data.tensors import checkpoint_files
from vfejax.data.tokenizers import Tokenizer
from vfejax.errors import UserError
from vfejax.runs import artefact, checkpoint, directory, inputs, toml_values
from vfejax.runs.events import Event, read_events
from vfejax.runs.metrics import read_metrics
from vfejax.types import PyTree, SequenceModel

if TYPE_CHECKING:
    from vfejax.models.table import Entry

__all__ = ["BEST", "Run", "load", "settings"]

BEST = "best"  # folder of a run that holds the weights with the smallest validation loss


class Run(NamedTuple):
    """What a run left.

    Attributes:
        path: its directory.
        config: its settings, as ``config.toml`` has them.
        metrics: the columns of ``metrics.csv``, ``[rows]`` each; empty until the first logged step.
        summary: what ``summary.json`` says; None until the run has ended.
        model: the language model it trained; None, as the fields below, for any other run, and for
            one that has not been evaluated yet.
        params: its best weights.
        vocabulary: the tokenizer it reads with.
        step: number of updates after which those weights were saved.
        valid_loss: their validation loss, in nats per token.
        events: groups of agents that formed and came apart, of a simulation with meta-agents.
        episode: arrays of the last episode of agents that plan; None for any other run, and until
            its end.
    """

    path: Path
    config: dict[str, Any]
    metrics: dict[str, np.ndarray]
    summary: dict[str, Any] | None
    model: SequenceModel | None = None
    params: PyTree = None
    vocabulary: Tokenizer | None = None
    step: int | None = None
    valid_loss: float | None = None
    events: tuple[Event, ...] = ()
    episode: dict[str, np.ndarray] | None = None


def load(path: str | os.PathLike) -> Run:
    """Read a run, whichever command made it. It may still be going.

    Args:
        path: the directory of the run, or the file of a compressed model that ``vfejax compress``
            wrote.

    Returns:
        The run. Of the options of models, only those of the one it trained are read. A file has
        neither metrics nor a summary. A run of :func:`vfejax.runs.loop.run` has settings and
        metrics; :func:`vfejax.runs.loop.restore` reads its state.

    Raises:
        UserError: when it is no run, when a file is damaged, and when its weights are float64
            while JAX is not in 64-bit mode; the message names file and remedy.

    >>> import tempfile
    >>> from vfejax.runs import directory, metrics
    >>> place = Path(tempfile.mkdtemp()) / "run"
    >>> with directory.create(place, {"steps": 10}) as held:
    ...     metrics.append_metrics(held, ("step", "energy"), [(0, 2.5), (10, 1.5)])
    >>> run = load(place)  # vfejax.runs.load(place)
    >>> run.config["steps"], run.metrics["energy"].tolist(), run.summary
    (10, [2.5, 1.5], None)
    """
    path = Path(path)
    if artefact.is_artefact(path):
        return _compressed(path)
    config = directory.read_config(path)
    events, episode = tuple(read_events(path)), _episode(path)
    run = Run(path, config, _metrics(path), _summary(path), events=events, episode=episode)
    # The model of `vfejax filter` is no language model.
    return run if "model" not in config or "horizon" in config else _with_model(run)


def settings(path: str | os.PathLike) -> dict[str, Any]:
    """The settings of a run, or of the run that a compressed model came from.

    Raises:
        UserError: when it is neither.
    """
    return (
        artefact.read(path)[0].config if artefact.is_artefact(path) else directory.read_config(path)
    )


def _metrics(path: Path) -> dict[str, np.ndarray]:
    file = path / "metrics.csv"
    with read_errors(file):
        written = file.exists() and file.stat().st_size > 0
    # Before its first line is complete, the header of a run that is going may be half there.
    if not written or b"\n" not in _first_bytes(file):
        return {}
    return read_metrics(path)


def _episode(path: Path) -> dict[str, np.ndarray] | None:
    file = path / "episode.npz"
    return load_npz(file) if file.exists() else None


def _first_bytes(file: Path) -> bytes:
    with read_errors(file), open(file, "rb") as opened:
        return opened.readline()


def _summary(path: Path) -> dict[str, Any] | None:
    file = path / "summary.json"
    if not file.exists():
        return None
    with read_errors(file):
        content = file.read_bytes()
    try:
        summary = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{file} is not readable: {one_line(error)}; remove it, and vfejax --resume writes it "
            "again"
        ) from error
    return summary if isinstance(summary, dict) else {"summary": summary}


def _with_model(run: Run) -> Run:
    """The run with its language model, when weights are there."""
    place, config = run.path / "config.toml", run.config
    if config["model"] == "phi":
        return _with_phi(run)
    vocabulary_file = run.path / "vocabulary.json"
    if checkpoint.latest_step(run.path / BEST) is None or not vocabulary_file.exists():
        return run  # not evaluated yet, or of a program of one's own
    _check_known(config["model"], place)
    vocabulary = tokenizers.load(vocabulary_file)
    model, template = _built(config, vocabulary, place)
    params, meta = checkpoint.restore(run.path / BEST, template)
    return run._replace(
        model=model,
        params=params,
        vocabulary=vocabulary,
        step=int(meta["step"]),
        valid_loss=float(meta["valid_loss"]),
    )


def _check_known(name: Any, place: Path) -> None:
    # Here, so that flax is not imported for a run that has no model.
    from vfejax.models import table

    if not isinstance(name, str) or name not in table.MODELS:
        known = ", ".join(table.MODELS)
        own = "; vfejax.runs.artefact.weights reads the file of a model of your own"
        raise UserError(
            f"{place}: model {name!r:.60} is not known to this vfejax, which has {known}"
            + ("" if place.suffix == ".toml" else own)
        )


def _built(
    config: Mapping[str, Any], vocabulary: Tokenizer, place: Path
) -> tuple[SequenceModel, PyTree]:
    """The model that settings describe, and shapes and types of its weights."""
    from vfejax.models import table

    name, dtype = config["model"], _dtype(config, place)
    options = _options(table.MODELS[name], config.get(table.field_name(name), {}), place, name)
    try:
        model = table.build(name, options, vocabulary.size, _length(config, place), dtype)
        return model, jax.eval_shape(model.init, jax.random.key(0))
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(
            f"{place}: these options make no model ({one_line(error)}); put back the values that "
            "the run was made with"
        ) from error


def _compressed(path: Path) -> Run:
    """The model of a file of ``vfejax compress``, with its weights."""
    content, arrays = artefact.read(path)
    _check_known(content.config.get("model"), path)
    model, template = _built(content.config, content.vocabulary, path)
    return Run(
        path=path,
        config=content.config,
        metrics={},
        summary=None,
        model=model,
        params=artefact.weights(path, content, arrays, template),
        vocabulary=content.vocabulary,
        step=content.step,
        valid_loss=content.valid_loss,
    )


def _with_phi(run: Run) -> Run:
    """The run with the pretrained model that it trained a part of: the weights that learned are
    those of the run, the others are read from the model's own directory.
    """
    from vfejax.models.phi import trainable
    from vfejax.models.phi.config import Swap
    from vfejax.models.phi.directory import load_swapped
    from vfejax.training import frozen_weights

    place, config = run.path / "config.toml", run.config
    vocabulary_file, source = run.path / "vocabulary.json", config.get("phi")
    if checkpoint.latest_step(run.path / BEST) is None or not vocabulary_file.exists():
        return run
    if not isinstance(source, str):
        raise UserError(f"{place}: 'phi' must be the directory of a model, got {source!r}")
    inputs.check(run.path, {"phi": inputs.Files(Path(source), tuple(checkpoint_files(source)))})
    swap = toml_values.build(Swap, config.get("swap", {}), f"{place} [swap]")
    try:
        model, params = load_swapped(source, swap, _length(config, place), _dtype(config, place))
    except ValueError as error:
        raise UserError(
            f"{place}: these options do not fit {source} ({one_line(error)}); put back the values "
            "that the run was made with"
        ) from error
    learning, fixed = frozen_weights.split(params, trainable(model, params))
    learned, meta = checkpoint.restore(run.path / BEST, learning)
    return run._replace(
        model=model,
        params=frozen_weights.merge(learned, fixed),
        vocabulary=tokenizers.load(vocabulary_file),
        step=int(meta["step"]),
        valid_loss=float(meta["valid_loss"]),
    )


def _options(entry: "Entry", mapping: Any, place: Path, name: str) -> Any:
    """The options of the run's model over their defaults."""
    if not isinstance(mapping, Mapping):
        raise UserError(f"{place}: '{name}' must be a table")
    return toml_values.build(entry.config, mapping, f"{place} [{name}]")


def _length(config: Mapping[str, Any], place: Path) -> int:
    length = config.get("length")
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise UserError(f"{place}: 'length' must be an integer of at least 1, got {length!r}")
    return length


def _dtype(config: Mapping[str, Any], place: Path) -> jnp.dtype:
    """The arithmetic of the run; its weights are of no use to JAX in another mode."""
    compute = config.get("compute")
    if compute not in ("float32", "bfloat16", "float64"):
        raise UserError(f"{place}: 'compute' must be float32, bfloat16 or float64, got {compute!r}")
    if compute == "float64" and jnp.result_type(float) != jnp.float64:
        name = place.parent if place.suffix == ".toml" else place
        raise UserError(
            f"{name} was computed in float64; allow it before the first computation with "
            "jax.config.update('jax_enable_x64', True), or set JAX_ENABLE_X64=1"
        )
    return jnp.dtype(compute)
