"""Flags of runs too small to take time. The step of the simulation is far below what diverges;
tests that need more override it.
"""

TINY = [
    *("--agents", "4", "--irreps", "1", "--dynamics", "gradient", "--step-size", "1e-6"),
    *("--steps", "4", "--log-every", "2", "--checkpoint-every", "2"),
]

# The same for a training: a pattern that repeats, and a model that learns it in no time.
TINY_TRAINING = [
    *(
        "--model",
        "transformer",
        "--transformer.layers",
        "1",
        "--transformer.dim",
        "16",
        "--transformer.heads",
        "2",
    ),
    *(
        "--transformer.hidden",
        "16",
        "--transformer.dropout",
        "0.1",
        "--length",
        "8",
        "--batch-size",
        "4",
        "--eval-windows",
        "6",
        "--warmup-steps",
        "2",
    ),
    *("--synthetic.kind", "periodic", "--synthetic.symbols", "5", "--synthetic.period", "3"),
    *(
        "--synthetic.tokens",
        "400",
        "--steps",
        "8",
        "--log-every",
        "2",
        "--eval-every",
        "4",
        "--checkpoint-every",
        "4",
    ),
    *("--sample-tokens", "6"),
]

# The same for agents that plan: a T-maze, in which they ask the cue and then have what they want.
TINY_PLAN = [
    *("--env", "tmaze", "--horizon", "2", "--length", "3", "--batch", "2"),
    *("--steps", "4", "--log-every", "2", "--checkpoint-every", "2"),
]
