"""`SpeechEncoder`: a loaded model, and its forward pass as one compiled function."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
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
from speechsim_jax.models.config import SAMPLE_RATE_HZ, EncoderConfig


@dataclasses.dataclass(frozen=True, eq=False)
class SpeechEncoder:
    """A loaded encoder: its architecture, its parameters and where they come from.

    Attributes:
        name: the label of the model in results.
        config: the architecture.
        graph: the static part of the network; models of one architecture have equal ones.
        parameters: a pytree of float32 arrays (bfloat16 kernels after `astype`).
        provenance: source, resolved revision and weight hash, as results record them.

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

    def __repr__(self) -> str:
        """Three lines; the generated one would print every parameter."""
        config = self.config
        return (
            f"SpeechEncoder {self.name!r} ({config.family})\n"
            f"  {config.num_hidden_layers} layers of {config.hidden_size} neurons, "
            f"{config.num_attention_heads} heads, hop {config.hop_samples} samples\n"
            f"  source {self.provenance.get('source', 'unknown')}"
        )

    def apply(
        self,
        samples: Waveforms,
        lengths: Lengths,
        outputs: Outputs = Outputs(),
        precision: str = "highest",
        out: Activations | None = None,
    ) -> Activations:
        """The jitted forward pass of a padded batch.

        Args:
            samples: [batch, sample], 16 kHz in [-1, 1], float32; ignored past `lengths`.
            lengths: samples of each utterance; a row of length 0 is filler.
            outputs: what to return (default: all hidden states).
            precision: of matrix products, in JAX's words or an algorithm's name.
            out: a result of the same shapes that is no longer needed; its memory is written over
                (donated), so that a loop does not allocate for every batch.

        Returns:
            The activations; frames past the end of an utterance are undefined (`frame_mask`).
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
        waveforms: Iterable[Any],
        *,
        layers: Sequence[int] | None = None,
        attentions: bool = False,
        projections: bool = False,
        features: bool = False,
        last_layer: Literal["normed", "raw"] = "normed",
        out: Activations | None = None,
    ) -> Activations:
        """Encode waveforms of any lengths as one batch; each gets what it would get alone.

        A batch is padded to one of a few lengths (`padded`), and what that adds is cut off again:
        calls with the same number of waveforms share few compiled programs, whatever the lengths.

        Args:
            waveforms: 16 kHz mono: floating-point numbers in [-1, 1], or integers, which are scaled
                to that range as those of files.
            layers: numbers of the hidden states to return (default: all); 0 is the input of the
                first transformer layer.
            attentions: return the attention maps.
            projections: return queries and keys, and what else maps are computed from (in WavLM
                gates and position bias, in conformers position queries and keys).
            features: return the normed outputs of the convolutions, in w2v-BERT the normed mel
                features.
            last_layer: how the last hidden state of a stable-layer-norm model is read: after the
                final layer norm ("normed") or before it ("raw"); see `Outputs`.
            out: a result of the same shapes to write over; it must not be used afterwards. With it,
                a batch is padded to its longest waveform only.

        Returns:
            The activations; fields that were not asked for are None.

        Raises:
            UserError: a waveform shorter than one frame or longer than the model reads
                (`config.longest_samples`), or an `out` of other shapes.
        """
        outputs = Outputs(
            tuple(layers) if layers is not None else None,
            attentions,
            projections,
            features,
            last_layer,
        )
        samples, lengths = self.padded(waveforms)
        longest = int(lengths.max())
        if out is not None:
            return self.apply(samples[:, :longest], lengths, outputs, out=out)
        activations = self.apply(samples, lengths, outputs)
        return activations.first_frames(
            int(self.config.frames(longest)), int(self.config.map_frames(longest))
        )

    def padded(self, waveforms: Iterable[Any]) -> tuple[Waveforms, Lengths]:
        """Waveforms of any lengths as a padded batch, as `apply` reads it.

        Args:
            waveforms: as in `__call__`.

        Returns:
            Samples [batch, sample], float32, of one of the few lengths that share compiled programs
            (`EncoderConfig.padded_samples`), and the length of each waveform.

        Raises:
            UserError: as in `__call__`.

        >>> encoder = ss.load_encoder("facebook/hubert-base-ls960")
        >>> samples, lengths = encoder.padded([np.zeros(16000, np.float32)])
        >>> samples.shape, lengths.tolist()
        ((1, 18319), [16000])
        """
        waveforms = [_as_float(wave) for wave in waveforms]
        lengths = np.array([len(wave) for wave in waveforms], np.int32)
        if not len(lengths) or lengths.min() < self.config.window_samples:
            raise UserError(
                f"every waveform needs at least {self.config.window_samples} samples (one frame); "
                f"got lengths {lengths.tolist()}"
            )
        longest = self.config.longest_samples
        if longest is not None and lengths.max() > longest:
            raise UserError(
                f"{self.name} reads at most {longest} samples ({longest / SAMPLE_RATE_HZ:g} s); "
                f"got lengths {lengths.tolist()}: cut what is longer"
            )
        samples = np.zeros(
            (len(lengths), self.config.padded_samples(int(lengths.max()))), np.float32
        )
        for row, wave in zip(samples, waveforms):
            row[: len(wave)] = wave
        return samples, lengths

    def astype(self, dtype: Literal["float32", "bfloat16"]) -> "SpeechEncoder":
        """The encoder with its kernels rounded to `dtype`; products are summed in float32.

        Norms, softmax, residual sums and the weight-normed positional kernel stay float32, and so
        does everything that `apply` returns, except queries and keys, which have `dtype`.

        Args:
            dtype: "float32" or "bfloat16".

        Returns:
            A new encoder, whose provenance records the type of its kernels.

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

        It holds config.json, preprocessor_config.json and model.safetensors. Fields that only
        training reads, such as dropout, are not known here and take transformers' defaults.

        Args:
            folder: where to write; it is created if need be.
            dtype: element type of the saved weights; "float32" keeps every bit.

        Returns:
            The path of the folder.

        Raises:
            UserError: the folder cannot be written, or a weight is too large for `dtype`.

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

    Args:
        parameters: pytree of the network's parameters.
        samples: [batch, sample], 16 kHz in [-1, 1].
        lengths: samples of each utterance.
        out: a result of the same shapes to write over (donated).
        graph: the static part of the network.
        outputs: what to return.
        precision: of matrix products, in JAX's words or an algorithm's name.

    Returns:
        The activations.
    """
    with jax.default_matmul_precision(precision):
        network = nnx.merge(graph, parameters)
        return network(jnp.asarray(samples), jnp.asarray(lengths), outputs, out)


def _as_float(waveform: Any) -> Float[np.ndarray, " _"]:
    """Samples in [-1, 1]; raises UserError for what is no waveform."""
    samples = np.asarray(waveform)
    if samples.ndim != 1:
        raise UserError(f"a waveform has shape {samples.shape}; expected one axis: mix channels")
    if samples.dtype.kind == "f":
        return samples
    if samples.dtype.kind == "i":
        return samples / np.float32(2 ** (8 * samples.dtype.itemsize - 1))
    if samples.dtype == np.uint8:  # as in files of 8 bits
        return (samples.astype(np.float32) - 128) / np.float32(128)
    raise UserError(f"a waveform is of type {samples.dtype}; expected floating-point or int16")
