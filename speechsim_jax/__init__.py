"""How alike are speech encoders, neuron by neuron and layer by layer, in one streaming pass?

>>> import speechsim_jax as ss
>>> result = ss.compare(models=["facebook/hubert-base-ls960", "runs/mine"], audio="speech/")
>>> result.plot("lincka")

Importing this touches no device, flag or configuration.
"""

import importlib.metadata

from speechsim_jax.arrays import compare_activations
from speechsim_jax.engine import Settings, compare
from speechsim_jax.errors import UserError
from speechsim_jax.measures import list_measures
from speechsim_jax.models.encoder import Activations, SpeechEncoder
from speechsim_jax.models.loading import load_encoder
from speechsim_jax.results import NetworkName, SimilarityResult

__version__ = importlib.metadata.version("speechsim_jax")

__all__ = [
    "Activations",
    "NetworkName",
    "Settings",
    "SimilarityResult",
    "SpeechEncoder",
    "UserError",
    "compare",
    "compare_activations",
    "list_measures",
    "load_encoder",
]
