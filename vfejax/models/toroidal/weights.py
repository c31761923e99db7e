"""The weights of attention on a torus: slopes of the distance bias, and the fusion of platters."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vfejax.attention.depth_fusion import Fusion
from vfejax.types import Array

__all__ = ["TorusWeights", "inverse_softplus"]


def inverse_softplus(slopes: tuple[float, ...]) -> np.ndarray:
    """The numbers whose ``log(1 + e^x)`` these are.

    Args:
        slopes: positive.

    >>> inverse_softplus((0.5, 40.0)).round(4).tolist()
    [-0.4328, 40.0]
    """
    x = np.asarray(slopes, np.float64)
    return x + np.log(-np.expm1(-x))


class TorusWeights(nnx.Module):
    """Slopes and fusion of one layer.

    Args:
        slopes: first slopes, of each head of a platter or of each head; empty for no distance bias.
        learn_slopes: whether they are weights, positive as ``softplus`` of what is stored, or
            constants.
        fusion: one of ``FUSIONS`` of :mod:`vfejax.attention.depth_fusion`.
        depth: number of platters.
        dim: channels of all heads.
        rank: of a fusion that has one.
        param_dtype: that of the weights.
        rngs: where first weights come from.
    """

    def __init__(
        self,
        slopes: tuple[float, ...],
        fusion: Fusion,
        *,
        learn_slopes: bool,
        depth: int,
        dim: int,
        rank: int,
        param_dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.fixed_slopes = () if learn_slopes else slopes
        if learn_slopes and slopes:
            self.slopes = nnx.Param(jnp.asarray(inverse_softplus(slopes), param_dtype))
        self.fusion_fn, self.depth = fusion.apply, depth
        weights = fusion.init(rngs.params(), dim, rank, param_dtype)
        self.num_weights = len(weights)
        self.fusion = nnx.Dict({str(i): nnx.Param(weight) for i, weight in enumerate(weights)})

    def slope(self) -> Array | None:
        """Slopes of the heads in nats per turn; None for no distance bias."""
        if hasattr(self, "slopes"):
            return jax.nn.softplus(self.slopes[...])
        return jnp.asarray(self.fixed_slopes) if any(self.fixed_slopes) else None

    def fuse(self, attended: Array) -> Array:
        """What the platters make of each other's answers ``[b, n, heads, c]``."""
        weights = tuple(self.fusion[str(i)][...] for i in range(self.num_weights))
        return self.fusion_fn(weights, attended, self.depth)
