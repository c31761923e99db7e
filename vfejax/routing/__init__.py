"""Mixtures of experts: choice of experts, dispatch that drops nothing, balance of their load.

The functions of the three modules are attributes of this folder too.
"""

from vfejax.routing import balance, choice, dispatch
from vfejax.routing.balance import (
    RouterLosses,
    RouterSums,
    expert_usage,
    load_balance_loss,
    router_losses,
    router_sums,
    router_z_loss,
)
from vfejax.routing.choice import Routing, gumbel_top_k, top_k
from vfejax.routing.dispatch import (
    expert_feed_forward,
    feed_forward_blocks,
    feed_forward_ragged,
)

__all__ = [
    "RouterLosses",
    "RouterSums",
    "Routing",
    "balance",
    "choice",
    "dispatch",
    "expert_feed_forward",
    "expert_usage",
    "feed_forward_blocks",
    "feed_forward_ragged",
    "gumbel_top_k",
    "load_balance_loss",
    "router_losses",
    "router_sums",
    "router_z_loss",
    "top_k",
]
