"""A linear state space whose dynamics, outputs and noise are learned."""

import jax.numpy as jnp

from vfejax.inference.message_passing import chains, couplings, nodes
from vfejax.inference.message_passing.coordinate_ascent import MessagePassing, message_passing
from vfejax.inference.message_passing.graph import graph

__all__ = ["linear_state_space"]


def linear_state_space(
    num_outputs: int, num_states: int, length: int, broad: float = 1e-5
) -> MessagePassing:
    """``x_{t+1} ~ N(A x_t, 1)``, ``y_mt ~ N(c_m . x_t, 1 / noise)`` with unknown A, C and noise.

    Nodes ``dynamics_relevance [k]``, ``dynamics [k, k]``, ``output_relevance [k]``, ``outputs [m,
    k]``, ``noise``, ``states [t, k]`` and the observed ``data [m, t]``. Rows of A and C have a
    precision for every state, so states that are not needed vanish. The noise of the states is 1:
    their scale is that of C. The belief about the states is exact given the others.

    Missing entries have a weight of 0: ``weights={"data": mask [m, t]}``.

    Args:
        num_outputs: m.
        num_states: the largest number of states, k.
        length: number of steps, t.
        broad: shape and rate of the gamma priors.

    Source: Beal, Variational Algorithms for Approximate Bayesian Inference (2003), chapter 5.

    >>> linear_state_space(8, 4, 1000).model.shapes["states"]
    ((1000, 4), (1000, 4, 4), (4, 4))
    """
    plates = (num_states,)
    model = graph(
        dynamics_relevance=nodes.gamma(broad, broad, plates),
        dynamics=nodes.relevance("dynamics_relevance", plates),
        output_relevance=nodes.gamma(broad, broad, plates),
        outputs=nodes.relevance("output_relevance", (num_outputs,)),
        noise=nodes.gamma(broad, broad),
        states=chains.gaussian_chain(
            jnp.zeros(num_states), 1e-3 * jnp.eye(num_states), "dynamics", jnp.ones(plates), length
        ),
        data=couplings.gain("outputs", "states", "noise"),
    )
    return message_passing(model, ("data",))
