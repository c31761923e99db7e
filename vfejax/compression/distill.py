"""Distillation: a student learns from the predictions of a teacher and from the text.

Per token that counts, in nats,

    (1 - w) CE + w T^2 KL(p_T || q_T) + w_h |P h_q - h_p|^2 / |h_p|^2,

where ``p_T`` and ``q_T`` are the softmax of the teacher's and of the student's logits divided by
the temperature T. At a large T the divergence in the second term is half the mean square of the
difference of centred logits, whatever T is: the factor ``T^2`` keeps its gradient at the scale of
the first. The last term compares residual streams after blocks of the same relative depth.

Source: Hinton, Vinyals and Dean, Distilling the knowledge in a neural network (2015), for the first
two terms; Romero et al., FitNets (2015), for a learned map P between streams of unequal width.
Dividing by the teacher's mean square, so that the term has no unit, is ours.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfejax.compression.matching import MatchSums, match_sums, projections, relative_error
from vfejax.numerics import at_least_float32, cast_like
from vfejax.types import Array, Batch, Layers, Prediction, PyTree, SequenceModel

__all__ = ["Lesson", "distillation", "soft_nats", "trainable"]

_SeeFn = Callable[..., tuple[Prediction, Layers | None]]


class Lesson(NamedTuple):
    """Sums over the tokens that count.

    Attributes:
        student: the statistics of the student's prediction; its losses and diagnostics times the
            number of tokens, for a student without statistics.
        hard: ``-log q(target)``, in nats.
        soft: ``T^2 KL(p_T || q_T)``, in nats.
        tokens: how many count.
        hidden: of residual streams; None where they are not compared.
        resolvent: of diagonals of resolvents; None where they are not compared.
    """

    student: PyTree
    hard: Array
    soft: Array
    tokens: Array
    hidden: MatchSums | None = None
    resolvent: MatchSums | None = None


def soft_nats(
    student: Array, teacher: Array, temperature: Array | float = 2.0, counts: Array | None = None
) -> Array:
    """``T^2 KL(softmax(teacher / T) || softmax(student / T))`` of every token, in nats.

    Args:
        student: logits ``[..., v]``; narrower than float32 is widened first.
        teacher: logits ``[..., v]``, of any precision. -inf rules a token of the vocabulary out.
        temperature: T, positive. In float32 the value is right to about ``3e-7 T^2`` nats, a small
            difference of large numbers, and its gradient to ``1e-7 T`` of itself.
        counts: True at tokens that count, ``[...]``; None when all do.

    Returns:
        ``[...]``, 0 where a token does not count.

    Raises:
        ValueError: for vocabularies of different sizes.

    >>> logits = jnp.asarray([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    >>> nats = soft_nats(jnp.zeros((2, 3)), logits, temperature=1.0)
    >>> [round(float(x), 3) for x in nats]
    [0.266, 0.0]
    """
    if student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            "student and teacher must have the same vocabulary, got "
            f"{student.shape[-1]} and {teacher.shape[-1]} tokens"
        )
    real = at_least_float32(student.dtype)
    if counts is not None:  # here too: a gradient of 0 times infinity would be NaN
        student = _where_counted(student, counts)
        teacher = _where_counted(teacher, counts)
    student, teacher = student.astype(real), teacher.astype(real)
    temperature = cast_like(temperature, student)
    q = jax.nn.log_softmax(student / temperature, axis=-1)
    p = jax.nn.log_softmax(teacher / temperature, axis=-1)
    excess = jnp.where(jnp.isneginf(p), jnp.zeros((), real), p - q)
    return temperature**2 * jnp.sum(jnp.exp(p) * excess, axis=-1)


def _where_counted(logits: Array, counts: Array) -> Array:
    return jnp.where(counts[..., None], logits, jnp.zeros((), logits.dtype))


def trainable(params: PyTree, constants: tuple[str, ...] = ()) -> PyTree:
    """Which weights learn in distillation: for ``trained`` of
    :func:`vfejax.training.step.trainer`.

    Args:
        params: those of :func:`distillation`, or their shapes.
        constants: names of arrays of the student that never learn.

    Returns:
        A tree like ``params``: False for the teacher and for constants, True for all others.

    >>> trainable({"student": {"w": 1.0, "alive": 1.0}, "teacher": {"w": 1.0}}, ("alive",))
    {'student': {'alive': False, 'w': True}, 'teacher': {'w': False}}
    """

    def learns(path: tuple, _: object) -> bool:
        names = [jax.tree_util.keystr((key,), simple=True) for key in path]
        return names[0] != "teacher" and names[-1] not in constants

    return jax.tree_util.tree_map_with_path(learns, params)


def distillation(
    student: SequenceModel,
    teacher: SequenceModel,
    *,
    temperature: float = 2.0,
    weight: float = 0.7,
    hidden_weight: float = 0.0,
    resolvent_weight: float = 0.0,
    padding: int | None = None,
) -> SequenceModel:
    """The student as a model whose loss, with any trainer, is that of distillation.

    Its weights are ``{"student": ..., "teacher": ...}``, and ``"projection"`` where layers of
    unequal width are compared. To train, give :func:`vfejax.training.step.trainer` the tree of
    :func:`trainable`; the student that is kept is ``params["student"]``. The teacher is
    deterministic, has no gradient, and is not run without targets: then this is the student.

    The cross-entropy that a trainer reports is the student's. What it lacks to the loss stands in
    terms: ``distillation = w (T^2 KL - CE)``, ``hidden``, ``resolvent``, and the student's own.

    Args:
        student: the model that learns, of any family. A pruned teacher, or any weights that it
            should begin with, are ``student._replace(init=lambda key: params)``.
        teacher: the model that it learns from, of any family with the same vocabulary; given
            trained weights in the same way.
        temperature: T, positive. A student that begins near its teacher, such as a pruned one,
            learned a little more at 2, and one that begins afresh much more at 1.
        weight: w, from 0 (the text alone) to 1 (the teacher alone).
        hidden_weight: of the mean over pairs of layers of ``|P h_q - h_p|^2 / |h_p|^2``, in nats.
        resolvent_weight: of the same for the modulus of the diagonal of resolvents, for two
            ResNet-BK: how much each head keeps of what it remembers, token by token.
        padding: the target that does not count; None when all do. The same as the trainer's.

    Raises:
        ValueError: for a number out of range, or layers that a model does not show; at trace time
            for different vocabularies, or tokens that the teacher cannot read.

    >>> import optax
    >>> from vfejax.models import table
    >>> from vfejax.training.step import trainer
    >>> small = table.MODELS["transformer"].tiny
    >>> teacher = table.build("transformer", small, 11, length=8)
    >>> student = table.build("gpt-modern", table.MODELS["gpt-modern"].tiny, 11, length=8)
    >>> model = distillation(student, teacher)
    >>> learns = trainable(jax.eval_shape(model.init, jax.random.key(0)))
    >>> method = trainer(model, optax.sgd(0.1), jax.random.key(1), trained=learns)
    >>> state = method.init(jax.random.key(0))
    >>> state, info = jax.jit(method.step)(state, jnp.ones((2, 9), int))
    >>> list(info.parts.losses)
    ['distillation']
    """
    _check_range("temperature", temperature, above=0)
    _check_range("weight", weight, most=1)
    weights = {"hidden": hidden_weight, "resolvent": resolvent_weight}
    for name, value in weights.items():
        _check_range(f"{name}_weight", value)
    compared = {name: float(value) for name, value in weights.items() if value}
    roles = {"student": student, "teacher": teacher}
    see = {role: _seeing(model, role, compared) for role, model in roles.items()}
    weight = float(weight)  # NumPy's own numbers would widen the loss
    setting = _Setting(student, see, tuple(compared), temperature, padding)

    def init(key: Array) -> PyTree:
        other = jax.random.fold_in(key, 1)
        params = {"student": student.init(key), "teacher": teacher.init(other)}
        if not compared:
            return params
        learned = _projections(setting, params, jax.random.fold_in(key, 2))
        return params | ({"projection": learned} if learned else {})

    def apply(params: PyTree, batch: Batch | Array, key: Array | None = None) -> Prediction:
        batch = batch if isinstance(batch, Batch) else Batch(jnp.asarray(batch))
        if batch.targets is None:
            return student.apply(params["student"], batch, key)
        _check_length(teacher, batch)
        logits, lesson = _lesson(setting, params, batch, key)
        return Prediction(logits, *summarize(lesson), lesson)

    def summarize(lesson: Lesson) -> tuple[dict[str, Array], dict[str, Array]]:
        tokens = jnp.maximum(lesson.tokens, 1)
        losses, diagnostics = _own_terms(student, lesson.student, tokens)
        soft, hard = lesson.soft / tokens, lesson.hard / tokens
        terms = {"distillation": weight * (soft - hard)}
        for name, value in compared.items():
            terms[name] = value * relative_error(getattr(lesson, name))
        return losses | terms, diagnostics | {"teacher_divergence_nats": soft}

    return SequenceModel(
        init,
        apply,
        _of_student(student.init_decode),
        _of_student(student.decode),
        student.max_length,
        summarize,
        read=student.read and _of_student(student.read),
    )


def _of_student(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the student's weights, given those of both."""
    return lambda params, *inputs: function(params["student"], *inputs)


class _Setting(NamedTuple):
    """How a lesson is given.

    Attributes:
        student: the model that learns.
        see: ``(params, batch, key) -> (prediction, layers)`` of student and teacher.
        compared: names of the layers that are compared.
        temperature: T.
        padding: the target that does not count.
    """

    student: SequenceModel
    see: dict[str, _SeeFn]
    compared: tuple[str, ...]
    temperature: float
    padding: int | None


def _projections(setting: _Setting, params: PyTree, key: Array) -> PyTree:
    """First maps between layers of unequal width."""
    token, roles = Batch(jnp.zeros((1, 1), jnp.int32)), setting.see
    seen = {role: jax.eval_shape(roles[role], params[role], token, None)[1] for role in roles}
    pairs = {name: tuple(_layers(seen[r], name, r) for r in roles) for name in setting.compared}
    return projections(pairs, key)


def _lesson(
    setting: _Setting, params: PyTree, batch: Batch, key: Array | None
) -> tuple[Array, Lesson]:
    """What the student says of a batch with targets, and how far that is from what it should."""
    said, shown = setting.see["student"](params["student"], batch, key)
    asked, known = batch._replace(targets=None), jax.lax.stop_gradient(params["teacher"])
    told, aims = jax.lax.stop_gradient(setting.see["teacher"](known, asked, None))
    counts, maps = _counts(batch, setting.padding), params.get("projection", {})
    matches = {
        name: match_sums(
            _layers(shown, name, "student"),
            _layers(aims, name, "teacher"),
            counts,
            maps.get(name),
        )
        for name in setting.compared
    }
    soft = jnp.sum(soft_nats(said.logits, told.logits, setting.temperature, counts))
    hard = jnp.sum(_nats(said.logits, jnp.asarray(batch.targets), counts))
    tokens = jnp.sum(counts, dtype=soft.dtype)
    sums = _own_sums(setting.student, said, tokens)
    return said.logits, Lesson(sums, hard, soft, tokens, **matches)


def _seeing(model: SequenceModel, role: str, compared: dict[str, float]) -> _SeeFn:
    """``apply``, with what the blocks did where layers are compared."""
    if not compared:
        return lambda *inputs: (model.apply(*inputs), None)
    if model.watch is None:
        name = next(iter(compared))
        raise ValueError(f"{name}_weight needs a {role} that shows its blocks (watch), got none")
    return model.watch


def _layers(seen: Layers | None, name: str, role: str) -> Any:
    """One of the things that blocks show."""
    found = getattr(seen, name)
    if found is None:
        raise ValueError(f"{name}_weight needs a {role} with a {name} in its blocks, got none")
    return found


def _nats(logits: Array, targets: Array, counts: Array) -> Array:
    """``-log q(target)`` where it counts."""
    logits = _where_counted(logits, counts)
    log_q = jax.nn.log_softmax(logits.astype(at_least_float32(logits.dtype)), axis=-1)
    nats = -jnp.take_along_axis(log_q, targets[..., None], axis=-1)[..., 0]
    return jnp.where(counts, nats, jnp.zeros((), nats.dtype))


def _counts(batch: Batch, padding: int | None) -> Array:
    """Predictions that count: those of a real token that follows a real one."""
    targets = jnp.asarray(batch.targets)
    counts = jnp.ones(targets.shape, bool) if padding is None else targets != padding
    return counts if batch.mask is None else counts & batch.mask


def _own_sums(student: SequenceModel, said: Prediction, tokens: Array) -> PyTree:
    """What the student's own terms are made of; means over tokens become sums."""
    if student.summarize is not None:
        return said.statistics
    means = (said.losses, said.diagnostics)
    return jax.tree.map(lambda x: jnp.asarray(x).astype(tokens.dtype) * tokens, means)


def _own_terms(
    student: SequenceModel, sums: PyTree, tokens: Array
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Losses and diagnostics of the student itself."""
    if student.summarize is not None:
        return student.summarize(sums)
    return jax.tree.map(lambda x: x / tokens, sums)


def _check_length(teacher: SequenceModel, batch: Batch) -> None:
    """Refuse tokens that the teacher cannot read."""
    number = jnp.shape(batch.tokens)[-1]
    if teacher.max_length is not None and number > teacher.max_length:
        raise ValueError(f"the teacher reads at most {teacher.max_length} tokens, got {number}")


def _check_range(
    name: str, value: float, above: float | None = None, most: float | None = None
) -> None:
    """Refuse a number that is not finite, or outside its range; from 0 unless ``above``."""
    low = value > above if above is not None else value >= 0
    if low and value <= (math.inf if most is None else most) and value < math.inf:
        return
    lower = f"above {above}" if above is not None else "at least 0"
    upper = "finite" if most is None else f"at most {most}"
    raise ValueError(f"{name} must be {lower} and {upper}, got {value}")
