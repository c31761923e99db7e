"""The student: the pruned teacher or a fresh model, and how its weights will be stored."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.cli.compress.config import HALF, SIZES, CompressConfig
from vfejax.cli.compress.teacher import Teacher
from vfejax.cli.options import flag
from vfejax.cli.train.model import check_size
from vfejax.compression import low_rank, sparse, storage
from vfejax.compression.quantize import Scheme
from vfejax.compression.rules import rule
from vfejax.compression.storage import Form
from vfejax.data.batches import Batches
from vfejax.data.files import one_line
from vfejax.errors import UserError
from vfejax.models import table
from vfejax.models.blocks import OptionError
from vfejax.models.koopman.config import KoopmanConfig
from vfejax.models.koopman.conversion import converted
from vfejax.models.pruning import pruned, structure
from vfejax.models.resnet_bk.config import ResNetBKConfig
from vfejax.models.resnet_bk.merging import merged
from vfejax.runs.seeds import random_key
from vfejax.types import PyTree, SequenceModel

__all__ = ["Student", "dense", "prepare"]

_LARGEST = float(np.finfo(np.float16).max)
_KERNEL, _TABLE = 2, 3  # bits by which the rule's two kinds of leaves are told apart
_HALVES = {"left", "right"}
_KOOPMAN = "koopman"


class Student(NamedTuple):
    """What learns from the teacher.

    Attributes:
        name: of its model.
        options: of its model.
        model: the model, which reads :func:`dense` weights.
        params: its first weights; a kernel in two factors is a dict of ``left`` and ``right``.
        forms: how its weights will be kept, by name of a leaf.
        ranks: by name of a kernel in two factors, how many columns the first has.
        sizes: the options that are smaller than the teacher's.
    """

    name: str
    options: Any
    model: SequenceModel
    params: PyTree
    forms: dict[str, Form]
    ranks: dict[str, int]
    sizes: dict[str, int]

    def read(self, params: PyTree, rounded: bool) -> PyTree:
        """What the model reads of weights: rounded as the file will have them, or not."""
        forms = self.forms if rounded else _unrounded(self.forms)
        return dense(storage.as_stored(params, forms))


def dense(params: PyTree) -> PyTree:
    """The weights with kernels in place of their factors."""

    def is_pair(node: Any) -> bool:
        return isinstance(node, dict) and node.keys() == _HALVES

    def whole(node: Any) -> Any:
        return low_rank.product(low_rank.Factors(**node)) if is_pair(node) else node

    return jax.tree.map(whole, params, is_leaf=is_pair)


def _unrounded(forms: Mapping[str, Form]) -> dict[str, Form]:
    """Forms that round nothing: weights that were left out stay away."""
    return {name: Form(sparse=True) for name, form in forms.items() if form.sparse}


def prepare(config: CompressConfig, teacher: Teacher) -> Student:
    """The student before it learns.

    Raises:
        UserError: for options that do not fit the model, naming them.
    """
    try:
        name, options, params, sizes = _first(config, teacher)
        model = _build(teacher, name, options)
    except OptionError as error:
        raise UserError(_unfit(config, error)) from error
    except ValueError as error:
        option = "--run" if config.student is None else "--student"
        raise UserError(f"{option}: {one_line(error)}") from error
    if params is None:
        params = jax.jit(model.init)(random_key(config.seed))
    params, ranks, masked = _thinned(config, teacher, name, model, params)
    forms = _forms(config, params, ranks, masked)
    return Student(name, options, model, params, forms, ranks, sizes)


def _unfit(config: CompressConfig, error: OptionError) -> str:
    """What there is to say of an option of the student that does not fit; for one that this command
    does not have, the sizes that it has do not fit it.
    """
    own = SIZES if config.student is not None else (*SIZES, "operators", "operator_rank")
    if error.name in own:
        return f"{flag(error.name)} {error.value}: must be {error.requirement}"
    student = "--run" if config.student is None else f"--student {config.student}"
    listed = ", ".join(map(flag, SIZES))
    return (
        f"{student}: has {error.name} {error.value}, which must be {error.requirement}; choose "
        f"among {listed} what fits it"
    )


def _no_such(option: str, name: str) -> str:
    return f"{flag(option)}: {name} has no such option; leave it out"


def _build(teacher: Teacher, name: str, options: Any) -> SequenceModel:
    size, settings = teacher.corpus.vocabulary.size, teacher.config
    counts = np.bincount(teacher.corpus.train.tokens, minlength=size)
    dtype = jnp.dtype(settings.compute)
    model = table.build(name, options, size, settings.length, dtype, counts)
    check_size(model, f"--student {name}", settings.length, options)
    return model


def _first(
    config: CompressConfig, teacher: Teacher
) -> tuple[str, Any, PyTree | None, dict[str, int]]:
    """Name, options and weights of the student (None: fresh ones), and what is smaller in it."""
    wanted = {n: getattr(config, n) for n in SIZES if getattr(config, n) is not None}
    name, options = teacher.config.model, teacher.options
    if config.student is not None:
        options = options if config.student == name else table.MODELS[config.student].config()
        for option in wanted:
            if not hasattr(options, option):
                raise UserError(_no_such(option, config.student))
        return config.student, dataclasses.replace(options, **wanted), None, wanted
    params = teacher.params
    if config.order == "quantise-first":
        forms = _forms(config, params, {}, frozenset())
        params = jax.jit(partial(storage.as_stored, forms=forms))(params)
    params, options, sizes = _pruned(config, teacher, params, wanted)
    if config.operators:
        name = _KOOPMAN
        params, options = _linear(config, teacher, params, options)
    return name, options, params, sizes


def _pruned(
    config: CompressConfig, teacher: Teacher, params: PyTree, wanted: dict[str, int]
) -> tuple[PyTree, Any, dict[str, int]]:
    """Weights and options of the teacher without what matters least, and the smaller options."""
    name, options = teacher.config.model, teacher.options
    parts = {} if table.MODELS[name].structure is None else structure(name, options)
    if "experts" in parts:
        wanted = {"experts": max(options.experts // 2, 1)} | wanted
    sizes = {n: size for n, size in wanted.items() if size != getattr(options, n, None)}
    if config.merge and "experts" not in parts.keys() & sizes.keys():
        raise UserError(f"--merge: no experts of this {name} would go; leave it out")
    if not sizes:
        return params, options, {}
    for option in sizes.keys() - parts.keys():
        if not hasattr(options, option):
            raise UserError(_no_such(option, name))
        raise UserError(
            f"{flag(option)}: cannot be made smaller in a trained {name}; give --student {name} "
            "for a fresh one that is"
        )
    found = _activations(config, teacher, name, teacher.model, params)
    if config.merge and "experts" in sizes:
        params, options = merged(options, params, found, sizes["experts"])
        rest = {n: size for n, size in sizes.items() if n != "experts"}
        if not rest:
            return params, options, sizes
        smaller = _build(teacher, name, options)
        found = _activations(config, teacher, name, smaller, params)
    else:
        rest = sizes
    params, options = _compiled(
        lambda params, found: pruned(
            name, options, params, found, rest, experts=config.expert_score
        ),
        params,
        found,
    )
    return params, options, sizes


def _compiled(smaller_fn: Callable[..., tuple[PyTree, Any]], *arrays: PyTree) -> tuple[PyTree, Any]:
    """Weights and options of a smaller model, in one program."""
    known = []

    def weights(*arrays: PyTree) -> PyTree:
        params, options = smaller_fn(*arrays)
        known.append(options)
        return params

    params = jax.jit(weights)(*arrays)
    return params, known[0]


def _linear(
    config: CompressConfig, teacher: Teacher, params: PyTree, options: Any
) -> tuple[PyTree, KoopmanConfig]:
    """The student with blocks that are operators, fitted on windows of the training text."""
    name = teacher.config.model
    if not isinstance(options, ResNetBKConfig) or isinstance(options, KoopmanConfig):
        raise UserError(f"--operators: {name} has no such option; leave it out")
    rank = config.operator_rank
    if rank > options.dim:
        raise OptionError("operator_rank", rank, f"at most dim {options.dim}")
    model = _build(teacher, name, options)
    return _compiled(
        lambda params, tokens: converted(
            options, model, params, tokens, config.operators, rank=rank
        ),
        params,
        _calibration(config, teacher),
    )


def _calibration(config: CompressConfig, teacher: Teacher) -> np.ndarray:
    """Windows of the training text, ``[1, m, n]``."""
    tokens, settings = teacher.corpus.train.tokens, teacher.config
    windows = Batches(tokens, config.calibration_windows, settings.length, config.seed).at(0, 1)
    return windows[:, :, :-1]


def _activations(
    config: CompressConfig, teacher: Teacher, name: str, model: SequenceModel, params: PyTree
) -> dict[str, jax.Array]:
    """Statistics of what the model's kernels read, on windows of the training text."""
    if model.activations is None:
        raise UserError(
            f"--low-rank, --sparsity: {name} does not show what its kernels read; leave them out"
        )
    return jax.jit(model.activations)(params, _calibration(config, teacher)[0])


