"""Density matrices: states, entropies, channels and unitary evolution with exact adjoints."""
