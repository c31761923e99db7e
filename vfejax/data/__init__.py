"""Data: texts, vocabularies, batches, synthetic sequences, tables and arrays on disk."""

from vfejax.data import batches, corpus, files, population_arrays, synthetic, tables, vocabulary

__all__ = ["batches", "corpus", "files", "population_arrays", "synthetic", "tables", "vocabulary"]
