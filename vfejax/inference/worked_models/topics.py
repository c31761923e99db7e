"""Latent Dirichlet allocation: documents as mixtures of topics."""

import jax.numpy as jnp

from vfejax.inference.message_passing import couplings, nodes
from vfejax.inference.message_passing.coordinate_ascent import MessagePassing, message_passing
from vfejax.inference.message_passing.graph import graph

__all__ = ["latent_dirichlet_allocation"]


def latent_dirichlet_allocation(
    num_documents: int,
    num_words: int,
    num_topics: int,
    document_concentration: float = 0.1,
    topic_concentration: float = 0.1,
) -> MessagePassing:
    """Word i of document d is ``v ~ topics[z]`` with ``z ~ weights_d``.

    Nodes ``weights [d, k]``, ``topics [k, v]`` and the observed ``counts [d, v]``: how often every
    document has every word. The assignments of words to topics are not stored: their beliefs follow
    from the two others. In float32 a concentration below 0.03 meets the smallest numbers.

    Args:
        num_documents: d.
        num_words: size of the vocabulary, v.
        num_topics: k.
        document_concentration: of the Dirichlet prior of the weights.
        topic_concentration: of the Dirichlet prior of the topics.

    Source: Blei, Ng and Jordan, JMLR 3 (2003) 993, smoothed.

    >>> latent_dirichlet_allocation(100, 500, 10).schedule
    (('weights',), ('topics',))
    """
    model = graph(
        weights=nodes.dirichlet(
            jnp.full(num_topics, document_concentration), plates=(num_documents,)
        ),
        topics=nodes.dirichlet(jnp.full(num_words, topic_concentration), plates=(num_topics,)),
        counts=couplings.mixture_of_counts("weights", "topics"),
    )
    return message_passing(model, ("counts",))
