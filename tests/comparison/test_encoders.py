"""`compare` from waveforms to scores, against each utterance encoded alone and whole arrays."""

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.models import weight_names
from speechsim_jax.pipeline import accumulators
from speechsim_jax.statistics import sample
from speechsim_jax.statistics.accumulator import BatchRows
from tests.support import reference
from tests.support.small_models import MODELS, QUICK, waves


@pytest.fixture(scope="module")
def rows(encoders) -> dict[tuple[str, int], np.ndarray]:
    """Every representation's frames, each utterance encoded alone."""
    states_of: dict[tuple[str, int], list[np.ndarray]] = {}
    for wave in waves().values():
        for encoder in encoders:
            for layer, states in enumerate(np.asarray(encoder([wave]).hidden_states)):
                states_of.setdefault((encoder.name, layer), []).append(states[0])
    return {key: np.concatenate(parts).astype(np.float64) for key, parts in states_of.items()}


@pytest.fixture(scope="module")
def result(encoders) -> ss.SimilarityResult:
    return ss.compare(encoders, waves(), **QUICK)


@pytest.mark.slow
def test_scores_equal_the_oracle_on_whole_arrays(result, rows):
    assert [(n.model, n.layer) for n in result.representations] == list(rows)
    pairs = [(0, 1), (3, 5), (6, 2), (7, 4)]
    arrays = list(rows.values())
    for name, oracle in reference.MEASURES.items():
        for i, j in pairs:
            got = result.matrix(name).values[i, j]
            assert got == pytest.approx(oracle(arrays[i], arrays[j]), abs=2e-5), (name, i, j)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"batch_seconds": 1, "buckets": 2, "rows_per_update": 64},
        {"batch_seconds": 20, "rows_per_update": 300, "buckets": 1},
        {"stats_dtype": "float64", "rank_tolerance": 1e-6},
    ],
)
def test_batching_and_precision_do_not_change_the_scores(result, encoders, settings):
    other = ss.compare(encoders, waves(), **QUICK | settings)
    assert other.attributes["frames"] == result.attributes["frames"]
    for name in result.measures:
        difference = np.abs(other.matrix(name).values - result.matrix(name).values).max()
        assert difference < 1e-5, name


def test_order_of_utterances_does_not_change_the_scores(result, encoders):
    backwards = dict(reversed(waves().items()))
    other = ss.compare(encoders, backwards, **QUICK)
    for name in result.measures:
        assert np.abs(other.matrix(name).values - result.matrix(name).values).max() < 1e-5, name
    assert other.attributes["corpus"]["fingerprint"] == result.attributes["corpus"]["fingerprint"]


SAMPLED = {"measures": list(reference.SAMPLE_MEASURES), "sample_frames": 60, "seed": 5}


@pytest.fixture(scope="module")
def sampled(encoders) -> ss.SimilarityResult:
    return ss.compare(encoders, waves(), **SAMPLED, **QUICK)


@pytest.mark.slow
def test_sampled_scores_equal_the_oracle_on_the_chosen_rows(sampled, encoders):
    """The rows of the smallest keys, found utterance by utterance, each encoded alone."""
    rows, utterances = [], []
    for name, wave in waves().items():
        states = [np.asarray(e([wave]).hidden_states, np.float64)[:, 0] for e in encoders]
        for frame in range(states[0].shape[1]):
            one = np.array([frame]), np.zeros(1, np.int64), np.array([frame])
            key = int(sample.row_keys(5, BatchRows(*one, (name,), (name,)))[0])
            rows.append((key, name, [s[:, frame] for s in states]))
    rows = sorted(rows, key=lambda row: row[0])[:60]
    utterances = [name for _, name, _ in rows]
    arrays = [np.stack([row[2][m][l] for row in rows]) for m in (0, 1) for l in range(4)]
    for i, j in ((0, 1), (3, 5), (6, 2)):
        for name, oracle in reference.SAMPLE_MEASURES.items():
            expected = oracle(arrays[i], arrays[j], *([utterances] if name == "mutual_knn" else []))
            got = sampled.matrix(name).values[i, j]
            assert got == pytest.approx(expected, abs=1e-4), (name, i, j)
    assert sampled.attributes["sample"] == {"rows": 60, "utterances": len(set(utterances))}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"batch_seconds": 1, "buckets": 2}, {"batch_seconds": 20}])
