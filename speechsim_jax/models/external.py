"""Encoders that are anybody's Python objects: measured on a few probes, checked in every batch.

Frames of every object have to be regular: frame t of each utterance is centred at a fixed time
first + t hop, and an utterance of n samples has floor((n - offset) / hop) + 1 frames.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Float32, Int

from speechsim_jax.array_types import FrameMask, HiddenStates, Lengths, Waveforms
from speechsim_jax.errors import UserError, counted
from speechsim_jax.models.architecture import Activations, Outputs
from speechsim_jax.models.config import SAMPLE_RATE_HZ, EncoderConfig
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.runtime.mesh import AXES, place_frames

PROBE_SAMPLES = 16_000
"""Samples of the probe that sizes are measured on."""

# Of the probe, what is kept to notice other weights when a job is resumed.
_KEPT_NEURONS = 4
# Times may be rounded, to float32 for example.
_TOLERANCE_SAMPLES = 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class Representations:
    """What an encoder of your own returns for a list of waveforms.

    Arrays are of jax, which stay on the device, or of numpy or torch, which go through the memory
    of the host.

    Attributes:
        arrays: [layer, batch, frame, neuron], floating-point, the same layers for every input;
            without meaning where `mask` is False.
        mask: [batch, frame], True for the frames of the utterance, which come first.
        times: [frame], the centre of each frame in seconds from the start of the waveform.

    >>> arrays = np.zeros((3, 1, 49, 24), np.float32)  # three layers of 24 neurons, 49 frames
    >>> times = (200 + 320 * np.arange(49)) / 16_000
    >>> ss.Representations(arrays, np.ones((1, 49), bool), times).mask.sum()
    np.int64(49)
    """

    arrays: Any
    mask: Any
    times: Any


@runtime_checkable
class Representing(Protocol):
    """An encoder of your own: any object that has this method.

    Optional attributes: `name`, its label in results (default: the name of the class); `version`
    and `sha256`, texts that say which weights it has; `longest_samples`, of the longest input.
    """

    def representations(self, waveforms: list[np.ndarray], sample_rate: int, /) -> Representations:
        """Encode a batch.

        Args:
            waveforms: each a float32 array [sample] in [-1, 1], of its own length.
            sample_rate: 16000.

        Returns:
            All layers; each utterance gets the same as alone.
        """
        ...


@dataclasses.dataclass(frozen=True)
class ExternalConfig(EncoderConfig):
    """What was measured of an encoder that is an object. It has no attention heads.

    Attributes:
        hop: samples between two frames.
        offset: samples at which frames begin to be counted; less than 0 where the object pads.
        window: samples of the shortest input.
        first_centre: where the first frame is centred, in samples.
        longest: samples of the longest input; None for any.
    """

    num_attention_heads: int = 0
    hop: int = 320
    offset: int = 400
    window: int = 400
    first_centre: float = 200.0
    longest: int | None = None

    def __post_init__(self):
        """Nothing is divided over heads."""

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> NoReturn:
        """There is no config.json."""
        raise UserError("an encoder that is a Python object has no config.json")

    def to_hf(self) -> NoReturn:
        """There is no config.json."""
        raise UserError("an encoder that is a Python object has no config.json")

    def preprocessor_to_hf(self) -> NoReturn:
        """There is no preprocessor_config.json."""
        raise UserError("an encoder that is a Python object has no preprocessor_config.json")

    @property
    def hop_samples(self) -> int:
        """Samples between two frames."""
        return self.hop

    @property
    def window_samples(self) -> int:
        """Samples of the shortest input."""
        return self.window

    @property
    def first_centre_samples(self) -> float:
        """Where the first frame is centred."""
        return self.first_centre

    @property
    def longest_samples(self) -> int | None:
        """Samples of the longest input; None for any."""
        return self.longest

    def frames(self, samples: Any) -> Any:
        """As `EncoderConfig.frames`."""
        return ((samples - self.offset) // self.hop + 1) * (samples >= self.window)


@dataclasses.dataclass(frozen=True, eq=False)
class ExternalEncoder:
    """An encoder that is a Python object; made by `measured`.

    Attributes:
        name: the label of the model in results.
        config: what was measured.
        source: the object.
        provenance: its class, module and version, as results record them.
        probe: some activations of a probe, [layer, neuron], by which other weights are noticed.
    """

    name: str
    config: ExternalConfig
    source: Representing
    provenance: Mapping[str, Any]
    probe: Float32[np.ndarray, "layer neuron"]

    def apply(
        self,
        samples: Waveforms,
        lengths: Lengths,
        outputs: Outputs = Outputs(),
        mesh: Mesh | None = None,
    ) -> Activations:
        """Encode a padded batch, as `SpeechEncoder.apply` does.

        Args:
            samples: [batch, sample], 16 kHz in [-1, 1], on the host.
            lengths: samples of each utterance; rows of length 0 are filler and come last.
            outputs: what to return.
            mesh: devices that the utterances are divided over (default: as they come).

        Returns:
            The hidden states, float32, 0 at frames that are none.

        Raises:
            UserError: attention is asked for, or the object returns other shapes, times or counts
                of frames than for the probes.
        """
        if outputs.attentions or outputs.projections:
            raise UserError(f"{self.name}: has no attention heads that are known; leave it out")
        layers = outputs.resolve(self.config).layers
        assert layers is not None
        samples, lengths = np.asarray(samples), np.asarray(lengths)
        waveforms = [row[:length].copy() for row, length in zip(samples, lengths) if length]
        found = _called(self.name, self.source, waveforms)
        counts = np.zeros(len(lengths), np.int32)
        counts[: len(waveforms)] = self._checked(found, lengths[: len(waveforms)])
        shape = len(lengths), int(self.config.frames(samples.shape[1]))
        if isinstance(found.arrays, jax.Array):
            states = _fitted(found.arrays, jax.device_put(counts), layers, shape)
            if mesh is not None and mesh.size > 1:
                states = jax.device_put(states, NamedSharding(mesh, P(None, AXES)))
        else:
            states = np.zeros((len(layers), *shape, self.config.hidden_size), np.float32)
            for row, count in enumerate(counts[: len(waveforms)]):
                states[:, row, :count] = found.arrays[list(layers), row, :count]
            states = jax.device_put(states) if mesh is None else place_frames(states, mesh)
        mask = np.arange(shape[1]) < counts[:, None]
        layout = None
        if mesh is not None and mesh.size > 1:
            layout = NamedSharding(mesh, P(AXES))
        return Activations(states, jax.device_put(mask, layout))

    def _checked(self, found: Representations, lengths: np.ndarray) -> Int[np.ndarray, " row"]:
        """Frames of each utterance; raises UserError where they are not as measured."""
        config = self.config
        expected = config.num_hidden_layers + 1, config.hidden_size
        size = found.arrays.shape[0], found.arrays.shape[3]
        if size != expected:
            raise UserError(
                f"{self.name}: returned {counted(size[0], 'layer')} of {size[1]} neurons; for the "
                f"probe they were {expected[0]} of {expected[1]}"
            )
        _check_regular(self.name, found.times, config.first_centre, config.hop)
        counts, known = _counts(self.name, found.mask), config.frames(lengths)
        if (counts != known).any():
            row = int(np.argmax(counts != known))
            raise UserError(
                f"{self.name}: gives {counted(int(counts[row]), 'frame')} for "
                f"{lengths[row]} samples; by its other inputs it should be {int(known[row])}"
            )
        return counts


Encoder = SpeechEncoder | ExternalEncoder
"""What a comparison reads."""


def measured(
    source: Representing,
    name: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    count: Callable[[int], int] | None = None,
) -> ExternalEncoder:
    """An object as an encoder of a comparison, of the sizes that short probes of noise show.

    Args:
        source: the object.
        name: label of the model in results (default: its `name`, or the name of its class).
        provenance: what is recorded besides class, module, version and sha256.
        count: frames of an input of so many samples, where this is known without running it.

    Raises:
        UserError: the object does not keep to `Representing`; its frames are not regular.
    """
    if isinstance(source, type):
        raise UserError(f"{source.__name__} is a class; pass an object of it: {source.__name__}()")
    kind = type(source)
    name = str(name or getattr(source, "name", None) or kind.__name__)
    noise = 0.1 * np.random.default_rng(0).standard_normal(2 * PROBE_SAMPLES)
    noise = noise.astype(np.float32)

    def of(samples: int) -> Representations:
        return _called(name, source, [noise[:samples].copy()])

    def counted_by_running(samples: int) -> int:
        return int(_counts(name, of(samples).mask)[0])

    count = count or counted_by_running
    found = of(PROBE_SAMPLES)
    frames = int(_counts(name, found.mask)[0])
    if frames < 2:
        raise UserError(f"{name}: gives {counted(frames, 'frame')} for a second of audio; 2 needed")
    times = SAMPLE_RATE_HZ * np.asarray(found.times, np.float64)
    hop = round((times[frames - 1] - times[0]) / (frames - 1))
    # To half a sample: an even window is centred between two.
    first = round(2 * float(times[0])) / 2
    if hop < 1:
        raise UserError(f"{name}: times do not ascend by a sample or more from frame to frame")
    _check_regular(name, found.times, first, hop)
    offset = first_length(count, frames, PROBE_SAMPLES - hop, PROBE_SAMPLES) - (frames - 1) * hop
    config = ExternalConfig(
        family="external",
        hidden_size=found.arrays.shape[3],
        num_hidden_layers=found.arrays.shape[0] - 1,
        hop=hop,
        offset=offset,
        window=max(offset, 1),
        first_centre=first,
        longest=getattr(source, "longest_samples", None),
    )
    for samples in (PROBE_SAMPLES - hop, 2 * PROBE_SAMPLES - hop // 2 - 1):
        if (other := count(samples)) != config.frames(samples):
            raise UserError(
                f"{name}: gives {frames} frames for {PROBE_SAMPLES} samples and {other} for "
                f"{samples}, which is not one for every {hop} samples, as its times say"
            )
    window = _shortest(count, config)
    kept = found.arrays[:, 0, frames // 2, :_KEPT_NEURONS]
    record = {
        "source": f"{kind.__module__}.{kind.__qualname__}",
        "class": kind.__qualname__,
        "module": kind.__module__,
        "version": getattr(source, "version", None),
        "sha256": getattr(source, "sha256", None),
        "notes": [],
        **(provenance or {}),
    }
    if record["sha256"] is None:
        record["notes"] = [
            *record["notes"],
            f"{name}: no sha256 of its weights is known; a resumed job compares a few activations",
        ]
    return ExternalEncoder(
        name,
        dataclasses.replace(config, window=window),
        source,
        record,
        np.asarray(jax.device_get(kept), np.float32),
    )


def first_length(count: Callable[[int], int], frames: int, short: int, enough: int) -> int:
    """The least number of samples that have so many frames.

    Args:
        count: frames of an input of so many samples; never fewer for a longer one.
        frames: how many are wanted.
        short: samples that have fewer.
        enough: samples that have them.
    """
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (short, middle) if count(middle) >= frames else (middle, enough)
    return enough


def _shortest(count: Callable[[int], int], config: ExternalConfig) -> int:
    """Samples of the shortest input that the object takes: those of a frame, or more."""

    def taken(samples: int) -> int:
        try:
            return int(count(samples) == config.frames(samples))
        except Exception:  # whatever an object raises that needs a longer input
            return 0

    if taken(config.window):
        return config.window
    return first_length(taken, 1, config.window, PROBE_SAMPLES)


def _called(name: str, source: Representing, waveforms: list[np.ndarray]) -> Representations:
    """What an object returns, with numpy arrays in place of all that are not of jax.

    Raises:
        UserError: it returns something else, of other numbers of axes or for another batch.
    """
    found = source.representations(waveforms, SAMPLE_RATE_HZ)
    if not isinstance(found, Representations):
        raise UserError(
            f"{name}: representations() returned {type(found).__name__}; expected "
            "speechsim_jax.Representations(arrays, mask, times)"
        )
    arrays = found.arrays
    if not isinstance(arrays, jax.Array):
        arrays = _on_host(arrays)
    mask, times = _on_host(found.mask), _on_host(found.times)
    if arrays.ndim != 4 or not jnp.issubdtype(arrays.dtype, jnp.floating) or not arrays.size:
        raise UserError(
            f"{name}: arrays are {arrays.dtype} {list(arrays.shape)}; expected floating-point "
            "[layer, batch, frame, neuron]"
        )
    batch, frames = len(waveforms), arrays.shape[2]
    shapes = {"arrays": arrays.shape[1:3], "mask": mask.shape}
    wrong = next((k for k, shape in shapes.items() if shape != (batch, frames)), None)
    if wrong:
        raise UserError(
            f"{name}: {wrong} have shape {list(getattr(found, wrong).shape)} for {batch} waveforms "
            f"and {frames} frames; expected arrays [layer, batch, frame, neuron], mask [batch, "
            "frame]"
        )
    if times.shape != (frames,):
        raise UserError(f"{name}: times have shape {list(times.shape)}; expected [{frames}]")
    if mask.dtype != bool:
        raise UserError(f"{name}: mask is {mask.dtype}; expected bool")
    return Representations(arrays, mask, times)


def _on_host(array: Any) -> np.ndarray:
    """An array of jax, numpy or torch in the memory of the host."""
    if hasattr(array, "detach"):  # torch, on whatever device; it has types that numpy lacks
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array
    return np.asarray(jax.device_get(array))


def _counts(name: str, mask: np.ndarray) -> Int[np.ndarray, " row"]:
    """Frames of each utterance; raises UserError where they are not the first ones."""
    counts = mask.sum(axis=1).astype(np.int32)
    if (mask != (np.arange(mask.shape[1]) < counts[:, None])).any():
        raise UserError(f"{name}: mask has a gap; the frames of an utterance have to come first")
    return counts


def _check_regular(name: str, times: np.ndarray, first: float, hop: int) -> None:
    """Raise UserError unless frames are centred every so many samples."""
    expected = first + hop * np.arange(len(times))
    off = np.abs(SAMPLE_RATE_HZ * np.asarray(times, np.float64) - expected)
    if not (off <= _TOLERANCE_SAMPLES).all():
        frame = int(np.argmin(off <= _TOLERANCE_SAMPLES))
        raise UserError(
            f"{name}: times are not regular: frame {frame} is at {float(times[frame]):.6g} s, not "
            f"at {expected[frame] / SAMPLE_RATE_HZ:.6g} s, {hop} samples of 16 kHz after the other"
        )


@functools.partial(jax.jit, static_argnames=("layers", "shape"))
def _fitted(
    arrays: Float[Array, "_layer _batch _frame _neuron"],
    counts: Int[Array, " batch"],
    layers: Sequence[int],
    shape: tuple[int, int],
) -> HiddenStates:
    """Layers of a batch as float32, in the shape of a padded batch, 0 at frames that are none."""
    batch, frames = shape
    arrays = arrays[np.array(layers), :, :frames].astype(jnp.float32)
    missing = batch - arrays.shape[1], frames - arrays.shape[2]
    arrays = jnp.pad(arrays, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))
    mask: FrameMask = jnp.arange(frames) < counts[:, None]
    return jnp.where(mask[:, :, None], arrays, 0)
