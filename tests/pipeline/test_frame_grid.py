"""Models of other frame rates and offsets on one grid: against plain loops, and a known timing."""

import dataclasses
import json
import logging

import jax.numpy as jnp
import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.models import weight_names
from speechsim_jax.models.architecture import Activations
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.models.external import ExternalConfig
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.pipeline.frame_grid import FrameGrid
from tests.support.small_models import QUICK, waves
from tests.support.tiny_encoders import CONFIG

SLOW = dataclasses.replace(CONFIG, conv_stride=(5, 2, 2, 2, 2, 2, 4))  # 25 frames a second
FAST = dataclasses.replace(CONFIG, conv_stride=(5, 2, 2, 2, 2, 2, 1))  # 100
LATE = dataclasses.replace(CONFIG, conv_kernel=(250, 3, 3, 3, 3, 2, 2))  # begins 7.5 ms later
THIRD = dataclasses.replace(CONFIG, conv_stride=(5, 3, 2, 2, 2, 2, 2))  # 30 ms: no multiple of 20


def encoder(config: Wav2Vec2Config, name: str, seed: int = 0) -> SpeechEncoder:
    """A random encoder whose convolutions are symmetric in time: they do not delay anything."""
    tensors = random_tensors(config, seed)
    for weight, tensor in tensors.items():
        if weight.startswith("feature_extractor") and tensor.ndim == 3:
            tensors[weight] = (tensor + tensor[:, :, ::-1]) / 2
    graph, parameters, _ = weight_names.fill(config, tensors, name)
    return SpeechEncoder(name, config, graph, parameters)


def grid_of(*configs: Wav2Vec2Config) -> FrameGrid:
    return FrameGrid.of({"ab"[k] if k < 2 else str(k): c for k, c in enumerate(configs)})


def centres(config: Wav2Vec2Config, count: int) -> list[float]:
    """Middles of receptive fields."""
    return [config.hop_samples * t + config.window_samples / 2 for t in range(count)]


def by_hand(grid: FrameGrid, config: Wav2Vec2Config, states: np.ndarray, samples: int):
    """Means within each frame of the grid, by comparing every centre with every other.

    Those on an edge count half; a frame needs a whole one, or both halves.
    """
    of_model = centres(config, int(config.frames(samples)))
    rows = []
    for j in range(10_000):
        middle, total, weights = grid.first_centre_samples + j * grid.hop_samples, 0.0, []
        for t, centre in enumerate(of_model):
            distance = abs(centre - middle)
            if distance <= grid.hop_samples / 2:
                weights.append(1 if distance < grid.hop_samples / 2 else 0.5)
                total = total + weights[-1] * states[:, t].astype(np.float64)
        if sum(weights) < 1:
            break
        rows.append(total / sum(weights))
    return np.stack(rows, 1)


@pytest.mark.parametrize("others", [(SLOW,), (LATE,), (FAST, LATE), (THIRD,), (SLOW, LATE, FAST)])
def test_means_within_the_frames_of_the_slowest(others):
    configs = (CONFIG, *others)
    grid, again = grid_of(*configs), grid_of(*configs[::-1])
    assert grid.first_centre_samples == again.first_centre_samples
    assert grid.hop_samples == max(config.hop_samples for config in configs)
    rng = np.random.default_rng(1)
    lengths = np.array([16_000, 7_333, 12_345])
    longest = int(lengths.max())
    shortest = np.full(3, 10_000)
    for config in configs:
        counts = config.frames(lengths)
        states = 30 + rng.standard_normal((2, 3, int(counts.max()), 5)).astype(np.float32)
        mask = np.arange(counts.max()) < counts[:, None]
        states[:, ~mask] = np.nan  # what is padding may be anything
        found = grid.onto(config, Activations(jnp.asarray(states), jnp.asarray(mask)), longest)
        for row, samples in enumerate(lengths.tolist()):
            expected = by_hand(grid, config, states[:, row, : counts[row]], samples)
            shortest[row] = min(shortest[row], expected.shape[1])
            count = int(grid.frames(samples))
            assert 1 < count <= found.frame_mask[row].sum()
            np.testing.assert_allclose(
                found.hidden_states[:, row, :count], expected[:, :count], rtol=1e-6
            )
    assert grid.frames(lengths).tolist() == shortest.tolist()  # what all of them have


def test_the_shortest_input_and_its_frames():
    grid = grid_of(CONFIG, SLOW, LATE)
    window = grid.window_samples
    assert grid.frames(window) == 1 and grid.frames(window - 1) == 0
    every = np.arange(5000)
    assert grid.frames(every).tolist() == [int(grid.frames(n)) for n in range(5000)]
    assert (np.diff(grid.frames(every)) >= 0).all()


def test_models_of_one_kind_are_left_as_they_are():
    models = [encoder(CONFIG, "a"), encoder(CONFIG, "b", 1)]
    grid = grid_of(*(model.config for model in models))
    acts = models[0]([np.ones(1000, np.float32)], attentions=True)
    assert grid.is_shared and grid.onto(CONFIG, acts, 1000) is acts
    every = np.arange(3000)
    assert np.array_equal(grid.frames(every), CONFIG.frames(every))
    assert grid.window_samples == CONFIG.window_samples
    np.testing.assert_allclose(grid.frame_centres_seconds(9), CONFIG.frame_centres_seconds(9))