def test_batching_and_order_do_not_change_the_sample(sampled, encoders, settings):
    backwards = dict(reversed(waves().items()))
    other = ss.compare(encoders[::-1], backwards, **SAMPLED, **QUICK | settings)
    for name in sampled.measures:
        same = other.select(models=[e.name for e in encoders]).matrix(name).values
        assert np.abs(same - sampled.matrix(name).values).max() < 1e-4, name
    seeded = ss.compare(encoders, waves(), **SAMPLED | {"seed": 6}, **QUICK)
    assert np.abs(seeded.matrix("rsa").values - sampled.matrix("rsa").values).max() > 1e-2


def test_provenance(result, encoders, rows):
    facts = result.attributes
    assert facts["utterances"] == 9
    assert facts["frames"] == facts["rows"] == len(next(iter(rows.values())))
    assert facts["seconds"] == pytest.approx(sum(len(w) for w in waves().values()) / 16_000)
    settings_ = ss.Settings(**{k: v for k, v in QUICK.items() if k != "progress"})
    assert facts["settings"] == json.loads(json.dumps(dataclasses.asdict(settings_)))
    assert facts["numeric"]["rank_tolerance"] == 1e-6
    assert facts["numeric"]["stats_precision"] == "highest"
    assert facts["precision"] == {"statistics": "highest", "models": "highest"}
    assert set(facts["models"]) == {"wav2vec2-base", "hubert-large"}
    for encoder in encoders:
        assert facts["models"][encoder.name]["sha256"] == encoder.provenance["sha256"]
    assert {"jax", "jaxlib", "flax", "numpy", "speechsim_jax"} <= set(facts["versions"])


@pytest.mark.slow
def test_products_by_an_algorithm(result, encoders):
    """On a CPU that of float32 is full precision; what was asked for and done is recorded."""
    asked = {"stats_precision": "F32_F32_F32", "model_precision": "TF32_TF32_F32_X3"}
    other = ss.compare(encoders, waves(), **asked, **QUICK)
    facts = other.attributes
    assert {name: facts["settings"][name] for name in asked} == asked
    assert facts["precision"] == {"statistics": "F32_F32_F32", "models": "highest"}
    assert facts["numeric"]["stats_precision"] == "F32_F32_F32"
    for name in result.measures:
        np.testing.assert_array_equal(other.matrix(name).values, result.matrix(name).values)


@pytest.mark.slow
def test_layers_select_and_count_from_the_end(result, encoders):
    other = ss.compare(encoders, waves(), layers=[-1, 1], measures="lincka", **QUICK)
    assert [str(n) for n in other.representations] == [
        "wav2vec2-base/1", "wav2vec2-base/3", "hubert-large/1", "hubert-large/3",
    ]  # fmt: skip
    selected = result.select(layers=[1, 3]).matrix("lincka").values
    np.testing.assert_allclose(other.matrix("lincka").values, selected, atol=1e-6)


def test_last_layer_readings(encoders):
    large = [encoders[1]]
    raw = ss.compare(large, waves(3), last_layer="raw", measures="lincka", **QUICK)
    normed = ss.compare(large, waves(3), last_layer="normed", measures="lincka", **QUICK)
    difference = np.abs(raw.matrix("lincka").values - normed.matrix("lincka").values)
    assert difference[:3, :3].max() < 1e-6
    assert difference[3, 0] > 1e-3


def test_max_minutes_takes_a_seeded_part(encoders):
    some = [
        ss.compare(encoders[:1], waves(), max_minutes=0.08, seed=s, measures="lincka", **QUICK)
        for s in (0, 0, 1)
    ]
    seconds = [r.attributes["seconds"] for r in some]
    assert 0 < seconds[0] <= 4.8
    prints = [r.attributes["corpus"]["fingerprint"] for r in some]
    assert prints[0] == prints[1] != prints[2]


