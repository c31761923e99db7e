"""A feed-forward layer of several experts, of which each token is read by a few
(:mod:`vfejax.routing`).
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx

from vfejax import routing
from vfejax.compression.experts import expert_statistics
from vfejax.models.blocks import normal
from vfejax.numerics import at_least_float32
from vfejax.types import Array

__all__ = ["ROUTERS", "MixtureOfExperts"]

ROUTERS = {"top-k": routing.top_k, "gumbel": routing.gumbel_top_k}
"""How experts are chosen, by the name of the option."""


class MixtureOfExperts(nnx.Module):
    """``num_experts`` feed-forward layers ``W_out gelu(W_in x)``, ``top_k`` of which read a token.
    One expert is a plain layer without a router.

    The router works in float32 (float64 in a float64 model), whatever ``dtype`` is: a choice must
    not depend on rounding.

    Args:
        dim: width of the states.
        hidden: width of each expert's hidden layer.
        num_experts: number of experts.
        top_k: how many of them read a token.
        router_fn: ``(logits [..., num_experts], top_k, key) -> routing.Routing``, which chooses
            them; one that draws needs the key.
        out_scale: standard deviation of the first weights that write the output; less in deep
            models.
        dtype: that of the experts' arithmetic; weights are kept in at least single precision.
        rngs: where first weights come from.

    Raises:
        ValueError: unless ``1 <= top_k <= num_experts``.

    >>> layer = MixtureOfExperts(dim=4, hidden=8, num_experts=3, top_k=2, rngs=nnx.Rngs(0))
    >>> x, sums = layer(jnp.ones((2, 5, 4)))
    >>> x.shape, int(sums.choices.sum())  # two choices for each of ten tokens
    ((2, 5, 4), 20)
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        num_experts: int,
        top_k: int,
        *,
        router_fn: Callable[[Array, int, Array | None], routing.Routing] = routing.top_k,
        out_scale: float = 0.02,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k must lie between 1 and num_experts {num_experts}, got {top_k}")
        self.num_experts, self.top_k, self.router_fn = num_experts, top_k, router_fn
        self.dtype, self.real = dtype, at_least_float32(dtype)
        self.kernel_in = nnx.Param(
            normal(0.02)(rngs.params(), (num_experts, dim, hidden), self.real)
        )
        self.kernel_out = nnx.Param(
            normal(out_scale)(rngs.params(), (num_experts, hidden, dim), self.real)
        )
        if num_experts > 1:
            self.router = nnx.Linear(
                dim,
                num_experts,
                use_bias=False,
                kernel_init=normal(0.02),
                dtype=self.real,
                param_dtype=self.real,
                rngs=rngs,
            )

    def __call__(
        self, x: Array, key: Array | None = None, mask: Array | None = None
    ) -> tuple[Array, routing.RouterSums | None]:
        """What the chosen experts make of every token.

        Args:
            x: ``[..., dim]``.
            key: the router's, for one that draws.
            mask: True at the tokens that count in the sums, ``[...]``; None when all do.

        Returns:
            ``[..., dim]``, and the router's sums; None where there is no router.
        """
        kernel_in, kernel_out = (
            kernel[...].astype(self.dtype) for kernel in (self.kernel_in, self.kernel_out)
        )
        x = x.astype(self.dtype)
        if kernel_in.shape[0] == 1:
            return nnx.gelu(x @ kernel_in[0]) @ kernel_out[0], None
        logits = self.router(x.astype(self.real))
        chosen = self.router_fn(logits, self.top_k, key)
        found = routing.expert_feed_forward(x, chosen, kernel_in, kernel_out, nnx.gelu)
        return found, routing.router_sums(logits, chosen, mask)

    def statistics(
        self, x: Array, key: Array | None = None, mask: Array | None = None
    ) -> dict[str, Array]:
        """What pruning asks of the experts (:class:`vfejax.compression.experts.ExpertStatistics`):
        the moments by the names of the kernels that read them.

        Args:
            x: ``[..., dim]``.
            key: not used: without noise, and for all tokens.
            mask: not used.
        """
        del key, mask
        x = x.reshape(-1, x.shape[-1]).astype(self.real)
        logits = self.router(x) if self.num_experts > 1 else jnp.zeros((x.shape[0], 1), self.real)
        found = expert_statistics(
            x,
            logits,
            self.router_fn(logits, self.top_k, None),
            self.kernel_in[...].astype(self.real),
            self.kernel_out[...].astype(self.real),
            nnx.gelu,
        )._asdict()
        return {"kernel_in": found.pop("inputs"), "kernel_out": found.pop("hidden"), **found}
