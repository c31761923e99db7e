"""Flags of a run too small to take time. The step is far below what diverges; tests that need more override it."""

TINY = [
    *("--agents", "4", "--irreps", "1", "--dynamics", "gradient", "--step-size", "1e-6"),
    *("--steps", "4", "--log-every", "2", "--checkpoint-every", "2"),
]
