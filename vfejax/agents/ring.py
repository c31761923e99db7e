"""The alignment energy of a population that is divided among devices: every device keeps its own
receivers, and the senders are passed around.

:func:`ring` makes a method for :func:`vfejax.agents.free_energy.free_energy` from a mesh. In hop r,
device d compares its receivers with the senders of device ``d - r``, one block of pairs at a time.
A receiver's row is never whole in one place. What an energy depends on, the mass, the free energy
and the mean divergence of the row (:class:`vfejax.agents.alignment.Summary`), is joined hop by hop
as an online softmax. For the gradient the senders go round once more, and their gradients travel
with them:

    dE_i / dKL_ij = beta_ij (g_mean (1 - (KL_ij - <KL>_i)) - g_free),

with the slopes g of the energy in the summary. Value and gradient are those of one device, to
rounding.

Memory. A device holds the features of its n / p receivers, those of the n / p senders that are
there, their gradients, and one block of pairs: O(n k^2 / p + block). One round sends n feature rows
through each device, the second round twice as many.

Source: Liu, Zaharia and Abbeel, Ring attention with blockwise transformers (2023), with divergences
for logits and energies for answers.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from vfejax import rings
from vfejax.agents import _streamed, alignment
from vfejax.agents._streamed import Streamed, Sweep
from vfejax.agents.alignment import AlignmentFn, Summary
from vfejax.agents.pairwise import Method, PairFeatures
from vfejax.attention.softmax import Average, combine, exponentials, finish, log_sum_exp
from vfejax.types import Array, PyTree

__all__ = ["ring"]


def ring(mesh: Mesh, axis: str) -> Method:
    """A method that shares the agents out over the devices of one axis of a mesh.

    Args:
        mesh: its axes must be of type Auto (``jax.make_mesh(..., axis_types=...)``).
        axis: axis of the mesh along the agents; its size divides their number. (JAX places no array
            in uneven parts, so neither does a population of another size come placed.)

    Returns:
        A method for ``method=`` of :func:`vfejax.agents.free_energy.free_energy`. It takes the
        energies of :data:`vfejax.agents.alignment.ALIGNMENTS`. A block of pairs has ``block_size``
        receivers and the senders of one device.

    Raises:
        ValueError: for an axis that the mesh does not have or that is not of type Auto, and when
            called, for agents that the devices do not divide and for other energies.

    >>> from vfejax.agents.pairwise import frame_field, pair_features
    >>> from vfejax.beliefs.gaussian import Gaussian
    >>> from vfejax.geometry import irreps
    >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> agents = Gaussian(jnp.eye(3), jnp.tile(jnp.eye(3), (3, 1, 1)))
    >>> features = pair_features(agents, frame_field(jnp.zeros((3, 3)), irreps.so3((1,))))
    >>> round(float(jax.jit(ring(mesh, "data"))(features, 1.0)), 4)
    3.0
    """
    rings.check_axis(mesh, axis)
    devices = mesh.shape[axis]

    def method(
        features: PairFeatures,
        temperature: float | Array,
        /,
        *,
        coefficient: Array | None = None,
        log_weight: Array | None = None,
        alignment_fn: AlignmentFn = alignment.weighted,
        block_size: int | None = None,
        compute_dtype: jax.typing.DTypeLike | None = None,
    ) -> Array:
        num = features.receiver.shape[0]
        if num % devices:
            raise ValueError(f"the {devices} devices of {axis!r} must divide the agents, got {num}")
        size = _streamed.block_size(num // devices, block_size)
        sweep = _round_the_ring(mesh, axis, _streamed.Setting(alignment_fn, size, compute_dtype))
        return _streamed.energy_of(*features, temperature, coefficient, log_weight, sweep)

    return method


def _round_the_ring(mesh: Mesh, axis: str, setting: _streamed.Setting) -> Sweep:
    """The sweep: what a receiver pays is a function of its summary, which the ring finds."""
    of_devices, energies_of = PartitionSpec(axis), alignment.of_summary(setting.alignment_fn)
    share = partial(jax.shard_map, mesh=mesh, in_specs=of_devices, out_specs=of_devices)
    forward = share(partial(_forward, axis, setting))
    backward = share(partial(_backward, axis, setting))

    def energy(inputs: Streamed) -> Array:
        return jnp.sum(inputs.coefficient * energies_of(forward(inputs)))

    def value_and_grad(inputs: Streamed) -> tuple[Array, Streamed]:
        summary = forward(inputs)
        energies, pull_back = jax.vjp(energies_of, summary)
        (slopes,) = pull_back(inputs.coefficient)
        by_receiver, by_sender, by_weight = backward(inputs, summary, slopes)
        total = jnp.sum(inputs.coefficient * energies)
        return total, Streamed(by_receiver, by_sender, energies, by_weight)

    return Sweep(energy, value_and_grad)


def _forward(axis: str, setting: _streamed.Setting, inputs: Streamed) -> Summary:
    """Summaries ``[n / p]`` of the rows of a device's receivers."""
    num, real = inputs.receiver.shape[0], inputs.receiver.dtype
    index, receiver, _ = _streamed.blocks(inputs, setting.block_size)
    index = index + _first(jax.lax.axis_index(axis), num, index)

    def read(own: PyTree, senders: PyTree, source: Array) -> tuple[PyTree, PyTree]:
        features, log_weight = senders
        first = _first(source, num, index)

        def block(_: None, xs: PyTree) -> tuple[None, PyTree]:
            index, receiver, (average, mass) = xs
            divergence = _streamed.product(receiver, features.T, setting.compute_dtype)
            divergence, bias = _streamed.counted(divergence, log_weight, index, first)
            more = log_sum_exp(bias, alignment.rows())
            mass = jax.tree.map(lambda x: jnp.logaddexp(x, more), mass)
            return None, (combine(average, _average(divergence, bias)), mass)

        return jax.lax.scan(block, None, (index, receiver, own))[1], senders

    nothing, zero = jnp.full(index.shape, -jnp.inf, real), jnp.zeros(index.shape, real)
    average = Average(nothing, zero, zero[..., None])
    start = (average, None if inputs.log_weight is None else nothing)
    travelling = (inputs.sender, inputs.log_weight)
    (average, mass), _ = rings.each_hop(read, rings.varying(start, axis), travelling, axis)
    if mass is None:
        others = num * jax.lax.axis_size(axis) - 1
        mass = jnp.full_like(average.top, math.log(others) if others else -math.inf)
    free = jnp.where(average.top == -jnp.inf, -jnp.inf, average.top + jnp.log(average.total))
    summary = Summary(mass, free, finish(average)[..., 0])
    return jax.tree.map(lambda x: x.reshape(-1)[:num], summary)


