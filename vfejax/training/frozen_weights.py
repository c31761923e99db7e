"""Training of some of the weights: trees divided into trained and fixed leaves, and joined again.

A tree that was taken apart has None in the places of the other part. To JAX and optax these are no
leaves: nothing is computed or kept for them.
"""

from typing import Any

import jax

from vfejax.types import PyTree, SequenceModel

__all__ = ["fix", "merge", "split"]


def split(params: PyTree, trained: PyTree | None) -> tuple[PyTree, PyTree]:
    """The weights that learn, and the others.

    Args:
        params: the weights.
        trained: True for those that learn, a tree like ``params``; None when all do.

    Returns:
        Two trees like ``params``, each with None in the places of the other; the second is None
        when all learn.

    Raises:
        ValueError: for a tree of another structure.

    >>> import jax.numpy as jnp
    >>> split({"a": 1.0, "b": 2.0}, {"a": True, "b": False})
    ({'a': 1.0, 'b': None}, {'a': None, 'b': 2.0})
    """
    if trained is None:
        return params, None
    names, wanted = (
        {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (trained, params)
    )
    if names != wanted:
        name = sorted(names ^ wanted)[0]
        raise ValueError(f"trained must be a tree like params, but {name} is in one of them alone")
    learning = jax.tree.map(lambda x, learns: x if learns else None, params, trained)
    return learning, jax.tree.map(lambda x, learns: None if learns else x, params, trained)


def merge(learning: PyTree, fixed: PyTree) -> PyTree:
    """The weights that :func:`split` took apart.

    >>> merge({"a": 1.0, "b": None}, {"a": None, "b": 2.0})
    {'a': 1.0, 'b': 2.0}
    """
    if fixed is None:
        return learning

    def present(first: Any, second: Any) -> Any:
        return second if first is None else first

    return jax.tree.map(present, learning, fixed, is_leaf=lambda x: x is None)


def fix(model: SequenceModel, fixed: PyTree) -> SequenceModel:
    """The model as a function of the weights that learn alone: ``apply`` takes those of
    :func:`split`.

    >>> from vfejax.types import Prediction
    >>> product = SequenceModel(
    ...     None, lambda w, batch, key: Prediction(w["a"] * w["b"], {}, {}), None, None, None
    ... )
    >>> fix(product, {"a": None, "b": 3.0}).apply({"a": 2.0, "b": None}, None, None).logits
    6.0
    """
    if fixed is None:
        return model

    def apply(learning: PyTree, *inputs: Any) -> Any:
        return model.apply(merge(learning, fixed), *inputs)

    return model._replace(apply=apply)
