"""Data: texts, tokenizers, batches, synthetic sequences, tables and arrays on disk."""

from vfejax.data import (
    batches,
    corpus,
    files,
    hierarchy_arrays,
    ngrams,
    population_arrays,
    pretrained,
    series,
    spelling,
    stamps,
    subwords,
    synthetic,
    tables,
    tensors,
    tokenizers,
    vocabulary,
)

__all__ = [
    "batches",
    "corpus",
    "files",
    "hierarchy_arrays",
    "ngrams",
    "population_arrays",
    "pretrained",
    "series",
    "spelling",
    "stamps",
    "subwords",
    "synthetic",
    "tables",
    "tensors",
    "tokenizers",
    "vocabulary",
]
