"""Pure-functional JAX library for free-energy agents and energy-based sequence models.

Import the module you need: ``from vfejax.beliefs import gaussian`` then ``gaussian.kl_divergence(q, p)``.
"""

__version__ = "0.1.0"
