"""The rows of the table of claims, in its order. Nothing is imported before a row is measured."""

from typing import NamedTuple

__all__ = ["ROWS", "Claim"]


class Claim(NamedTuple):
    """One row.

    Attributes:
        name: of the row on the command line.
        claim: what is promised.
        system: the design that promises it.
        done: what was measured.
        function: what finds it, in a module of this folder; it takes nothing and returns a
            :class:`claim_rows.measure.Found`.
        command: what prints the figure in full; by default this row alone.
        cheap: whether the row is measured when none is named.
    """

    name: str
    claim: str
    system: str
    done: str
    function: str
    command: str = ""
    cheap: bool = True


ROWS = (
    Claim(
        "batching",
        "50 to 100 times by batching agents on accelerators",
        "VFE agents",
        "value and gradient of the alignment energy: all agents in one program, beside one "
        "compiled call for each agent",
        "agents.batching",
    ),
    Claim(
        "half-precision",
        "2 times by half precision",
        "VFE agents, ResNet-BK",
        "loss and gradient of the default ResNet-BK, 12 windows of 64, in bfloat16 beside float32",
        "agents.half_precision",
    ),
    Claim(
        "fusion",
        "2 to 3 times by kernel fusion",
        "VFE agents",
        "value and gradient of the alignment energy: one program, compiled with and without fusion",
        "agents.fusion",
    ),
    Claim(
        "autodiff",
        "the gradient by automatic differentiation in place of 1,300 lines",
        "VFE agents",
        "lines of agents, beliefs, geometry and small matrices that write a derivative by hand, "
        "and the error of the gradient",
        "agents.autodiff",
    ),
    Claim(
        "vfe-perplexity",
        "perplexity of 183 beside a transformer's 178",
        "VFE transformer",
        "perplexity over that of others of the same size, three seeds "
        "([study](results/vfe_transformer.md))",
        "agents.perplexity",
        "python examples/free_energy_study/run.py --text shakespeare=FILE --text wikitext=FILE",
    ),
    Claim(
        "parameter-shift",
        "gradients 700,000 times as fast as by parameter shift",
        "quantum transformer",
        "two evaluations for every weight over the exact gradient: timed in a tiny model, "
        "elsewhere counted, with the gradient's cost measured (12 windows of 64, d = 16)",
        "quantum.parameter_shift",
    ),
    Claim(
        "backward",
        "backward takes 3 times forward",
        "quantum transformer",
        "time of the backward pass over that of the forward pass",
        "quantum.backward",
        "python benchmarks/quantum.py",
    ),
    Claim(
        "gating",
        "an error of the gate below phi^-3 = 0.236",
        "quantum transformer",
        "trace distance that states would have moved which the gate leaves alone, as F is within "
        "0.236 / d of 0; first models of 8 seeds",
        "quantum.gating",
    ),
    Claim(
        "dephasing",
        "frequency-aware dephasing",
        "quantum transformer",
        "loss of the default model on the help topics of Python with and without it",
        "quantum.dephasing",
        cheap=False,
    ),
    Claim(
        "periodic",
        "5 to 10 % less perplexity on periodic tasks",
        "toroidal attention",
        "perplexity beside rotary positions that fit the ring, eight seeds, on two tasks that "
        "close and two that do not ([study](results/toroidal_attention.md#periodic-data))",
        "toroidal.periodic",
        "python examples/periodic_study/run.py",
    ),
    Claim(
        "memory",
        "memory of O(N^2 D)",
        "toroidal attention",
        "bytes that joint attention sets aside with its gradient, 8 heads of 32, as powers of N "
        "and D",
        "toroidal.memory",
    ),
    Claim(
        "orthogonality",
        "orthogonality of 0.88 to 0.98 of 3D rotary positions",
        "toroidal attention",
        "one less the cosine between steps along the ring and across platters: 36 sizes of heads, "
        "rings and stacks; depth in pairs of its own (the default), orthogonalised, or neither",
        "toroidal.orthogonality",
    ),
    Claim(
        "caching",
        "2 to 3 times by caching",
        "toroidal attention",
        "the next token of the default model from its stream of keys, beside reading the whole "
        "context again",
        "toroidal.caching",
    ),
    Claim(
        "gradient-norm",
        "gradients below 10",
        "toroidal attention",
        "global norm of the gradient without a clip: default model, help topics of Python",
        "toroidal.gradients",
    ),
    Claim(
        "attention-2048",
        "6.7 times over attention at 2,048 tokens",
        "ResNet-BK",
        "value and gradient: resolvent diagonal of 8 chains beside causal attention of width 64; "
        "and models of equal size, one window",
        "resnet_bk.attention",
    ),
    Claim(
        "analytic-gradient",
        "50 times by an analytic gradient",
        "ResNet-BK",
        "value and gradient of 8 chains of 2,048 sites beside automatic differentiation of the "
        "same recursions, and a [loop](results/resolvents.md); errors of the published rules at "
        "512 sites",
        "resnet_bk.analytic",
    ),
    Claim(
        "experts",
        "10 times by sparse experts",
        "ResNet-BK",
        "loss and gradient beside one expert of as many weights, 2,048 tokens",
        "resnet_bk.experts",
    ),
    Claim(
        "compression",
        "100 times smaller",
        "ResNet-BK",
        "[bytes of one file against loss](results/compression.md#one-small-file), beside the "
        "teacher in float32, three seeds",
        "resnet_bk.compression",
        "python benchmarks/model_compression.py --out benchmarks/measured/compression --report",
    ),
    Claim(
        "kernels",
        "10 times by kernels and mixed precision",
        "ResNet-BK",
        "loss and gradient of the default model, 12 windows of 64: without fusion, with it, in "
        "bfloat16",
        "resnet_bk.kernels",
    ),
    Claim(
        "koopman-gradients",
        "100 times cheaper gradients by Koopman operators",
        "ResNet-BK",
        "gradients that pass every block by the operator that predicts it, learned along the way, "
        "three seeds ([study](results/koopman.md#koopman-operators-in-a-language-model))",
        "learning.koopman_gradients",
        "python benchmarks/koopman_language.py --out benchmarks/measured/koopman_language --report",
    ),
    Claim(
        "koopman-only",
        "training by Koopman operators alone, without backpropagation through the blocks",
        "ResNet-BK",
        "only what reads the last stream learns, three seeds "
        "([study](results/koopman.md#koopman-operators-in-a-language-model))",
        "learning.koopman_only",
        "python benchmarks/koopman_language.py --out benchmarks/measured/koopman_language --report",
    ),
    Claim(
        "fewer-gradients",
        "10 times fewer gradients by energy-based learning",
        "ResNet-BK",
        "equilibrium propagation beside backpropagation in a network of as many units, "
        "handwritten digits, three seeds "
        "([study](results/energy_learning.md#equilibrium-propagation))",
        "learning.fewer_gradients",
        "python benchmarks/equilibrium.py --out benchmarks/measured/equilibrium --report",
    ),
    Claim(
        "no-backpropagation",
        "learning without backpropagation",
        "ResNet-BK, Pure-FEP",
        "what learns from local energies beside what learns by backpropagation, three seeds "
        "([digits](results/energy_learning.md#equilibrium-propagation))",
        "learning.no_backpropagation",
    ),
    Claim(
        "energy-penalty",
        "better learning by a penalty on changes of a learned energy",
        "ResNet-BK",
        "loss of a language model of kick-drift steps with the penalty, less that without, three "
        "seeds ([study](results/energy_learning.md#reversible-blocks))",
        "learning.energy_penalty",
        "python benchmarks/reversible.py --out benchmarks/measured/reversible --report",
    ),
    Claim(
        "adaptive-learning",
        "faster learning by leaving out blocks, by a curriculum, or by choosing data",
        "ResNet-BK",
        "loss at equal time beside a schedule that decays fully in that time, the same rates for "
        "all, three seeds ([study](results/adaptive_computation.md#training-at-equal-time))",
        "adaptive.learning",
        "python benchmarks/adaptive_computation.py --out benchmarks/measured/adaptive --report",
    ),
    Claim(
        "early-exit",
        "faster decoding by early exit (1.3 times within 1 % of the loss)",
        "ResNet-BK",
        "one sequence at a time, thresholds set on other text; beside the fastest decoding "
        "without exits ([study](results/adaptive_computation.md#early-exit))",
        "adaptive.early_exit",
        "python benchmarks/early_exit.py --runs benchmarks/measured/adaptive --report",
    ),
    Claim(
        "overall",
        "10^9 times less cost over all",
        "ResNet-BK",
        "one workload, one change after the other: a modern GPT on one window of 2,048 tokens, "
        "loss and gradient; times the bytes of the smallest file at no loss",
        "resnet_bk.overall",
    ),
    Claim(
        "sharding",
        "10^6 to 10^9 states by sharding over 16 devices",
        "active inference at scale",
        "belief propagation on a grid of binary variables with its rows on 16 devices of one host: "
        "bytes of the compiled program; a small grid runs",
        "inference.sharding",
    ),
    Claim(
        "one-device",
        "25 million states on one device",
        "active inference at scale",
        "belief propagation on 5,000 x 5,000 binary variables",
        "inference.one_device",
        cheap=False,
    ),
    Claim(
        "60-hertz",
        "perception and action at 60 Hz",
        "active inference at scale",
        "an agent of 100 states, 4 controls and policies of length 3, ten seconds "
        "([ten minutes](results/active_inference.md#real-time))",
        "inference.hertz",
        "python benchmarks/real_time.py --seconds 600",
    ),
    Claim(
        "textures",
        "a texture array of 1.7 GB",
        "token allocation",
        "13 channels of 4K pictures, from shapes; and what `patch_textures` keeps and sets aside",
        "inference.textures",
    ),
    Claim(
        "elbo",
        "an ELBO from -450 to -287 in eight iterations",
        "active inference at scale",
        "mixture of Gaussians, 100 points of three clusters with room for six, 20 data sets",
        "inference.elbo",
    ),
)
