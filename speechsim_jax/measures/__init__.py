"""The similarity measures, one family a file, and their registry."""

from speechsim_jax.measures.base import (
    AttentionPair,
    Measure,
    Pair,
    Ranking,
    RepresentationPair,
    SamplePair,
)
from speechsim_jax.measures.registry import (
    MEASURES,
    PAPER,
    RANKINGS,
    MeasureSelection,
    list_measures,
    register,
    resolve,
)

__all__ = [
    "MEASURES",
    "PAPER",
    "RANKINGS",
    "AttentionPair",
    "Measure",
    "MeasureSelection",
    "Pair",
    "Ranking",
    "RepresentationPair",
    "SamplePair",
    "list_measures",
    "register",
    "resolve",
]
