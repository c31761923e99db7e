"""Programs for CUDA without a GPU: a public function is called in the example of its docstring;
what it was called with is recorded there, and lowered afterwards.
"""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Call", "Recorder", "complaint", "complaints", "public_functions", "unexpected"]

# How a complaint begins, and why it stands.
DISTANCE = (
    "double precision",
    "hops around a ring over its circumference are floats of the default precision, rounded then",
)
WHOLE = ("double precision", "scalars and sums of a whole tree are of the default precision")
MCTX = ("double precision", "mctx scales noise that it draws in the default precision")
HOST = ("TracerArrayConversionError", "computed on the host, with NumPy")
MESH = ("its example does not call it", "it is a part of what spectral.mesh.over_mesh returns")
EXCEPTIONS = {
    "vfejax.attention.blockwise.blockwise()": DISTANCE,
    "vfejax.attention.pallas.pallas()": DISTANCE,
    "vfejax.attention.ring.ring()": DISTANCE,
    "vfejax.attention.streaming.toroidal_window().step": DISTANCE,
    "vfejax.attention.toroidal.toroidal_attention": DISTANCE,
    "vfejax.compression.low_rank.factorize": HOST,
    "vfejax.compression.low_rank.spectrum": HOST,
    "vfejax.compression.storage.parts": HOST,
    "vfejax.inference.elbo.accuracy_minus_complexity": ("double precision", "of its example"),
    "vfejax.inference.pomdp.growth.grow_states": ("ConcretizationTypeError", "arrays change shape"),
    "vfejax.inference.predictive_coding.learning_gradient": ("double precision", "of its example"),
    "vfejax.inference.worked_models.regression.logistic_regression": (
        "double precision",
        "of its example",
    ),
    "vfejax.inference.tree_search.tree_search": MCTX,
    "vfejax.inference.tree_search.tree_search_planner()": MCTX,
    "vfejax.koopman.operators.forward_backward": HOST,
    "vfejax.koopman.spectrum.pseudospectrum": HOST,
    "vfejax.koopman.spectrum.residuals": HOST,
    "vfejax.models.phi.swap.swap_attention": HOST,
    "vfejax.models.toroidal": DISTANCE,
    "vfejax.models.toroidal.function.attention_fn()": DISTANCE,
    "vfejax.models.toroidal.model.build().apply": DISTANCE,
    "vfejax.models.toroidal.torus.attend": DISTANCE,
    "vfejax.problems.belief_graph.reachable_beliefs": HOST,
    "vfejax.problems.belief_mdp.evaluate": HOST,
    "vfejax.problems.belief_mdp.solve": HOST,
    "vfejax.problems.gymnasium_worlds.act_in": ("ConcretizationTypeError", "a loop on the host"),
    "vfejax.problems.lorenz.simulate": HOST,
    "vfejax.problems.sensor_network.mean_observations": HOST,
    "vfejax.training.evaluate.evaluator()": ("ConcretizationTypeError", "a loop on the host"),
    "vfejax.spectral.sharded.left_resolvent_diagonal": MESH,
    "vfejax.spectral.sharded.resolvent_diagonal": MESH,
    "vfejax.spectral.sharded.tridiagonal_solve": MESH,
    "vfejax.spectral.sharded.tridiagonal_sweep": MESH,
    **{
        f"vfejax.training.momentum.{name}().{part}": WHOLE
        for name in ("leapfrog", "nesterov", "relativistic")
        for part in ("init", "update")
    },
}
"""Public functions, and models, that are no programs for CUDA in single precision."""

# Results in double precision, and arithmetic on arrays of it: what only moves numbers is left out,
# and so are scalars, such as the numbers of Python before they are rounded.
DOUBLE = re.compile(
    r"^.*(?:@main.*-> .*f64"
    r"|= stablehlo\.(?!constant|convert|broadcast|select|reshape|transpose|while|.*slice|concat)"
    r".*\dxf64>).*$",
    re.MULTILINE,
)


class Call(NamedTuple):
    """A function and what it was called with, arrays of JAX by their shapes and dtypes."""

    function: Callable[..., Any]
    args: tuple
    kwargs: dict[str, Any]


def _abstract(leaf: Any) -> Any:
    """An array of JAX as its shape and dtype; NumPy's double precision as JAX would read it."""
    if isinstance(leaf, jax.Array):
        aval = jax.typeof(leaf)
        return jax.ShapeDtypeStruct(aval.shape, aval.dtype)
    if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype in (np.float64, np.complex128):
        return leaf.astype(np.float32 if leaf.dtype == np.float64 else np.complex64)
    return leaf


