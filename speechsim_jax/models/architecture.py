"""What every network does: samples in, activations out."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from speechsim_jax._jax_compat import concatenate_in_place
from speechsim_jax.array_types import (
    Attentions,
    FrameMask,
    Gates,
    Hidden,
    HiddenStates,
    PositionBias,
    PositionKeys,
    Projections,
)
from speechsim_jax.errors import UserError
from speechsim_jax.models.config import EncoderConfig


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a forward pass returns; layers above the last one named are not computed.

    Attributes:
        layers: hidden states by number (0 is the input of the first transformer layer); all if
            None.
        attentions: attention maps.
        projections: queries and keys, and what else attention maps are computed from: in WavLM
            gates and position bias, in conformers position queries and position keys.
        features: the normed outputs of the convolutions.
        last_layer: how the last hidden state of a stable-layer-norm model is read: "normed" is
            after the encoder's final layer norm (transformers 4, the published analysis), "raw"
            before it (transformers 5). No difference for post-norm models.
    """

    layers: tuple[int, ...] | None = None
    attentions: bool = False
    projections: bool = False
    features: bool = False
    last_layer: Literal["normed", "raw"] = "normed"

    def resolve(self, config: EncoderConfig) -> "Outputs":
        """The same outputs with `layers` listed.

        Args:
            config: the architecture of the model.

        Raises:
            UserError: the model lacks one of the layers, or none is named.
        """
        depth = config.num_hidden_layers
        layers = tuple(range(depth + 1)) if self.layers is None else self.layers
        unknown = [layer for layer in layers if not 0 <= layer <= depth]
        if unknown or not layers:
            raise UserError(f"no layer {unknown}: the model has layers 0 to {depth}")
        return dataclasses.replace(self, layers=layers)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Activations:
    """Output of an encoder for a batch; frames where `frame_mask` is False are undefined.

    Attributes:
        hidden_states: [layer, batch, frame, neuron], the layers that were asked for.
        frame_mask: [batch, frame], True for the frames of the utterance.
        attentions: [block, batch, head, query, key]; each row sums to 1 over the valid keys. Those
            of Whisper are over its window of 30 s with the silence behind the utterance; from
            `queries` and `keys` come their rows over the utterance's frames, which sum to 1.
        queries: [block, batch, frame, head, neuron], already scaled; with `keys`, in WavLM
            `gates` and `position_bias`, and in conformers `position_queries` and `position_keys`,
            the inputs of `models.attention.attention_rows`.
        keys: shaped as `queries`.
        gates: [block, batch, head, frame], WavLM's gates of the position bias.
        position_bias: [head, distance]; index d stands for key - query = d - (frames - 1).
        features: [batch, frame, neuron], the normed outputs of the convolutions
            (`extract_features` in transformers); in w2v-BERT the normed mel features. None where
            their frames are not those of the hidden states (SEW).
        position_queries: shaped as `queries`, already scaled; of conformers with Transformer-XL's
            relative positions. None where the position keys meet the queries themselves.
        position_keys: [block, head, distance, neuron], of conformers with relative positions;
            distances as in `position_bias`. One head if all share them.

    >>> encoder = ss.load_encoder("facebook/hubert-base-ls960")
    >>> acts = encoder([np.zeros(16000, np.float32)], attentions=True)
    >>> int(acts.frame_mask.sum()), acts.queries is None
    (49, True)
    """

    hidden_states: HiddenStates
    frame_mask: FrameMask
    attentions: Attentions | None = None
    queries: Projections | None = None
    keys: Projections | None = None
    gates: Gates | None = None
    position_bias: PositionBias | None = None
    features: Hidden | None = None
    position_queries: Projections | None = None
    position_keys: PositionKeys | None = None

    def first_frames(self, frames: int, map_frames: int) -> "Activations":
        """The activations as those of a batch that is padded less.

        Args:
            frames: of the batch.
            map_frames: those that its attention maps are over.

        Returns:
            Copies; what has these frames already is the same array.
        """
        missing = self.frame_mask.shape[1] - frames
        distances = slice(missing, missing + 2 * frames - 1)  # those around 0
        index = {
            "frame_mask": np.s_[:, :frames],
            "attentions": np.s_[..., :map_frames, :map_frames],
            "gates": np.s_[..., :frames],
            "position_bias": np.s_[:, distances],
            "features": np.s_[:, :frames],
            "position_keys": np.s_[:, :, distances],
        }
        cut = {}
        for field in dataclasses.fields(self):
            array = getattr(self, field.name)
            if array is not None:
                cut[field.name] = _cut(array, index.get(field.name, np.s_[:, :, :frames]))
        return Activations(**cut)


