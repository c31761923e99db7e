"""A hidden Markov model with Gaussian outputs, whose parameters are learned."""

import jax.numpy as jnp

from vfejax.inference.message_passing import chains, couplings, nodes
from vfejax.inference.message_passing.coordinate_ascent import MessagePassing, message_passing
from vfejax.inference.message_passing.graph import graph

__all__ = ["gaussian_hidden_markov"]


def gaussian_hidden_markov(
    length: int,
    dim: int,
    num_states: int,
    concentration: float = 1.0,
    mean_precision: float = 1e-2,
) -> MessagePassing:
    """States ``z_{t+1} ~ transition[z_t]`` and outputs ``x_t ~ N(mean_z, precision_z^{-1})``.

    Nodes ``initial [k]``, ``transition [k, k]``, ``mean``, ``precision``, ``states [t, k]`` and the
    observed ``output [t, dim]``. Rows of the transition matrix have Dirichlet priors. The belief
    about the path is exact given the others.

    Args:
        length: number of steps, t.
        dim: of an output.
        num_states: k.
        concentration: of the Dirichlet priors.
        mean_precision: of the prior of the means, ``N(0, 1 / mean_precision)``.

    Source: MacKay, Ensemble learning for hidden Markov models (1997).

    >>> gaussian_hidden_markov(100, dim=1, num_states=2).model.shapes["states"]
    ((100, 2), (2, 2))
    """
    eye, plates = jnp.eye(dim), (num_states,)
    component = nodes.multivariate_gaussian("mean", "precision")
    prior = jnp.full(num_states, concentration)
    model = graph(
        initial=nodes.dirichlet(prior),
        transition=nodes.dirichlet(prior, plates),
        mean=nodes.multivariate_gaussian(jnp.zeros(dim), mean_precision * eye, plates),
        precision=nodes.wishart(float(dim), eye, plates),
        states=chains.categorical_chain("initial", "transition", length),
        output=couplings.mixture("states", component),
    )
    return message_passing(model, ("output",))
