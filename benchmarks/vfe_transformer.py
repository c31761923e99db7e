"""The VFE transformer beside a GPT of its size, and its layer beside the straightforward one.

    python benchmarks/vfe_transformer.py [--quick] [--sizes 64 256 1024]

training  updates by AdamW of gpt-modern and of the VFE transformer with one and two steps of
          inference, equal parameters: tokens per second, and temporary memory as XLA reports it
layer     one step of inference in one head of 32 channels, with the gradient of a function of its
          result: ours, and PyTorch with a transport matrix and a covariance for every pair,
          N x N x 32 x 32, and the gradient of the energy by automatic differentiation

Both layers compute the same numbers, which is checked before anything is timed. A ratio is theirs /
ours, of times (above 1: we are faster). Methods take turns within one run; the median counts for
training, the best for layers. PyTorch is optional: without it the layers are left out. What would
take more than --limit GB there is not run. Run it on a quiet machine.
"""

import argparse
import platform
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from language_model_training import compare
from language_models import ARMS, load

from vfejax.models.vfe import energy, inference, irreps
from vfejax.models.vfe.beliefs import Belief, Transport
from vfejax.models.vfe.covariances import COVARIANCES
from vfejax.models.vfe.energy import Places

try:
    import torch
except ImportError:
    torch = None

SIZES = (64, 256, 1024)
TOKENS = 768  # of a batch, in windows of N; one window where N is longer
LAYOUT = irreps.so3((0, 1), heads=1, copies=8, base=100.0)
CHANNELS = LAYOUT.channels
STEP = 0.5
ROUNDS = 7
COPIES_OF_PAIRS = 12  # arrays N x N x C x C that PyTorch keeps for the gradient, about

ARMS["vfe"] = ("vfe", {})
ARMS["vfe, 2 steps"] = ("vfe", {"steps": 2})