class Frames(NamedTuple):
    """What a network's transformer reads.

    Attributes:
        x: the frames of the padded batch; there may be more behind them, which are not returned.
        mask: the frames of the utterances.
        features: the normed outputs of the convolutions; None where there are none.
    """

    x: Hidden
    mask: FrameMask
    features: Hidden | None


class Transformed(NamedTuple):
    """What a network's transformer makes.

    Attributes:
        states: hidden states 0 to the highest one that was asked for.
        blocks: of each transformer layer, by name, what its attention is computed from: `queries`
            and `keys` and others of `Activations`, and with `Outputs.attentions` its maps.
        position_bias: WavLM's, shared by all layers; None for others.
    """

    states: list[Hidden]
    blocks: list[dict[str, Array]]
    position_bias: PositionBias | None = None


class Network(nnx.Module):
    """A network; parameter paths are transformers' names.

    A family has a class of its own (`models.families`), which says how samples become frames and
    frames hidden states.
    """

    config: Any

    def __init__(self, config: Any, rngs: nnx.Rngs):
        self.config = config

    def read(self, samples: Float[Array, "batch sample"], lengths: Int[Array, " batch"]) -> Frames:
        """Everything before the transformer.

        Args:
            samples: 16 kHz in [-1, 1]; 0 past `lengths`.
            lengths: samples of each utterance; 0 marks a filler row.
        """
        raise NotImplementedError

    def transform(self, x: Hidden, mask: FrameMask, outputs: Outputs) -> Transformed:
        """The transformer.

        Args:
            x: frames of a padded batch.
            mask: the valid ones.
            outputs: what to return; its `layers` are listed.
        """
        raise NotImplementedError

    def head_input(
        self, last: Hidden, lengths: Int[Array, " batch"]
    ) -> Float[Array, "batch upsampled neuron"]:
        """What a CTC head reads.

        Args:
            last: the last hidden state, normed.
            lengths: samples of each utterance.

        Returns:
            Its input, of which `EncoderConfig.logit_frames` are of the utterance.
        """
        return last

    def __call__(
        self,
        samples: Float[Array, "batch sample"],
        lengths: Int[Array, " batch"],
        outputs: Outputs,
        out: Activations | None = None,
    ) -> Activations:
        """Encode a padded batch.

        Args:
            samples: 16 kHz in [-1, 1]; ignored past `lengths`.
            lengths: samples of each utterance; 0 marks a filler row.
            outputs: what to return.
            out: a result of the same shapes to write over.
        """
        outputs = outputs.resolve(self.config)
        inside = jnp.arange(samples.shape[1]) < lengths[:, None]
        x, mask, features = self.read(jnp.where(inside, samples, 0), lengths)
        states, blocks, position_bias = self.transform(x, mask, outputs)
        frames = self.config.frames(samples.shape[1])
        states = [state[:, :frames] for state in states]
        assert outputs.layers is not None

        def of_blocks(name: str, requested: bool) -> Array | None:
            arrays = [inputs[name] for inputs in blocks if name in inputs]
            if name in ("queries", "keys"):
                arrays = [array[:, :frames] for array in arrays]
            return stacked(name, arrays) if requested and arrays else None

        def stacked(name: str, arrays: Sequence[Array]) -> Array:
            return _stack(name, arrays, None if out is None else getattr(out, name))

        return Activations(
            hidden_states=stacked("hidden_states", [states[layer] for layer in outputs.layers]),
            frame_mask=mask[:, :frames],
            attentions=of_blocks("attentions", outputs.attentions),
            queries=of_blocks("queries", outputs.projections),
            keys=of_blocks("keys", outputs.projections),
            gates=of_blocks("gates", outputs.projections),
            position_bias=position_bias if outputs.projections else None,
            features=features if outputs.features else None,
            position_queries=of_blocks("position_queries", outputs.projections),
            position_keys=of_blocks("position_keys", outputs.projections),
        )


def _cut(array: Array, index: tuple) -> Array:
    """A part of an array, copied without a program on a CPU.

    JAX compiles a program for a slice of each shape, which takes 0.1 s on a CPU.
    """
    if isinstance(array, Tracer) or next(iter(array.devices())).platform != "cpu":
        return array[index]
    part = np.asarray(array)[index]
    if part.shape == array.shape:
        return array
    return jax.device_put(part, array.sharding if array.committed else None)


def _stack(name: str, arrays: Sequence[Array], out: Array | None) -> Array:
    """The arrays along a new first axis, written into `out` if there is one."""
    shape, dtype = (len(arrays), *arrays[0].shape), arrays[0].dtype
    if out is not None and (out.shape, out.dtype) != (shape, dtype):
        raise UserError(
            f"out.{name} is {out.dtype} {list(out.shape)}, but these waveforms and outputs "
            f"give {dtype} {list(shape)}: pass the result of a batch of the same shape, or nothing"
        )
    return concatenate_in_place([array[None] for array in arrays], out)
