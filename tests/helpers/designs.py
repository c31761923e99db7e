"""Options drawn together, so that few draws try every value of each."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def latin_draw(
    choices: Mapping[str, Sequence[Any]], draw: int, num_draws: int
) -> tuple[dict[str, Any], np.random.Generator]:
    """One of ``num_draws`` combinations, and a generator for what else is drawn: over all draws
    each value of an option comes as often as the others, in an order of its own.
    """
    rng = np.random.default_rng(0)
    places = {name: rng.permutation(num_draws)[draw] % len(x) for name, x in choices.items()}
    drawn = {name: choices[name][place] for name, place in places.items()}
    return drawn, np.random.default_rng(draw)
