"""Token allocation: from the patches of a picture and a query to whole numbers of tokens."""

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
