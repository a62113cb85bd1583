"""How alike are speech encoders, neuron by neuron and layer by layer, in one streaming pass?

>>> import speechsim_jax as ss
>>> result = ss.compare(models=["facebook/hubert-base-ls960", "runs/mine"], audio="speech/")
>>> figure = result.plot("lincka")

Importing this touches no device, flag or configuration.
"""

import importlib.metadata

from speechsim_jax.comparison.activations import compare_activations
from speechsim_jax.comparison.attentions import compare_attentions
from speechsim_jax.comparison.encoders import Settings, compare
from speechsim_jax.comparison.merge import merge
from speechsim_jax.errors import UserError
from speechsim_jax.measures import list_measures
from speechsim_jax.models.architecture import Activations
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.models.error_rates import ErrorRates, error_rates
from speechsim_jax.models.load import load_encoder, random_like
from speechsim_jax.models.recognizer import Recognizer, load_recognizer
from speechsim_jax.results.result import RepresentationName, SimilarityResult

__version__ = importlib.metadata.version("speechsim_jax")

__all__ = [
    "Activations",
    "ErrorRates",
    "Recognizer",
    "RepresentationName",
    "Settings",
    "SimilarityResult",
    "SpeechEncoder",
    "UserError",
    "compare",
    "compare_activations",
    "compare_attentions",
    "error_rates",
    "list_measures",
    "load_encoder",
    "load_recognizer",
    "merge",
    "random_like",
]
