"""Tridiagonal operators: resolvents by recursion, determinants, densities of states."""
