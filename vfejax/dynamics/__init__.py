"""Dynamics on any energy function: gradient, natural-gradient and Hamiltonian flows."""
