"""How alike are speech encoders, neuron by neuron and layer by layer, in one streaming pass?

>>> import speechsim_jax as ss
>>> result = ss.compare(models=["facebook/hubert-base-ls960", "runs/mine"], audio="speech/")
>>> figure = ss.plot(result, "lincka")

Importing this touches no device, flag or configuration; each name loads its module at first use.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechsim_jax.audio.open_corpus import open_corpus
    from speechsim_jax.comparison.activations import compare_activations
    from speechsim_jax.comparison.attentions import compare_attentions
    from speechsim_jax.comparison.encoders import accumulate, compare
    from speechsim_jax.comparison.merge import merge
    from speechsim_jax.errors import UserError
    from speechsim_jax.figures import plot, save_figures
    from speechsim_jax.inference.contrast import Contrast
    from speechsim_jax.measures.base import Measure
    from speechsim_jax.measures.registry import list_measures
    from speechsim_jax.measures.registry import register as register_measure
    from speechsim_jax.models.architecture import Activations
    from speechsim_jax.models.encoder import SpeechEncoder
    from speechsim_jax.models.error_rates import ErrorRates, error_rates
    from speechsim_jax.models.external import Representations
    from speechsim_jax.models.load import load_encoder, random_like
    from speechsim_jax.models.recognizer import Recognizer, load_recognizer
    from speechsim_jax.pipeline.accumulators import register_statistic
    from speechsim_jax.report import write_report
    from speechsim_jax.results.result import RepresentationName, SimilarityResult
    from speechsim_jax.settings import Output, Resources, Settings

# Public name: module, and its name there.
_PUBLIC = {
    "Activations": ("models.architecture", "Activations"),
    "Contrast": ("inference.contrast", "Contrast"),
    "ErrorRates": ("models.error_rates", "ErrorRates"),
    "Measure": ("measures.base", "Measure"),
    "Output": ("settings", "Output"),
    "Recognizer": ("models.recognizer", "Recognizer"),
    "RepresentationName": ("results.result", "RepresentationName"),
    "Representations": ("models.external", "Representations"),
    "Resources": ("settings", "Resources"),
    "Settings": ("settings", "Settings"),
    "SimilarityResult": ("results.result", "SimilarityResult"),
    "SpeechEncoder": ("models.encoder", "SpeechEncoder"),
    "UserError": ("errors", "UserError"),
    "accumulate": ("comparison.encoders", "accumulate"),
    "compare": ("comparison.encoders", "compare"),
    "compare_activations": ("comparison.activations", "compare_activations"),
    "compare_attentions": ("comparison.attentions", "compare_attentions"),
    "error_rates": ("models.error_rates", "error_rates"),
    "list_measures": ("measures.registry", "list_measures"),
    "load_encoder": ("models.load", "load_encoder"),
    "load_recognizer": ("models.recognizer", "load_recognizer"),
    "merge": ("comparison.merge", "merge"),
    "open_corpus": ("audio.open_corpus", "open_corpus"),
    "plot": ("figures", "plot"),
    "random_like": ("models.load", "random_like"),
    "register_measure": ("measures.registry", "register"),
    "register_statistic": ("pipeline.accumulators", "register_statistic"),
    "save_figures": ("figures", "save_figures"),
    "write_report": ("report", "write_report"),
}

__all__ = [
    "Activations",
    "Contrast",
    "ErrorRates",
    "Measure",
    "Output",
    "Recognizer",
    "RepresentationName",
    "Representations",
    "Resources",
    "Settings",
    "SimilarityResult",
    "SpeechEncoder",
    "UserError",
    "accumulate",
    "compare",
    "compare_activations",
    "compare_attentions",
    "error_rates",
    "list_measures",
    "load_encoder",
    "load_recognizer",
    "merge",
    "open_corpus",
    "plot",
    "random_like",
    "register_measure",
    "register_statistic",
    "save_figures",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = importlib.metadata.version("speechsim_jax")
    elif name in _PUBLIC:
        module, attribute = _PUBLIC[name]
        value = getattr(importlib.import_module(f"speechsim_jax.{module}"), attribute)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