def test_the_same_model_twice_gets_two_names(encoders):
    result = ss.compare([MODELS[0], MODELS[0]], waves(2), measures="maxcorr", **QUICK)
    assert result.models == ("wav2vec2-base#1", "wav2vec2-base#2")
    block = result.block("maxcorr", *result.models).values
    np.testing.assert_allclose(np.diagonal(block), 1, atol=1e-6)


def test_non_finite_hidden_states_name_utterance_and_frame(encoders):
    table = weight_names.weight_table(encoders[0].config)
    tensors = weight_names.export(encoders[0].config, encoders[0].parameters)
    tensors["encoder.layers.1.final_layer_norm.bias"] = np.full(32, np.nan, np.float32)
    _, broken, _ = weight_names.fill(encoders[0].config, tensors, "broken", table)
    bad = dataclasses.replace(encoders[0], parameters=broken)
    with pytest.raises(ss.UserError, match=r"wav2vec2-base: .*'utterance00.'.*frame 0"):
        ss.compare([bad], waves(2), **QUICK)


@pytest.mark.slow
def test_unusable_audio_is_listed(encoders, caplog):
    audio = waves(3) | {"silence": np.zeros(8000, np.float32), "short": np.ones(10, np.float32)}
    with caplog.at_level(logging.WARNING):
        result = ss.compare(encoders[:1], audio, measures="maxcorr", **QUICK)
    assert {s["id"] for s in result.attributes["skipped"]} == {"silence", "short"}
    assert result.attributes["utterances"] == 3
    with pytest.raises(ss.UserError, match=r"silence|short"):
        ss.compare(encoders[:1], audio, measures="maxcorr", strict=True, **QUICK)
    with pytest.raises(ss.UserError, match="no usable audio"):
        ss.compare(encoders[:1], {"silence": np.zeros(8000, np.float32)}, **QUICK)


def test_settings_are_checked_before_any_work():
    for wrong, message in (
        ({"lairs": [1]}, "unknown setting 'lairs'"),
        ({"stats_dtype": "bfloat16"}, "stats_dtype"),
        ({"last_layer": "first"}, "last_layer"),
        ({"rows_per_update": 0}, "rows_per_update"),
        ({"measures": "cka"}, "unknown measure"),
    ):
        with pytest.raises(ss.UserError, match=message):
            ss.compare(["no/such/folder"], "no-such-audio", **wrong)


@pytest.mark.slow
def test_device_memory_does_not_grow_with_the_audio(encoders, monkeypatch):
    """The bytes that live on the device after any batch peak at the same value for 8x the audio."""
    peaks = []
    append = accumulators.MomentsAccumulator.append

    def spy(self, *args):
        append(self, *args)
        self.wait()
        peaks[-1] = max(peaks[-1], sum(a.nbytes for a in jax.live_arrays()))

    monkeypatch.setattr(accumulators.MomentsAccumulator, "append", spy)
    short = {f"a{i}": w for i, w in enumerate(list(waves(12).values()))}
    long = {f"{k}-{name}": w for k in range(8) for name, w in short.items()}
    for audio in (short, short, long):
        peaks.append(0)
        ss.compare(encoders, audio, **QUICK)
    assert peaks[0] > 0
    assert peaks[2] == peaks[1]


def test_the_sample_takes_a_bounded_part_of_the_device(encoders, monkeypatch):
    """At most two batches' worth of its rows, whatever the audio; on the host, its rows once."""
    peaks = []
    append = accumulators.SampleAccumulator.append

    def spy(self, *args):
        before = sum(a.nbytes for a in jax.live_arrays())
        append(self, *args)
        peaks.append(sum(a.nbytes for a in jax.live_arrays()) - before)
        assert sum(x.nbytes for x in self._fetcher.rows) == 100 * widths * 4

    widths = 4 * sum(e.config.hidden_size for e in encoders)
    monkeypatch.setattr(accumulators.SampleAccumulator, "append", spy)
    audio = {f"{k}-{name}": wave for k in range(4) for name, wave in waves(12).items()}
    ss.compare(encoders, audio, measures="mutual_knn", sample_frames=100, **QUICK)
    assert len(peaks) > 10
    assert 0 < max(peaks) <= 2 * 128 * widths * 4  # gathered 64 at a time
