"""`SpeechEncoder`: a loaded model, and its forward pass as one compiled function."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from speechsim_jax.array_types import Lengths, Waveforms
from speechsim_jax.errors import UserError
from speechsim_jax.models import save as saving
from speechsim_jax.models import weight_names
from speechsim_jax.models.architecture import Activations, Outputs
from speechsim_jax.models.config import EncoderConfig


@dataclasses.dataclass(frozen=True, eq=False)
class SpeechEncoder:
    """A loaded encoder: a pure function of its parameters, and where they come from.

    `name` is the model's label in results, `parameters` a pytree of float32 arrays; `provenance`
    holds source, resolved revision and weight hash for the result's record.

    >>> encoder = ss.load_encoder("facebook/hubert-base-ls960")
    >>> acts = encoder([np.zeros(16000, np.float32)], attentions=True)
    >>> acts.hidden_states.shape[1:3], acts.attentions.shape[3:]  # a batch of 1, 49 frames
    ((1, 49), (49, 49))
    """

    name: str
    config: EncoderConfig
    graph: nnx.GraphDef
    parameters: Any
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def apply(
        self,
        samples: Waveforms,
        lengths: Lengths,
        outputs: Outputs = Outputs(),
        precision: str = "highest",
        out: Activations | None = None,
    ) -> Activations:
        """The jitted forward pass of a padded batch; `precision` is that of its products.

        `out`: a result of the same shapes that is no longer needed; its memory is written over
        (donated), so that a loop does not claim fresh memory for every batch.
        """
        return forward(
            self.parameters,
            samples,
            lengths,
            out,
            graph=self.graph,
            outputs=outputs,
            precision=precision,
        )

    def __call__(
        self,
        waveforms: Sequence[Float[np.ndarray, " _"]],
        *,
        layers: Sequence[int] | None = None,
        attentions: bool = False,
        projections: bool = False,
        features: bool = False,
        last_layer: Literal["normed", "raw"] = "normed",
        out: Activations | None = None,
    ) -> Activations:
        """Encode 16 kHz mono waveforms in [-1, 1], of any lengths, as one batch.

        Each utterance gets what it would get alone. `layers`: only these hidden states. The fields
        `attentions`, `features` and, by `projections`, queries and keys with what WavLM adds to
        them, are None unless asked for. `out` is a result of the same shapes to write over: it must
        not be used afterwards.

        Raises:
            UserError: a waveform shorter than one frame, or an `out` of other shapes.
        """
        lengths = np.array([len(wave) for wave in waveforms], np.int32)
        if not len(lengths) or lengths.min() < self.config.window_samples:
            raise UserError(
                f"every waveform needs at least {self.config.window_samples} samples (one frame); "
                f"got lengths {lengths.tolist()}"
            )
        samples = np.zeros((len(lengths), lengths.max()), np.float32)
        for row, wave in zip(samples, waveforms):
            row[: len(wave)] = wave
        outputs = Outputs(
            tuple(layers) if layers is not None else None,
            attentions,
            projections,
            features,
            last_layer,
        )
        return self.apply(samples, lengths, outputs, out=out)

    def astype(self, dtype: Literal["float32", "bfloat16"]) -> "SpeechEncoder":
        """The encoder with its kernels rounded: products of `dtype` numbers, summed in float32.

        Norms, softmax, residual sums and the weight-normed positional kernel stay float32, and so
        does everything that `apply` returns but queries and keys, which are as they are multiplied.

        >>> ss.load_encoder("runs/mine").astype("bfloat16").provenance["kernels"]
        'bfloat16'
        """

        def rounded(path: tuple, parameter: Array) -> Array:
            return (
                parameter.astype(dtype) if "'kernel'" in jax.tree_util.keystr(path) else parameter
            )

        parameters = jax.tree_util.tree_map_with_path(rounded, self.parameters)
        provenance = dict(self.provenance) | {"kernels": dtype}
        return dataclasses.replace(self, parameters=parameters, provenance=provenance)

    def save(
        self,
        folder: str | Path,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    ) -> Path:
        """Write a Hugging Face folder that `load_encoder` and torch transformers read.

        config.json, preprocessor_config.json and model.safetensors with numbers of `dtype`
        (float32 keeps every bit). What only training reads, such as dropout, is not known here and
        takes transformers' defaults. Raises UserError if it cannot be written.

        >>> folder = ss.load_encoder("runs/mine").save("saved")
        >>> sorted(file.name for file in folder.iterdir())
        ['config.json', 'model.safetensors', 'preprocessor_config.json']
        """
        tensors = weight_names.export(self.config, self.parameters)
        return saving.save_folder(folder, self.config, tensors, dtype)


@functools.partial(
    jax.jit, static_argnames=("graph", "outputs", "precision"), donate_argnames=("out",)
)
def forward(
    parameters: Any,
    samples: Waveforms,
    lengths: Lengths,
    out: Activations | None = None,
    *,
    graph: nnx.GraphDef,
    outputs: Outputs,
    precision: str,
) -> Activations:
    """The forward pass as a pure function; models of one architecture share its compilations.

    `out` is donated: the activations are written over it.
    """
    with jax.default_matmul_precision(precision):
        network = nnx.merge(graph, parameters)
        return network(jnp.asarray(samples), jnp.asarray(lengths), outputs, out)