def _is_iterator(node: Any) -> bool:
    return isinstance(node, Iterator)


def _at_once(function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """What the function returns: from one program where there is one from arrays to arrays, since
    to compile its operations one by one takes three times as long.
    """
    leaves, tree = jax.tree.flatten((args, kwargs), is_leaf=_is_iterator)
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    if not arrays or any(isinstance(x, jax.core.Tracer) or _is_iterator(x) for x in leaves):
        return function(*args, **kwargs)

    known: list[Callable[[list[jax.Array]], Any]] = []

    def program(arrays: list[jax.Array]) -> list[jax.Array]:
        given = iter(arrays)
        whole = [next(given) if isinstance(leaf, jax.Array) else leaf for leaf in leaves]
        args, kwargs = tree.unflatten(whole)
        found, rebuild = _split(function(*args, **kwargs), arrays)
        known.append(rebuild)
        return found

    try:
        found = jax.jit(program)(arrays)
        return known[0](found, arrays)
    except Exception:  # no program: the function itself says so, if it is wrong
        return function(*args, **kwargs)


def _split(result: Any, arguments: list[jax.Array]) -> tuple[list[jax.Array], Callable[..., Any]]:
    """The arrays that a traced function makes, and what puts the result together from them and from
    the arguments: those that it returns as they are, and what is no array, stay what they are.
    """
    leaves, tree = jax.tree.flatten(result)
    found = [x for x in leaves if isinstance(x, jax.Array) and not any(x is y for y in arguments)]
    if not found or not all(isinstance(x, jax.Array) or _is_plain(x) for x in leaves):
        raise TypeError("it makes no arrays, or functions, or objects that could hold arrays")
    places = [next((i for i, y in enumerate(arguments) if x is y), None) for x in leaves]

    def rebuild(found: list[jax.Array], arguments: list[jax.Array]) -> Any:
        made = iter(found)

        def whole(leaf: Any, place: int | None) -> Any:
            if place is not None:
                return arguments[place]
            return next(made) if isinstance(leaf, jax.Array) else leaf

        return tree.unflatten([whole(x, place) for x, place in zip(leaves, places, strict=True)])

    return found, rebuild


def _is_plain(leaf: Any) -> bool:
    """Whether it is a number, a word, or a dataclass of such, as the options of models are."""
    if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
        return all(_is_plain(value) for value in jax.tree.leaves(vars(leaf)))
    return isinstance(leaf, bool | int | float | complex | str | np.generic | np.ndarray)


class Recorded:
    """A function that keeps what it was first called with. It equals the function itself, which may
    be the key of a table.
    """

    def __init__(self, recorder: "Recorder", name: str, function: Callable[..., Any]) -> None:
        self._recorder, self._name, self._function = recorder, name, function
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = _at_once(self._function, args, kwargs)
        if self._name not in self._recorder.calls:
            inputs = jax.tree.map(_abstract, (args, kwargs), is_leaf=_is_iterator)
            call = Call(self._function, *inputs)
            self._recorder.calls[self._name] = call
        return self._recorder.wrap_result(self._name, result)

    def __eq__(self, other: object) -> bool:
        return other is self or other is self._function

    def __hash__(self) -> int:
        return hash(self._function)


class Recorder:
    """The first call of every function that it wraps, by name, and of the functions that those
    return, such as the steps of an integrator.
    """

    def __init__(self) -> None:
        self.calls: dict[str, Call] = {}

    def wrap(self, name: str, function: Callable[..., Any]) -> Recorded:
        """The function, which records its first call."""
        return Recorded(self, name, function)

    def wrap_result(self, name: str, result: Any) -> Any:
        """A function, or a tuple of functions, that records as well; anything else as it is."""
        if inspect.isfunction(result):
            return self.wrap(f"{name}()", result)
        if isinstance(result, tuple) and hasattr(result, "_fields"):
            functions = {
                field: self.wrap(f"{name}().{field}", value)
                for field, value in result._asdict().items()
                if inspect.isfunction(value)
            }
            return result._replace(**functions) if functions else result
        return result


Program = Callable[[list[jax.Array]], list[jax.Array]]


def _program(call: Call) -> tuple[Program, list[jax.ShapeDtypeStruct]]:
    """The call as a function of its arrays, and these."""
    leaves, tree = jax.tree.flatten((call.args, call.kwargs))
    is_array = [isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves]

    def program(arrays: list[jax.Array]) -> list[jax.Array]:
        given = iter(arrays)
        whole = [next(given) if x else leaf for x, leaf in zip(is_array, leaves, strict=True)]
        args, kwargs = tree.unflatten(whole)
        result = jax.tree.leaves(call.function(*args, **kwargs))
        return [x for x in result if isinstance(x, jax.Array)]

    return program, [leaf for x, leaf in zip(is_array, leaves, strict=True) if x]


def _is_float(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, np.inexact)


def _with_gradient(program: Program) -> Program:
    """The program, and the gradient of the sum of its results by all its arguments."""

    def both(arrays: list[jax.Array]) -> list[jax.Array]:
        def total(floats: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
            given = iter(floats)
            results = program([next(given) if _is_float(x) else x for x in arrays])
            parts = [jnp.sum(jnp.real(x).astype(np.float32)) for x in results if _is_float(x)]
            return functools.reduce(jnp.add, parts), results

        gradient, results = jax.grad(total, has_aux=True)([x for x in arrays if _is_float(x)])
        return gradient + results

    return both


def _has_own_derivative(jaxpr: Any) -> bool:
    """Whether a program calls a function with a derivative of the package's own, at any depth."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        # What such a primitive of jax 0.12 calls is inside an object that only its text shows.
        if "custom_vjp" in (str(equation) if name == "call_hi_primitive" else name):
            return True
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns") and _has_own_derivative(inner):
                return True
    return False


def _traced(program: Program, arrays: list[jax.ShapeDtypeStruct], gradient: bool) -> Any:
    """The program as JAX traces it: with its gradient where a derivative is the package's own.

    What JAX differentiates itself becomes a program wherever the function does.
    """
    traced = jax.jit(program).trace(arrays)
    if not gradient or not _has_own_derivative(traced.jaxpr.jaxpr):
        return traced
    try:
        return jax.jit(_with_gradient(program)).trace(arrays)
    except Exception:  # it has no derivative by all its arguments
        return traced


def complaint(call: Call, *, gradient: bool = True) -> str:
    """Why the call is no program for CUDA in float32; empty when it is one.

    Double precision is enabled, so that a constant of the function's own would show.
    """
    inputs = (*call.args, *call.kwargs.values())
    if inspect.isgeneratorfunction(call.function) or any(map(_is_iterator, inputs)):
        return ""  # a loop on the host, over what another gives, or that another reads
    program, arrays = _program(call)
    single = any(leaf.dtype in (np.float32, np.complex64) for leaf in arrays)
    with jax.enable_x64(True):
        try:
            traced = _traced(program, arrays, gradient)
            text = traced.lower(lowering_platforms=("cuda",)).as_text()
        except Exception as error:
            if isinstance(error, NameError) and "axis name" in str(error):
                return ""  # a part of a program over several devices, and lowered with it
            return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    if foreign := re.findall(r"custom_call @(\w*(?:callback|lapack)\w*)", text):
        return f"not for CUDA: {', '.join(sorted(set(foreign)))}"
    wide = DOUBLE.search(text) if single else None
    return f"double precision: {wide.group().strip()}" if wide else ""


def unexpected(name: str, wrong: str) -> str:
    """The complaint about a function of that full name, if it is none of the exceptions; empty when
    all is as it should be.
    """
    if name not in EXCEPTIONS:
        return wrong
    expected, _ = EXCEPTIONS[name]
    return "" if wrong.startswith(expected) else wrong or "it is none of the EXCEPTIONS"


def public_functions(module: Any) -> dict[str, Callable[..., Any]]:
    """The functions in ``__all__`` that the module defines itself, whatever wraps them."""
    return {
        name: value
        for name in getattr(module, "__all__", ())
        if callable(value := getattr(module, name))
        and not inspect.isclass(value)
        and getattr(value, "__module__", None) == module.__name__
    }


def complaints(module: Any, recorder: Recorder, complete: bool) -> dict[str, str]:
    """What is wrong with the public functions of a module, by name.

    Args:
        module: whose examples ran with the functions of the recorder.
        recorder: what they were called with.
        complete: whether every public function must have been called, if the module is public.

    Returns:
        What is wrong, by name; checks of arguments, which read concrete values, are left out.
    """
    if "._" in module.__name__:
        return {}
    wrong = {name: complaint(call) for name, call in recorder.calls.items()}
    if complete:
        missing = public_functions(module).keys() - wrong.keys()
        wrong |= dict.fromkeys(missing, "its example does not call it")
    found = {name: unexpected(f"{module.__name__}.{name}", text) for name, text in wrong.items()}
    return {name: text for name, text in found.items() if text and not name.startswith("check")}