def agents(num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prior means ``[n, K, copies]``, log variances ``[n, irreps, copies]`` and a link."""
    rng = np.random.default_rng(0)
    mean = rng.standard_normal((num, LAYOUT.components, LAYOUT.copies))
    spread = 0.3 * rng.standard_normal((num, len(LAYOUT.sizes), LAYOUT.copies))
    link = np.linalg.qr(rng.standard_normal((CHANNELS, CHANNELS)))[0]
    return tuple(x.astype(np.float32) for x in (mean, spread, link))


def ours(num: int) -> Callable[..., tuple[jax.Array, ...]]:
    """Posterior means and the gradient of half their square, compiled."""
    rule = inference.Rule(
        LAYOUT,
        COVARIANCES["irrep"],
        energy.reader("entropic", energy.neighbours(mask_self=True)),
        inference.gradient_flow(),
        trust_radius=1e6,
    )
    here = jnp.arange(num, dtype=jnp.int32)
    turn = irreps.phases(LAYOUT, here[None], jnp.float32)
    one = jnp.ones(1)
    strength = inference.Strength(one, CHANNELS**0.5 * one, jnp.asarray(STEP), jnp.asarray(1.0))

    def half_square(prior: tuple, link: jax.Array) -> tuple[jax.Array, jax.Array]:
        belief = Belief(*(x[None, :, None] for x in prior))
        transport, places = Transport(turn, link[None]), Places(here, here)
        posterior, *_ = inference.infer(belief, transport, strength, places, rule, steps=1)
        mean = posterior.mean[0, :, 0]
        return 0.5 * jnp.sum(mean * mean), mean

    def run(mean: jax.Array, spread: jax.Array, link: jax.Array) -> tuple[jax.Array, ...]:
        (_, posterior), gradient = jax.value_and_grad(half_square, has_aux=True)(
            (mean, spread), link
        )
        return posterior, *gradient

    return jax.jit(run)


def turns(num: int) -> np.ndarray:
    """Position matrices ``[n, C, C]``, components before copies."""
    angles = np.arange(num)[:, None, None] * LAYOUT.rates[0][None]
    total = np.zeros((num, LAYOUT.components, LAYOUT.copies) * 1 + (CHANNELS,))
    index = np.arange(CHANNELS).reshape(LAYOUT.components, LAYOUT.copies)
    for block in irreps.blocks(LAYOUT.sizes):
        for x in range(block.start, block.stop):
            pair = x - block.start
            partner = x + 1 if pair % 2 == 0 else x - 1
            for copy in range(LAYOUT.copies):
                total[:, x, copy, index[x, copy]] = np.cos(angles[:, x, copy])
                if block.start <= partner < block.stop and LAYOUT.rates[0, x, copy]:
                    sign = -1.0 if pair % 2 == 0 else 1.0
                    total[:, x, copy, index[partner, copy]] = sign * np.sin(angles[:, x, copy])
    return total.reshape(num, CHANNELS, CHANNELS)


def straightforward(num: int) -> Callable[..., tuple]:
    """The same in PyTorch, with arrays of all pairs of agents by C x C."""
    turn = torch.tensor(turns(num), dtype=torch.float32)
    sizes = torch.tensor(LAYOUT.sizes, dtype=torch.float32)[:, None]
    later = torch.triu(torch.ones(num, num, dtype=torch.bool))
    temperature = CHANNELS**0.5

    def covariance(spread: torch.Tensor) -> torch.Tensor:
        repeats = torch.tensor(LAYOUT.sizes)
        return torch.diag_embed(spread.exp().repeat_interleave(repeats, dim=1).flatten(1))

    def divergences(mean, cov, sender_mean, sender_cov, link):
        """``KL(q_i || Omega_ij q_j)`` of every pair, by Cholesky factors of every pair."""
        transport = torch.linalg.inv(link) @ (turn[:, None] @ turn[None].transpose(-1, -2))
        there = (transport @ sender_mean[None, :, :, None])[..., 0]
        factor = torch.linalg.cholesky(transport @ sender_cov[None] @ transport.transpose(-1, -2))
        change = torch.linalg.solve_triangular(
            factor, (mean[:, None] - there)[..., None], upper=False
        )
        own = torch.linalg.cholesky(cov)
        ratio = torch.linalg.solve_triangular(
            factor, own[:, None].expand(-1, num, -1, -1), upper=False
        )
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        own_log_det = 2 * own.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        square = (change**2).sum((-1, -2)) + (ratio**2).sum((-1, -2))
        return 0.5 * (square + log_det - own_log_det[:, None] - CHANNELS)

    def free_energy(mean, spread, prior_mean, prior_spread, sender, link):
        change = spread - prior_spread
        square = ((mean - prior_mean) ** 2).split(LAYOUT.sizes, dim=1)
        square = torch.stack([x.sum(1) for x in square], dim=1)
        own = 0.5 * (sizes * (torch.expm1(change) - change) + square * (-prior_spread).exp()).sum()
        pairs = divergences(mean.flatten(1), covariance(spread), *sender, link)
        scores = (-pairs / temperature).masked_fill(later, -torch.inf)[1:]
        return own - temperature * torch.logsumexp(scores, dim=1).sum()

    def run(mean: torch.Tensor, spread: torch.Tensor, link: torch.Tensor) -> tuple:
        mean, spread = (x.detach().requires_grad_() for x in (mean, spread))
        sender = mean.flatten(1), covariance(spread)
        here = mean + 0.0, spread + 0.0  # receivers' own, so that senders are held
        paid = free_energy(*here, mean, spread, sender, link)
        slopes = torch.autograd.grad(paid, here, create_graph=True)
        variance = spread.exp().repeat_interleave(torch.tensor(LAYOUT.sizes), dim=1)
        posterior = mean - STEP * variance * slopes[0]
        (0.5 * (posterior**2).sum()).backward()
        return posterior.detach(), mean.grad, spread.grad

    return run


def best_of(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The best time of each in seconds, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: min(found) for name, found in times.items()}


def layer(num: int, limit: float) -> None:
    """Check, time and print one number of agents."""
    arrays = agents(num)
    fast, inputs = ours(num), tuple(map(jnp.asarray, arrays))
    found = jax.block_until_ready(fast(*inputs))
    calls = {"ours": lambda: jax.block_until_ready(fast(*inputs))}
    pairs = 4 * num**2 * CHANNELS**2 / 1e9
    if torch is not None and COPIES_OF_PAIRS * pairs <= limit:
        slow, theirs = straightforward(num), tuple(map(torch.tensor, arrays))
        for name, a, b in zip(
            ("posterior", "by mean", "by spread"), found, slow(*theirs), strict=True
        ):
            error = np.max(np.abs(np.asarray(a) - b.numpy())) / np.max(np.abs(np.asarray(a)))
            # Rounding of 32 x 32 factors by pairs, and of products of rows that cancel.
            assert error < 2e-4, (name, error)
        calls["theirs"] = lambda: slow(*theirs)
    times = best_of(calls)
    memory = fast.lower(*inputs).compile().memory_analysis().temp_size_in_bytes
    theirs = f"{1e3 * times['theirs']:,.1f}" if "theirs" in times else "not run"
    ratio = f"{times['theirs'] / times['ours']:,.0f}x" if "theirs" in times else ""
    print(
        f"| {num} | {1e3 * times['ours']:,.2f} | {theirs} | {ratio} | {memory / 1e6:,.1f} "
        f"| {1e3 * pairs:,.0f} |",
        flush=True,
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="64 only, to see that it runs")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, metavar="N")
    parser.add_argument("--limit", type=float, default=8.0, help="memory for PyTorch, in GB")
    options = parser.parse_args()
    sizes = (64,) if options.quick else options.sizes
    text = load("topics")
    for num in sizes:
        compare(["gpt-modern", "vfe", "vfe, 2 steps"], text, max(1, TOKENS // num), num)
    print("\n| agents | ours, ms | PyTorch, ms | ratio | ours, MB | one array of pairs, MB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for num in sizes:
        layer(num, options.limit)
    versions = f"jax {jax.__version__}, torch {torch.__version__ if torch else 'absent'}"
    device = jax.devices()[0].device_kind
    print(f"\n{versions}, python {platform.python_version()}, {device}")


if __name__ == "__main__":
    main()
