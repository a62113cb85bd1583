"""The similarity measures, one family a file, and their registry."""

from speechsim_jax.measures.base import Measure, Pair, Ranking, SamplePair
from speechsim_jax.measures.registry import (
    ATTENTION,
    MEASURES,
    PAPER,
    RANKINGS,
    AttentionMeasure,
    Chosen,
    list_measures,
    register,
    resolve,
)

__all__ = [
    "ATTENTION",
    "MEASURES",
    "PAPER",
    "RANKINGS",
    "AttentionMeasure",
    "Chosen",
    "Measure",
    "Pair",
    "Ranking",
    "SamplePair",
    "list_measures",
    "register",
    "resolve",
]