def modulated_noise(seconds: float, seed: int) -> np.ndarray:
    """Noise whose loudness changes every few tens of milliseconds, as speech does."""
    rng = np.random.default_rng(seed)
    loudness = np.exp(rng.standard_normal(round(seconds * 12)))
    times = np.arange(round(seconds * 16_000)) / 16_000
    smooth = np.interp(times * 12, np.arange(len(loudness)), loudness)
    return (0.05 * smooth * rng.standard_normal(len(times))).astype(np.float32)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Linear CKA of two [frame, neuron]."""
    a, b = a - a.mean(0), b - b.mean(0)
    norm = np.linalg.norm
    return float(norm(a.T @ b) ** 2 / norm(a.T @ a) / norm(b.T @ b))


def convolved(grid: FrameGrid, model: SpeechEncoder, wave: np.ndarray) -> np.ndarray:
    """The outputs of the convolutions on the grid: positions and attention mix frames."""
    acts = model([wave], layers=[0], features=True)
    assert acts.features is not None
    found = grid.onto(model.config, Activations(acts.features[None], acts.frame_mask), len(wave))
    return np.asarray(found.hidden_states)[0, 0].astype(np.float64)


OTHERS = {"same": CONFIG, "slow": SLOW, "late": LATE, "fast": FAST, "third": THIRD}


@pytest.mark.slow
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_what_is_heard_at_a_time_is_compared_at_lag_0(other):
    models = [encoder(CONFIG, "a"), encoder(other, "b", 1)]
    grid = grid_of(*(model.config for model in models))
    wave = modulated_noise(12, 0)
    count = int(grid.frames(len(wave)))
    a, b = (convolved(grid, model, wave)[:count] for model in models)
    lags = {lag: correlation(a[4:-4], b[4 + lag : count - 4 + lag]) for lag in range(-4, 5)}
    assert max(lags, key=lags.__getitem__) == 0, lags
    # between the frames: a parabola through the three highest. Of a model of the same hop the
    # nearest frame is taken, up to half a hop away; means of faster ones are centred.
    below, peak, above = lags[-1], lags[0], lags[1]
    offset = (above - below) / (2 * (2 * peak - above - below))
    assert abs(offset) < (0.5 if other is LATE else 0.2), lags


@pytest.mark.slow
def test_a_whole_comparison_is_that_of_the_means(caplog):
    models = [encoder(CONFIG, "a"), encoder(SLOW, "b", 1)]
    audio = waves(6)
    seen = []

    def heard(samples: np.ndarray, seconds: np.ndarray) -> np.ndarray:
        """A track of the loudness around the centre of each frame."""
        seen.append((len(samples), seconds))
        around = (seconds[:, None] + np.linspace(-0.02, 0.02, 640)) * 16_000
        return np.std(samples[np.clip(around.astype(int), 0, len(samples) - 1)], 1)[:, None]

    with caplog.at_level(logging.INFO):
        found = ss.compare(
            models,
            audio,
            ["lincka", "procrustes", "maxcorr"],
            tracks={"time": heard},
            errors=None,
            **QUICK,
        )
    assert "models make different frames: compared on those of b, every 40 ms" in caplog.text
    grid = grid_of(*(model.config for model in models))
    arrays = {}
    for model in models:
        rows = []
        for wave in audio.values():
            states = np.asarray(model([wave]).hidden_states)[:, 0]
            count = int(grid.frames(len(wave)))
            rows.append(by_hand(grid, model.config, states, len(wave))[:, :count])
        arrays |= {f"{model.name}{k}": x for k, x in enumerate(np.concatenate(rows, 1))}
    for samples, seconds in seen[1:]:  # the first call asks how many numbers it returns
        assert np.array_equal(seconds, grid.frame_centres_seconds(int(grid.frames(samples))))
    arrays["time"] = np.concatenate(
        [
            heard(wave, grid.frame_centres_seconds(int(grid.frames(len(wave)))))
            for wave in audio.values()
        ]
    )
    expected = ss.compare_activations(arrays, ["lincka", "procrustes", "maxcorr"])
    for measure in ("lincka", "procrustes", "maxcorr"):
        np.testing.assert_allclose(
            found.dataset[measure].values, expected.dataset[measure].values, atol=2e-6
        )
    assert found.attributes["frame_grid"] == {
        "of": "b", "hop_seconds": 0.04, "first_centre_seconds": SLOW.window_samples / 32_000,
        "averaged": True,
    }  # fmt: skip
    assert json.dumps(found.attributes["frame_grid"])
    # the order of models changes nothing
    again = ss.compare(models[::-1], audio, ["lincka"], errors=None, **QUICK)
    at = [found.representations.index(name) for name in again.representations]
    np.testing.assert_allclose(
        again.matrix("lincka").values, found.matrix("lincka").values[np.ix_(at, at)], atol=1e-6
    )


def test_attention_of_different_frames_is_refused():
    models = [encoder(CONFIG, "a"), encoder(SLOW, "b", 1)]
    with pytest.raises(ss.UserError, match="attention is compared frame by frame"):
        ss.compare(models, waves(3), "all", levels=["attention"], errors=None, **QUICK)


def test_frames_of_one_kind_but_of_other_counts_are_not_shared():
    """One pads its input, which has to be longer than the padding."""
    plain = ExternalConfig("external", hop=320, offset=400, window=400, first_centre=200.0)
    padded = dataclasses.replace(plain, offset=80)
    assert not FrameGrid.of({"a": plain, "b": padded}).is_shared
    assert FrameGrid.of({"a": plain, "b": dataclasses.replace(plain)}).is_shared
    grid = FrameGrid.of({"a": padded, "b": plain})
    assert int(grid.frames(720)) == 2  # the other has three
