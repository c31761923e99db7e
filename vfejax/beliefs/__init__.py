"""Beliefs: probability distributions as pytrees, their divergences and metrics."""
