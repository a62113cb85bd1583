"""The similarity measures, one family a file, and their registry."""

from speechsim_jax.measures.base import Measure, Ranking, RepresentationPair, SamplePair
from speechsim_jax.measures.registry import (
    ATTENTION,
    MEASURES,
    PAPER,
    RANKINGS,
    AttentionMeasure,
    MeasureSelection,
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
    "MeasureSelection",
    "Measure",
    "RepresentationPair",
    "Ranking",
    "SamplePair",
    "list_measures",
    "register",
    "resolve",
]
