"""Sequence models: flax modules that hold weights and call the mathematics of the other folders."""
