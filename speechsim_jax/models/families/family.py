"""What a family of encoders is: how its files are read, what its network is, how it starts."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from speechsim_jax.models.architecture import Network
from speechsim_jax.models.config import EncoderConfig

ParameterPath = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Weight:
    """One parameter and its name in checkpoints.

    Attributes:
        name: HF's name, without prefix.
        path: of the parameter in the network.
        shape: of the parameter.
        transposed: the torch tensor has the axes in reverse order.
    """

    name: str
    path: ParameterPath
    shape: tuple[int, ...]
    transposed: bool

    def from_torch(self, tensor: np.ndarray) -> np.ndarray:
        """The parameter (float32) of a torch tensor, whose axes are reversed if transposed."""
        tensor = tensor.astype(np.float32)
        return np.ascontiguousarray(tensor.T) if self.transposed else tensor

    def to_torch(self, parameter: np.ndarray) -> np.ndarray:
        """The torch tensor of a parameter."""
        return np.ascontiguousarray(parameter.T) if self.transposed else parameter


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of encoders.

    Attributes:
        model_type: in config.json.
        class_stem: of transformers' classes: "Wav2Vec2" of Wav2Vec2Model and Wav2Vec2ForCTC.
        config: the class of its configurations.
        network: the class of its networks, constructed from a configuration and `nnx.Rngs`.
        draw: the initial value of a parameter as a torch tensor, from configuration, parameter and
            seed.
        network_of: the family whose network this is, if another: models then share compilations.
        first: HF's name, without prefix, of a tensor that every checkpoint has.
        ignored: further tensors of the encoder's checkpoints that are no parameters.
        mask_embedding: transformers' model has an embedding of masked frames even where its
            configuration masks none.
        buffers: tensors by name, without prefix, that transformers expects in files although they
            follow from the configuration.
        places: names of the encoder in larger models, the longest first; by default the model
            type, as in "wav2vec2.encoder.layer_norm.weight".
        encoder_class: the end of the name of transformers' class of the encoder alone.
        ctc: transformers has a ...ForCTC of it.
    """

    model_type: str
    class_stem: str
    config: type[EncoderConfig]
    network: type[Network]
    draw: Callable[[Any, Weight, int], np.ndarray]
    network_of: str | None = None
    first: str = "feature_extractor.conv_layers.0.conv.weight"
    ignored: re.Pattern[str] | None = None
    mask_embedding: bool = False
    buffers: Callable[[Any], dict[str, np.ndarray]] | None = None
    places: tuple[str, ...] = ()
    encoder_class: str = "Model"
    ctc: bool = True

    @property
    def prefix(self) -> str:
        """Of the encoder's tensors in files saved from a model with a head."""
        return self.prefixes[0]

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Of the encoder's tensors in files saved from any of the larger models."""
        places = self.places or (self.model_type.replace("-", "_"),)
        return tuple(f"{place}." for place in places)
