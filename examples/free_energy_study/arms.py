"""The arms of the study: models of the table and the options that are not their defaults."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from vfejax.models import table

__all__ = ["ABLATIONS", "ARMS", "MODELS", "PARAMETERS", "SMALL", "Arm", "count", "options_of"]

PARAMETERS = 806_656  # of gpt-modern at its defaults
SMALL = 204_200  # of vfe at half its width
VOCABULARY = 67  # tokens of tiny Shakespeare by characters


class Arm(NamedTuple):
    """A model and its options; with ``parameters`` the feed-forward width is the one that brings
    their number nearest to it.
    """

    model: str
    options: Mapping[str, Any] = MappingProxyType({})
    parameters: int | None = None


def _ablation(**options: Any) -> Arm:
    return Arm("vfe", {"dim": 64, **options}, SMALL)


MODELS: dict[str, Arm] = {
    "transformer": Arm("transformer"),
    "gpt-modern": Arm("gpt-modern"),
    "resnet-bk": Arm("resnet-bk"),
    "vfe": Arm("vfe", parameters=PARAMETERS),
    "pure-fep": Arm("pure-fep", parameters=PARAMETERS),
}
"""What is compared."""

ABLATIONS: dict[str, Arm] = {
    "small gpt-modern": Arm("gpt-modern", {"dim": 64}, SMALL),
    "small vfe": _ablation(),
    "0 steps": _ablation(steps=0, adds="mean"),
    "2 steps": _ablation(steps=2),
    "4 steps": _ablation(steps=4),
    "8 steps": _ablation(steps=8),
    "frozen frames": _ablation(frames="frozen"),
    "evolved frames": _ablation(frames="evolved"),
    "identity transport": _ablation(position="none", link=False),
    "no link": _ablation(link=False),
    "links from the identity": _ablation(link_start="identity"),
    "full covariances": _ablation(covariance="full"),
    "diagonal covariances": _ablation(covariance="diagonal"),
    "frozen covariances": _ablation(covariances="frozen"),
    "equal variances": _ablation(spread_range=0.0),
    "no trust region": _ablation(trust_radius=1e6),
    "weighted": _ablation(alignment="weighted"),
    "reads itself": _ablation(mask_self=False),
    "carried priors": _ablation(priors="carried", link=False),
    "no feed-forward": Arm("vfe", {"dim": 64, "hidden": 0}),
}
"""The VFE transformer at a quarter of the size with one thing changed, and a reference of that
size. Without a feed-forward layer it has a quarter of the parameters again."""

ARMS = MODELS | ABLATIONS


def count(model: str, config: Any) -> int:
    """How many parameters a model has over the characters of tiny Shakespeare."""
    built = table.build(model, config, VOCABULARY, 64)
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(built.init, jax.random.key(0))))


def options_of(arm: Arm) -> dict[str, Any]:
    """The options of an arm, its feed-forward width among them.

    The number of parameters is a straight line in that width.
    """
    if arm.parameters is None:
        return dict(arm.options)
    config = table.MODELS[arm.model].config(**arm.options)
    low, high = (count(arm.model, replace(config, hidden=hidden)) for hidden in (100, 200))
    hidden = 100 + round(100 * (arm.parameters - low) / (high - low))
    return {**arm.options, "hidden": hidden}
