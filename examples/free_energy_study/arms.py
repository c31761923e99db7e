"""The arms of the study: models of the table and the options that are not their defaults."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from vfejax.models import table

__all__ = ["ABLATIONS", "ARMS", "MODELS", "PARAMETERS", "Arm", "count", "options_of"]

PARAMETERS = 806_656  # of gpt-modern at its defaults
VOCABULARY = 67  # tokens of tiny Shakespeare by characters


class Arm(NamedTuple):
    """A model and its options; with ``sized`` the feed-forward width is the one that brings the
    parameters nearest to ``PARAMETERS``.
    """

    model: str
    options: Mapping[str, Any] = MappingProxyType({})
    sized: bool = True


MODELS: dict[str, Arm] = {
    "transformer": Arm("transformer", sized=False),
    "gpt-modern": Arm("gpt-modern", sized=False),
    "resnet-bk": Arm("resnet-bk", sized=False),
    "vfe": Arm("vfe"),
    "pure-fep": Arm("pure-fep"),
}
"""What is compared."""

ABLATIONS: dict[str, Arm] = {
    "vfe, 0 steps": Arm("vfe", {"steps": 0, "adds": "mean"}),
    "vfe, 2 steps": Arm("vfe", {"steps": 2}),
    "vfe, 4 steps": Arm("vfe", {"steps": 4}),
    "vfe, 8 steps": Arm("vfe", {"steps": 8}),
    "vfe, frozen frames": Arm("vfe", {"frames": "frozen"}),
    "vfe, evolved frames": Arm("vfe", {"frames": "evolved"}),
    "vfe, identity transport": Arm("vfe", {"position": "none", "link": False}),
    "vfe, no link": Arm("vfe", {"link": False}),
    "vfe, full covariances": Arm("vfe", {"covariance": "full"}),
    "vfe, diagonal covariances": Arm("vfe", {"covariance": "diagonal"}),
    "vfe, frozen covariances": Arm("vfe", {"covariances": "frozen"}),
    "vfe, no trust region": Arm("vfe", {"trust_radius": 1e6}),
    "vfe, equal variances": Arm("vfe", {"spread_range": 0.0}),
    "vfe, weighted": Arm("vfe", {"alignment": "weighted"}),
    "vfe, reads itself": Arm("vfe", {"mask_self": False}),
    "vfe, links from the identity": Arm("vfe", {"link_start": "identity"}),
    "vfe, carried priors": Arm("vfe", {"priors": "carried", "link": False}),
    "vfe, no feed-forward": Arm("vfe", {"hidden": 0}, sized=False),
}
"""The VFE transformer with one thing changed. Without a feed-forward layer it has a quarter of the
parameters."""

ARMS = MODELS | ABLATIONS


def count(model: str, config: Any) -> int:
    """How many parameters a model has over the characters of tiny Shakespeare."""
    built = table.build(model, config, VOCABULARY, 64)
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(built.init, jax.random.key(0))))


def options_of(arm: Arm) -> dict[str, Any]:
    """The options of an arm, its feed-forward width among them.

    The number of parameters is a straight line in that width.
    """
    if not arm.sized:
        return dict(arm.options)
    config = table.MODELS[arm.model].config(**arm.options)
    low, high = (count(arm.model, replace(config, hidden=hidden)) for hidden in (100, 200))
    hidden = 100 + round(100 * (PARAMETERS - low) / (high - low))
    return {**arm.options, "hidden": hidden}
