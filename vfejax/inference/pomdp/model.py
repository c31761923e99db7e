"""Discrete models of an agent and its world: factors, modalities, controls and preferences.

p(o_m | s) = A_m[o_m, s_deps]        p(s_f' | s, u) = B_f[s_f', s_deps, u_f]
p(s_f) = D_f[s_f]                    preferences C_m[o_m] = log p(o_m | C), in nats
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.beliefs.categorical import check_probabilities
from vfejax.numerics import as_floating, common_dtype
from vfejax.types import Array

__all__ = ["POMDP", "check_beliefs", "check_model", "contract"]

Dependencies = Sequence[Sequence[int]]


@jax.tree_util.register_pytree_with_keys_class
class POMDP:
    """A discrete model: a pytree of arrays whose dependencies are static.

    Shapes are checked, numbers are not, since they may be traced: pass a model of your own once to
    :func:`check_model`, which names a column that does not sum to 1.

    Args:
        A: one array for each modality, ``[o_m, *s_deps]``: probabilities of observations, which sum
            to 1 over the first axis.
        B: one array for each factor, ``[s_f, *s_deps, u_f]``: probabilities of its next state; the
            last axis has length 1 for a factor that nothing controls.
        C: log preferences for each modality, ``[o_m]``, or ``[t, o_m]`` for the steps of a policy,
            in nats. Only differences matter for what is planned.
        D: probabilities of the first state for each factor, ``[s_f]``.
        E: probabilities of policies before anything is known (habits), ``[p]``, or None for equal
            ones.
        A_dependencies: the factors that each modality depends on, in the order of the axes; by
            default all of them.
        B_dependencies: the factors that each transition depends on; by default its own.

    Raises:
        ValueError: when shapes do not fit each other.

    >>> see, stay = jnp.eye(2), jnp.eye(2)[..., None]
    >>> model = POMDP([see], [stay], [jnp.zeros(2)], [jnp.array([0.5, 0.5])])
    >>> model.num_states, model.num_controls, model.num_observations
    ((2,), (1,), (2,))
    """

    A: tuple[Array, ...]
    B: tuple[Array, ...]
    C: tuple[Array, ...]
    D: tuple[Array, ...]
    E: Array | None
    A_dependencies: tuple[tuple[int, ...], ...]
    B_dependencies: tuple[tuple[int, ...], ...]

    def __init__(
        self,
        A: Sequence[Array],
        B: Sequence[Array],
        C: Sequence[Array],
        D: Sequence[Array],
        E: Array | None = None,
        *,
        A_dependencies: Dependencies | None = None,
        B_dependencies: Dependencies | None = None,
    ):
        arrays = {}
        for name, given in {"A": A, "B": B, "C": C, "D": D}.items():
            if given is None or hasattr(given, "ndim"):
                got = "None" if given is None else "one array"
                raise ValueError(f"{name} must be a list of arrays, got {got}")
            arrays[name] = [as_floating(x, f"{name}[{i}]") for i, x in enumerate(given)]
        habits = None if E is None else as_floating(E, "E")
        every = [x for group in arrays.values() for x in group]
        dtype = common_dtype(*every, *(() if habits is None else (habits,)))
        self.A, self.B, self.C, self.D = (
            tuple(x.astype(dtype) for x in arrays[name]) for name in "ABCD"
        )
        self.E = None if habits is None else habits.astype(dtype)
        factors = tuple(range(len(self.D)))
        self.A_dependencies = _dependencies(A_dependencies, [factors] * len(self.A), "A", factors)
        self.B_dependencies = _dependencies(B_dependencies, [(f,) for f in factors], "B", factors)
        self._check_shapes()

    def _check_shapes(self) -> None:
        if len(self.B) != len(self.D):
            raise ValueError(f"B and D need one array per factor, got {len(self.B)}, {len(self.D)}")
        if not self.A or len(self.C) != len(self.A):
            raise ValueError(
                f"A and C need one array per modality, one at least, got {len(self.A)}, "
                f"{len(self.C)}"
            )
        for f, start in enumerate(self.D):
            _check_shape(start.ndim == 1 and start.size > 0, f"D[{f}]", "[s], not empty", start)
        for m, likelihood in enumerate(self.A):
            states = [self.num_states[f] for f in self.A_dependencies[m]]
            fits = list(likelihood.shape[1:]) == states and likelihood.size > 0
            _check_shape(fits, f"A[{m}]", _axes("o", states), likelihood)
            seen = likelihood.shape[0]
            fits = self.C[m].ndim in (1, 2) and self.C[m].shape[-1] == seen
            _check_shape(fits, f"C[{m}]", f"[{seen}] or [t, {seen}]", self.C[m])
        for f, transition in enumerate(self.B):
            states = [self.num_states[d] for d in (f, *self.B_dependencies[f])]
            fits = list(transition.shape[:-1]) == states and transition.size > 0
            _check_shape(fits, f"B[{f}]", _axes(*states, "u"), transition)
        if self.E is not None:
            _check_shape(self.E.ndim == 1, "E", "[p]", self.E)

    @property
    def num_states(self) -> tuple[int, ...]:
        """States of each factor."""
        return tuple(x.shape[0] for x in self.D)

    @property
    def num_controls(self) -> tuple[int, ...]:
        """Values of the control of each factor; 1 for a factor that nothing controls."""
        return tuple(x.shape[-1] for x in self.B)

    @property
    def num_observations(self) -> tuple[int, ...]:
        """Values of each modality."""
        return tuple(x.shape[0] for x in self.A)

    def tree_flatten_with_keys(self) -> tuple[list, Any]:
        names = ("A", "B", "C", "D", "E")
        children = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in names]
        return children, (self.A_dependencies, self.B_dependencies)

    @classmethod
    def tree_unflatten(cls, dependencies: Any, children: Any) -> "POMDP":
        # Leaves may be anything while JAX works on a tree, so nothing is checked here.
        model = object.__new__(cls)
        model.A, model.B, model.C, model.D, model.E = children
        model.A_dependencies, model.B_dependencies = dependencies
        return model

    def replace(self, **arrays: Any) -> "POMDP":
        """The same model with some of ``A, B, C, D, E`` replaced."""
        unknown = sorted(arrays.keys() - set("ABCDE"))
        if unknown:
            raise ValueError(f"a POMDP has A, B, C, D and E, got {unknown[0]!r}")
        found = {name: arrays.get(name, getattr(self, name)) for name in "ABCDE"}
        return POMDP(
            **found, A_dependencies=self.A_dependencies, B_dependencies=self.B_dependencies
        )

    def __repr__(self) -> str:
        return (
            f"POMDP(states={self.num_states}, controls={self.num_controls}, "
            f"observations={self.num_observations})"
        )


def _dependencies(
    given: Dependencies | None, default: Dependencies, name: str, factors: tuple[int, ...]
) -> tuple[tuple[int, ...], ...]:
    rows = default if given is None else given
    if not all(isinstance(row, Iterable) for row in rows):
        raise ValueError(f"{name}_dependencies must be a list of lists of factors, got {rows}")
    found = tuple(tuple(int(f) for f in row) for row in rows)
    if len(found) != len(default):
        raise ValueError(f"{name}_dependencies must have {len(default)} entries, got {len(found)}")
    for i, row in enumerate(found):
        if len(set(row)) < len(row) or not set(row) <= set(factors):
            raise ValueError(
                f"{name}_dependencies[{i}] must name different factors of 0 to {len(factors) - 1}, "
                f"got {list(row)}"
            )
    return found


def _axes(*sizes: Any) -> str:
    flat = [str(s) for size in sizes for s in (size if isinstance(size, list) else [size])]
    return f"[{', '.join(flat)}]"


def _check_shape(fits: bool, name: str, wanted: str, array: Array) -> None:
    if not fits:
        raise ValueError(f"{name} must have shape {wanted}, got {list(array.shape)}")


def check_model(model: POMDP) -> None:
    """Refuse a model whose numbers cannot be right, on concrete arrays.

    Args:
        model: concrete.

    Raises:
        ValueError: when columns of A or B, or D or E, are not probabilities that sum to 1, or C is
            NaN or infinite above; it names the array and the entry.

    >>> check_model(POMDP([jnp.eye(2)], [jnp.eye(2)[..., None]], [jnp.zeros(2)], [jnp.ones(2) / 2]))
    """
    for name in "ABD":
        for i, array in enumerate(getattr(model, name)):
            check_probabilities(array, f"{name}[{i}]", axis=0)
    if model.E is not None:
        check_probabilities(model.E, "E")
    for m, preferences in enumerate(model.C):
        values = np.asarray(preferences)
        wrong = np.isnan(values) | (values == np.inf)
        if wrong.any():
            where = [int(i) for i in np.argwhere(wrong)[0]]
            raise ValueError(f"C[{m}]{where} must be a log preference, got {preferences[*where]}")


def contract(tensor: Array, weights: Mapping[int | tuple[int, ...], Array]) -> Array:
    """``sum`` of a tensor over some of its axes, with weights.

    Args:
        tensor: ``[...]``.
        weights: for an axis of length n, an array ``[n]``; for a tuple of axes, one of their
            lengths.

    Returns:
        The tensor without those axes.

    >>> contract(jnp.array([[1.0, 2.0], [3.0, 4.0]]), {1: jnp.array([0.5, 0.5])}).tolist()
    [1.5, 3.5]
    """
    operands: list[Any] = [tensor, list(range(tensor.ndim))]
    gone: set[int] = set()
    for axes, array in weights.items():
        where = [axes] if isinstance(axes, int) else list(axes)
        operands += [array, where]
        gone.update(where)
    kept = [axis for axis in range(tensor.ndim) if axis not in gone]
    return jnp.einsum(*operands, kept, precision=jax.lax.Precision.HIGHEST)


def check_beliefs(model: POMDP, beliefs: Sequence[Array], name: str) -> tuple[Array, ...]:
    """Beliefs in the model's dtype, one per factor.

    Args:
        model: the model.
        beliefs: probabilities for each factor, ``[s_f]``.
        name: what an error should call them.

    Raises:
        ValueError: when there is not one ``[s_f]`` for each factor.

    >>> model = POMDP([jnp.eye(2)], [jnp.eye(2)[..., None]], [jnp.zeros(2)], [jnp.ones(2) / 2])
    >>> check_beliefs(model, [jnp.array([1, 0])], "beliefs")[0].tolist()
    [1.0, 0.0]
    """
    if len(beliefs) != len(model.D):
        raise ValueError(
            f"{name} must have {len(model.D)} entries, one per factor, got {len(beliefs)}"
        )
    found = tuple(as_floating(q, f"{name}[{f}]") for f, q in enumerate(beliefs))
    for f, q in enumerate(found):
        _check_shape(q.shape == model.D[f].shape, f"{name}[{f}]", f"[{model.D[f].size}]", q)
    return tuple(q.astype(model.D[0].dtype) for q in found)
