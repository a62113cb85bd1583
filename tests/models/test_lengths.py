"""Waveforms of any lengths share few compiled programs, and get what they would get without."""

import dataclasses

import jax
import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.errors import UserError
from speechsim_jax.models import recognizer
from speechsim_jax.models.architecture import Activations, Outputs
from speechsim_jax.models.encoder import SpeechEncoder, forward
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.models.save import save_folder
from tests.support import tolerances
from tests.support.parity import LAYOUTS, fixture
from tests.support.paths import DATA
from tests.support.tiny_encoders import CONFIG

WINDOWED = "whisper"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> SpeechEncoder:
    config = dataclasses.replace(CONFIG, num_hidden_layers=1)
    folder = tmp_path_factory.mktemp("encoder")
    return ss.load_encoder(save_folder(folder, config, random_tensors(config, 0)))


def noise(samples: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(samples).standard_normal(samples)).astype(np.float32)


def fields(activations: Activations) -> dict[str, np.ndarray]:
    found = {f.name: getattr(activations, f.name) for f in dataclasses.fields(activations)}
    return {name: np.asarray(array) for name, array in found.items() if array is not None}


# --- the ladder -----------------------------------------------------------------------------------


def test_a_thousand_lengths_have_at_most_thirty_rungs():
    lengths = np.linspace(0.1, 30, 1000) * 16_000
    assert len({CONFIG.padded_samples(int(samples)) for samples in lengths}) <= 30


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != WINDOWED])
def test_a_rung_is_the_next_one_and_at_most_a_quarter_longer(layout):
    config = fixture(layout).encoder.config
    hop, window = config.hop_samples, config.window_samples
    ten_minutes = 600 * 16_000
    lengths = [*range(window, 60 * hop, 7), *range(60 * hop, ten_minutes, 99_991), ten_minutes]
    rungs = [config.padded_samples(samples) for samples in lengths]
    assert rungs == sorted(rungs)
    for samples, rung in zip(lengths, rungs):
        assert samples <= rung == config.padded_samples(rung)
        frames, padded = config.frames(samples), config.frames(rung)
        assert padded == 16 if frames <= 16 else frames <= padded < 1.25 * frames
        assert config.frames(rung + 1) == padded + 1
    in_frames = [*dict.fromkeys(config.frames(rung) for rung in rungs)]
    assert in_frames[:8] == [16, 20, 24, 28, 32, 40, 48, 56]


def test_a_window_is_the_only_rung():
    config = fixture(WINDOWED).encoder.config
    lengths = (config.window_samples, 5000, config.longest_samples)
    assert {config.padded_samples(samples) for samples in lengths} == {config.longest_samples}


# --- what callers see -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_seen_of_the_padding(layout):
    """A single frame, and two other lengths."""
    case = fixture(layout)
    config = case.encoder.config
    for index in (0, 2, 6):
        length = len(case.waves[index])
        samples, lengths = case.encoder.padded([case.waves[index]])
        assert samples.shape[1] == config.padded_samples(length) > length
        padded = case.run(samples, lengths)
        found = fields(padded.first_frames(config.frames(length), config.map_frames(length)))
        expected = fields(case.alone(index))
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype), name
            worst = np.abs(found[name].astype(np.float64) - array).max()
            print(f"{name}: {worst:.1e}")
            assert worst <= tolerances.PARITY


@pytest.mark.parametrize("layout", ["wavlm-base", WINDOWED])
def test_shapes_of_a_batch_are_those_of_its_longest_waveform(layout):
    case = fixture(layout)
    options = dict(layers=(0, 1), attentions=True, projections=True, features=True)
    found = case.encoder(case.waves, **options)
    assert all(isinstance(array, jax.Array) for array in jax.tree.leaves(found))
    samples, lengths = case.batch
    asked = Outputs(**options)
    expected = jax.eval_shape(lambda: vars(case.run(samples[:-1], lengths[:-1], asked)))
    for name, array in fields(found).items():
        assert (array.shape, array.dtype) == (expected[name].shape, expected[name].dtype), name
    assert found.frame_mask.sum(1).tolist() == case.encoder.config.frames(lengths[:-1]).tolist()


@pytest.mark.slow
def test_a_derivative_of_a_call(encoder):
    def total(parameters):
        changed = dataclasses.replace(encoder, parameters=parameters)
        return changed([noise(3000)]).hidden_states.sum()

    gradients = jax.tree.leaves(jax.grad(total)(encoder.parameters))
    assert any(np.any(np.asarray(gradient)) for gradient in gradients)


# --- programs -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_lengths_on_a_rung_share_a_program(encoder):
    lengths = np.linspace(1600, 9000, 40).astype(int)
    before = forward._cache_size()
    for samples in lengths:
        found = encoder([noise(samples)])
        assert found.hidden_states.shape[2] == encoder.config.frames(samples)
    rungs = {encoder.config.padded_samples(int(samples)) for samples in lengths}
    assert forward._cache_size() - before == len(rungs) == 4


def test_a_window_is_one_program():
    whisper = fixture(WINDOWED).encoder
    before = forward._cache_size()
    for samples in (400, 3000, 16_000):
        whisper([noise(samples)], layers=(1,))
    assert forward._cache_size() == before + 1


@pytest.mark.slow
def test_a_recognizer_shares_them_too():
    found = ss.load_recognizer(DATA / "ctc" / "sew")
    before = forward._cache_size(), recognizer._apply_head._cache_size()
    for samples in range(6000, 9000, 300):  # 9 to 13 frames
        assert len(found.transcribe([noise(samples)])) == 1
    assert (forward._cache_size(), recognizer._apply_head._cache_size()) == (
        before[0] + 1,
        before[1] + 1,
    )
    with pytest.raises(UserError, match="at least"):
        found.transcribe([])


@pytest.mark.slow
def test_a_result_that_is_written_over_has_the_shapes_of_its_waveforms(encoder):
    first, second = encoder([noise(9000)], layers=(1,)), noise(9001)
    expected = np.asarray(encoder([second], layers=(1,)).hidden_states)
    found = encoder([second], layers=(1,), out=first)
    assert found.hidden_states.shape == expected.shape and first.hidden_states.is_deleted()
    assert np.abs(np.asarray(found.hidden_states) - expected).max() <= tolerances.PARITY
    with pytest.raises(UserError, match=r"out.hidden_states is float32 \[1, 1, 27, 24\]"):
        encoder([noise(12_000)], layers=(1,), out=found)