def _first(device: Array, num: int, index: Array) -> Array:
    """Number of the first agent of a device."""
    return device.astype(index.dtype) * num


def _average(divergence: Array, bias: Array) -> Average:
    """Softmax average of the divergences of one block of pairs."""
    rows = alignment.rows()
    logits = bias - divergence
    factors = exponentials(logits, rows).factors
    top = rows.max(jax.lax.stop_gradient(logits))
    return Average(top, rows.sum(factors), rows.sum(factors * divergence)[..., None])


def _backward(
    axis: str, setting: _streamed.Setting, inputs: Streamed, summary: Summary, slopes: Summary
) -> tuple[Array, Array, Array | None]:
    """Gradients of the receivers, senders and log weights of a device, given the slopes of the
    energies in the summaries.
    """
    num, width = inputs.receiver.shape
    size = setting.block_size
    times = partial(_streamed.product, compute_dtype=setting.compute_dtype)
    index, receiver, _ = _streamed.blocks(inputs, size)
    index = index + _first(jax.lax.axis_index(axis), num, index)
    # Without neighbours the sums are -inf, as are all their terms, and the slopes are 0.
    summary = jax.tree.map(lambda x: jnp.where(summary.mass == -jnp.inf, 0.0, x), summary)
    summary = jax.tree.map(lambda x: _streamed.cut(x, size), summary)
    slopes = jax.tree.map(lambda x: _streamed.cut(x, size, copies=False), slopes)

    def add(own: Array, travelling: PyTree, source: Array) -> tuple[Array, PyTree]:
        (features, log_weight), sums = travelling
        first = _first(source, num, index)

        def block(sums: PyTree, xs: PyTree) -> tuple[PyTree, Array]:
            index, receiver, summary, slopes, by_receiver = xs
            by_sender, by_weight = sums
            divergence = times(receiver, features.T)
            divergence, bias = _streamed.counted(divergence, log_weight, index, first)
            by_divergence, by_bias = _pulled_back(divergence, bias, summary, slopes)
            by_sender = by_sender + times(by_divergence.T, receiver)
            by_weight = jax.tree.map(lambda x: x + jnp.sum(by_bias, axis=0), by_weight)
            return (by_sender, by_weight), by_receiver + times(by_divergence, features)

        items = (index, receiver, summary, slopes, own)
        sums, own = jax.lax.scan(block, sums, items)
        return own, ((features, log_weight), sums)

    senders = (inputs.sender, inputs.log_weight)
    own, sums = jax.tree.map(jnp.zeros_like, (receiver, senders))
    by_receiver, (_, sums) = rings.each_hop(add, own, (senders, sums), axis)
    return by_receiver.reshape(-1, width)[:num], *rings.shift(sums, 1, axis)


def _pulled_back(
    divergence: Array, bias: Array, summary: Summary, slopes: Summary
) -> tuple[Array, Array]:
    """Slopes of the energies of a block of pairs in its divergences and in its log weights."""
    mass, free, mean = (x[:, None] for x in summary)
    by_mass, by_free, by_mean = (x[:, None] for x in slopes)
    nothing = free == -jnp.inf  # all divergences of the row are infinite
    beta = jnp.exp(bias - divergence - jnp.where(nothing, 0.0, free))
    # Energies that do not read the mean have slope 0 in it, also where it is not finite.
    apart = jnp.where(by_mean == 0.0, 0.0, by_mean * (1.0 - (divergence - mean)))
    by_divergence = beta * (apart - by_free)
    return by_divergence, beta * by_mean - by_divergence + by_mass * jnp.exp(bias - mass)