def _thinned(
    config: CompressConfig, teacher: Teacher, name: str, model: SequenceModel, params: PyTree
) -> tuple[PyTree, dict[str, int], frozenset[str]]:
    """The weights with kernels in factors, or with zeros; ranks of the factors, and names of the
    leaves with zeros.
    """
    if not config.low_rank and not config.sparsity:
        return params, {}, frozenset()
    found = _activations(config, teacher, name, model, params)
    leaves = storage.leaf_names(params)
    kernels = {leaf for leaf, kind in _kinds(config, params).items() if kind == _KERNEL}
    known = sorted(kernels & found.keys())
    if config.sparsity:
        masks = {
            leaf: sparse.keep_largest(
                sparse.activation_aware(leaves[leaf], found[leaf]), config.sparsity
            )
            for leaf in known
        }
        return sparse.masked(params, masks), {}, frozenset(masks)
    rank, ranks = config.low_rank, {}
    for leaf in known:
        rows, columns = leaves[leaf].shape[-2:]
        if rank * (rows + columns) >= rows * columns:
            continue
        ranks[leaf] = rank
        params = _replaced(params, leaf.split("/"), leaves[leaf], rank, found[leaf])
    if not ranks:
        raise UserError(f"--low-rank {rank}: no kernel becomes smaller by it; give a smaller rank")
    return params, ranks, frozenset()


