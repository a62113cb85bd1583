"""The parity fixtures of tests/data/parity, loaded; and what it means for two encoders to agree."""

import dataclasses
import functools

import jax
import numpy as np

from speechsim_jax.models.architecture import Activations, Outputs
from speechsim_jax.models.encoder import SpeechEncoder, forward
from speechsim_jax.models.load import load_encoder
from tests.support.paths import DATA

FOLDER = DATA / "parity"
LAYOUTS = sorted(path.name for path in FOLDER.iterdir())
EVERYTHING = Outputs(attentions=True, projections=True, features=True)
# In addition to the three utterances of a fixture, in samples beyond those of one frame. Some share
# their number of frames and differ in samples: operations are compiled once per shape.
OTHER_LENGTHS = (2, 4, 1303, 1304, 4604)
eager = forward.__wrapped__


@dataclasses.dataclass(frozen=True)
class Fixture:
    """A ported checkpoint, its utterances, and what torch computed for each of the first three."""

    encoder: SpeechEncoder
    waves: list[np.ndarray]
    expected: list[dict[str, np.ndarray]]

    @functools.cached_property
    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """All utterances in one padded batch, and a filler row."""
        lengths = np.array([*map(len, self.waves), 0], np.int32)
        samples = np.zeros((len(lengths), lengths.max()), np.float32)
        for row, wave in zip(samples, self.waves):
            row[: len(wave)] = wave
        return samples, lengths

    def run(self, samples, lengths, outputs=EVERYTHING, parameters=None, function=eager):
        parameters = self.encoder.parameters if parameters is None else parameters
        more = {"graph": self.encoder.graph, "outputs": outputs, "precision": "highest"}
        return function(parameters, samples, lengths, **more)

    @functools.cached_property
    def together(self) -> Activations:
        return self.run(*self.batch)

    @functools.cache
    def alone(self, index: int, outputs: Outputs = EVERYTHING) -> Activations:
        wave = self.waves[index]
        return self.run(wave[None], np.array([len(wave)], np.int32), outputs)

    __hash__ = object.__hash__


@functools.cache
def fixture(layout: str) -> Fixture:
    arrays = np.load(FOLDER / layout / "expected.npz")
    names = {name.rpartition("_")[0] for name in arrays.files} - {"wave"}
    waves = [arrays[f"wave_{index}"] for index in range(3)]
    expected = [{name: arrays[f"{name}_{index}"] for name in names} for index in range(3)]
    rng = np.random.default_rng(11)
    encoder = load_encoder(FOLDER / layout)
    lengths = [encoder.config.window_samples + n for n in OTHER_LENGTHS]
    waves += [(0.1 * rng.standard_normal(n)).astype(np.float32) for n in lengths]
    return Fixture(encoder, waves, expected)


def pulses(noise: np.ndarray) -> np.ndarray:
    """Noise that fades every 50 ms, so that its loudness in a band varies as that of speech does.

    The extractor rounds logarithms to float32 and divides them by their deviation. That of steady
    noise is small: what the extractor gives for it is 1e-5 from what it would give in float64.
    """
    return (noise * np.exp(-(np.arange(len(noise)) % 800) / 100)).astype(np.float32)


def assert_same_network(a: SpeechEncoder, b: SpeechEncoder) -> None:
    assert a.config == b.config
    leaves = [jax.tree_util.tree_leaves_with_path(encoder.parameters) for encoder in (a, b)]
    for (path, x), (other, y) in zip(*leaves, strict=True):
        assert path == other and x.dtype == y.dtype == np.float32
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """The largest over neurons of rms(a - b) / rms(b); [frame, neuron]."""
    assert a.shape == b.shape
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.sqrt(np.square(a - b).mean(0) / np.square(b).mean(0)).max())
