"""Token allocation: numbers of tokens for the patches of a picture, given a query."""

from vfejax.inference.allocation import (
    budgets,
    information,
    looking,
    messages,
    posteriors,
    queries,
    textures,
)

__all__ = ["budgets", "information", "looking", "messages", "posteriors", "queries", "textures"]