def _replaced(params: PyTree, path: list[str], kernel: Any, rank: int, moments: Any) -> PyTree:
    """The tree with two factors in place of a kernel."""
    first, *rest = path
    if rest:
        return params | {first: _replaced(params[first], rest, kernel, rank, moments)}
    return params | {first: low_rank.factorize(kernel, rank, moments)._asdict()}


def _kinds(config: CompressConfig, params: PyTree) -> dict[str, int | None]:
    """Which leaves the rule takes for kernels, which for tables, and which it keeps."""
    kinds = rule(params, Scheme(_KERNEL, config.group), embedding=Scheme(_TABLE, config.group))
    return {name: leaf.scheme and leaf.scheme.bits for name, leaf in kinds.items()}


def _forms(
    config: CompressConfig, params: PyTree, ranks: Mapping[str, int], masked: frozenset[str]
) -> dict[str, Form]:
    """How the leaves are kept: as the rule says, and float16 for what it keeps exact."""
    whole = jax.eval_shape(dense, params)
    table_scheme = Scheme(config.embedding_bits, config.group)
    leaves = rule(whole, Scheme(min(config.bits, 8), config.group), embedding=table_scheme)
    forms = {}
    for name, x in storage.leaf_names(params).items():
        kernel = name.rpartition("/")[0]  # what a factor of low rank stands for
        leaf = leaves[kernel if kernel in ranks else name]
        is_sparse = name in masked
        if leaf.scheme is not None and config.bits != HALF:
            forms[name] = Form(leaf.scheme, leaf.axis, is_sparse)
        elif np.all(np.abs(np.asarray(x, np.float64)) <= _LARGEST):
            forms[name] = Form(sparse=is_sparse, half=True)
        elif is_sparse:
            forms[name] = Form(sparse=True)
    return forms
