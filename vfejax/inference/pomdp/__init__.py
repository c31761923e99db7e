"""Partially observed Markov decision processes: discrete models of an agent and its world, and
beliefs about their states.
"""

from vfejax.inference.pomdp.model import POMDP, check_model
from vfejax.inference.pomdp.prediction import filter_states, predict_observations, predict_states
from vfejax.inference.pomdp.states import exact_posterior, infer_states

__all__ = [
    "POMDP",
    "check_model",
    "exact_posterior",
    "filter_states",
    "infer_states",
    "predict_observations",
    "predict_states",
]
