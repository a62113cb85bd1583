"""Encoders that are objects: measured sizes, what stays on the device, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.errors import UserError
from speechsim_jax.models.architecture import Outputs
from speechsim_jax.models.external import measured
from tests.support.paths import DATA
from tests.support.wrapped import Wrapped, half_rate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def encoder() -> ss.SpeechEncoder:
    return ss.load_encoder(DATA / "parity" / "wav2vec2-base")


@pytest.fixture(scope="module")
def external(encoder):
    return measured(Wrapped(encoder, np.asarray))


class Counting:
    """Frames of any regular kind: the number of each frame as its only neuron."""

    def __init__(self, hop: int, offset: int, first: float, least: int = 1):
        self.hop, self.offset, self.first, self.least = hop, offset, first, least

    def representations(self, waveforms, sample_rate):
        lengths = np.array([len(wave) for wave in waveforms])
        if lengths.min() < self.least:
            raise RuntimeError("the padding is wider than the input")
        counts = np.maximum((lengths - self.offset) // self.hop + 1, 0)
        number = np.arange(counts.max(initial=1))
        times = ((self.first + self.hop * number) / sample_rate).astype(np.float32)
        arrays = np.broadcast_to(number, (1, len(counts), len(number)))[..., None]
        return ss.Representations(arrays.astype(np.float32), number < counts[:, None], times)


def test_sizes_are_measured(encoder, external):
    mine, theirs = external.config, encoder.config
    for name in ("hidden_size", "num_hidden_layers", "hop_samples", "window_samples"):
        assert getattr(mine, name) == getattr(theirs, name), name
    assert mine.first_centre_samples == theirs.first_centre_samples
    samples = np.arange(3000)
    assert np.array_equal(mine.frames(samples), theirs.frames(samples))
    assert external.provenance["class"] == "Wrapped"
    assert external.provenance["module"] == "tests.support.wrapped"


@pytest.mark.parametrize(
    "hop, offset, first, least",
    [
        (640, 400, 200.0, 1),
        (160, 1, 0.0, 1),  # a frame for every hop that begins
        (320, -80, 0.0, 1),  # centred: the input is padded
        (320, -80, 0.0, 201),  # by reflection, which needs a longer one
        (1280, 1277, 638.5, 1),
    ],
)
def test_any_regular_frames_are_found(hop, offset, first, least):
    config = measured(Counting(hop, offset, first, least)).config
    assert (config.hop, config.offset, config.first_centre) == (hop, offset, first)
    assert config.window == max(offset, least)
    assert config.frames(np.array([0, config.window - 1, config.window])).tolist()[:2] == [0, 0]
    assert config.frames(config.window) >= 1


def test_half_the_rate(encoder):
    config = measured(Wrapped(encoder, change=half_rate)).config
    assert (config.hop_samples, config.first_centre_samples) == (640, 360.0)
    assert config.frames(16_000) == 24


@pytest.mark.parametrize("convert", [np.asarray, lambda states: states], ids=["numpy", "jax"])
def test_a_batch_is_that_of_the_encoder(encoder, convert):
    rng = np.random.default_rng(1)
    lengths = np.array([5000, 700, 8000, 0, 0], np.int32)
    samples = rng.standard_normal((5, 9000)).astype(np.float32)
    before = samples.copy()
    found = measured(Wrapped(encoder, convert)).apply(samples, lengths, Outputs(layers=(0, 2)))
    expected = encoder.apply(samples, lengths, Outputs(layers=(0, 2)))
    assert np.array_equal(found.frame_mask, expected.frame_mask)
    mask = np.asarray(expected.frame_mask)[..., None]
    assert found.hidden_states.shape == expected.hidden_states.shape
    assert found.hidden_states.dtype == jnp.float32
    off = np.abs(np.asarray(found.hidden_states) - np.where(mask, expected.hidden_states, 0))
    assert off.max() < 1e-5
    assert np.array_equal(samples, before)


def test_waveforms_are_the_objects_own():
    """One that writes into them changes nothing for the models after it."""

    class Writing(Counting):
        def representations(self, waveforms, sample_rate):
            for wave in waveforms:
                wave[:] = 7
            return super().representations(waveforms, sample_rate)

    samples = np.zeros((2, 2000), np.float32)
    measured(Writing(320, 400, 200.0)).apply(samples, np.array([2000, 900], np.int32))
    assert not samples.any()


def test_arrays_of_jax_stay_on_the_device(encoder):
    """While a function is traced there are no numbers: a copy to the host would raise."""
    mine = measured(Wrapped(encoder))
    samples = np.ones((2, 8000), np.float32)
    lengths = np.array([8000, 4000], np.int32)
    found = mine.source.representations([row[:n] for row, n in zip(samples, lengths)], 16_000)

    class Traced:
        def __init__(self, arrays):
            self.arrays = arrays

        def representations(self, waveforms, sample_rate):
            return dataclasses.replace(found, arrays=self.arrays)

    def of(arrays):
        one = dataclasses.replace(mine, source=Traced(arrays))
        return one.apply(samples, lengths).hidden_states

    assert jax.eval_shape(of, found.arrays).shape == (4, 2, 24, 32)
    with pytest.raises(jax.errors.TracerArrayConversionError):
        jax.eval_shape(lambda arrays: np.asarray(of(arrays)), found.arrays)


def _irregular(found):
    times = np.array(found.times)
    times[3:] += 0.005
    return dataclasses.replace(found, times=times)


def _gap(found):
    mask = np.array(found.mask)
    mask[:, 2] = False
    return dataclasses.replace(found, mask=mask)


def _one_less(found):
    """A frame less where there are many."""
    mask = np.array(found.mask)
    mask[:, 60:] = False
    return dataclasses.replace(found, mask=mask)


WRONG = {
    "nothing": (lambda found: None, "NoneType"),
    "a tuple": (lambda f: (f.arrays, f.mask, f.times), "tuple"),
    "no layers": (lambda f: dataclasses.replace(f, arrays=f.arrays[0]), "arrays"),
    "whole numbers": (lambda f: dataclasses.replace(f, arrays=f.arrays.astype(int)), "int"),
    "time first": (
        lambda f: dataclasses.replace(f, arrays=np.swapaxes(f.arrays, 1, 2)),
        "arrays have shape",
    ),
    "short mask": (lambda f: dataclasses.replace(f, mask=f.mask[:, 1:]), "mask have shape"),
    "mask of numbers": (lambda f: dataclasses.replace(f, mask=f.mask.astype(int)), "bool"),
    "gap": (_gap, "gap"),
    "short times": (lambda f: dataclasses.replace(f, times=f.times[1:]), "times have shape"),
    "irregular": (_irregular, "not regular"),
    "times in milliseconds of nothing": (
        lambda f: dataclasses.replace(f, times=0 * f.times),
        "ascend",
    ),
    "other counts": (_one_less, "frames for"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_one_line(encoder, name):
    change, words = WRONG[name]
    with pytest.raises(UserError, match=words) as caught:
        measured(Wrapped(encoder, np.asarray, change))
    line = str(caught.value)
    assert line.startswith("wav2vec2-base: ") and "\n" not in line


def _fewer_layers(found):
    return dataclasses.replace(found, arrays=found.arrays[:2])


def _less(found):
    """A frame less."""
    mask = np.array(found.mask)
    mask[:, mask.sum(1) - 1] = False
    return dataclasses.replace(found, mask=mask)


@pytest.mark.parametrize(
    "change, words",
    [(_fewer_layers, "2 layers of 32"), (_less, "24 samples|23 frames"), (_irregular, "regular")],
)
def test_a_batch_that_is_not_like_the_probes(encoder, external, change, words):
    other = dataclasses.replace(external, source=Wrapped(encoder, np.asarray, change))
    samples = np.ones((1, 8000), np.float32)
    with pytest.raises(UserError, match=words):
        other.apply(samples, np.array([8000], np.int32))


def test_a_class_is_not_an_object():
    with pytest.raises(UserError, match=r"Counting\(\)"):
        measured(Counting)


def test_no_attention(external):
    samples, lengths = np.ones((1, 8000), np.float32), np.array([8000], np.int32)
    with pytest.raises(UserError, match="attention"):
        external.apply(samples, lengths, Outputs(attentions=True))
    with pytest.raises(UserError, match="no layer"):
        external.apply(samples, lengths, Outputs(layers=(4,)))
