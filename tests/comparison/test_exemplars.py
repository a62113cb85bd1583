"""Exemplars of a comparison: those of all frames, in every way to compute them."""

from typing import Any

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.comparison import target
from speechsim_jax.errors import UserError
from speechsim_jax.pipeline import accumulators
from speechsim_jax.results.result import SimilarityResult
from tests.support.budgets import least_gb
from tests.support.small_models import QUICK, of_speakers, waves

pytestmark = pytest.mark.slow

COUNT = 3
SETTINGS: dict[str, Any] = QUICK | {"measures": "maxcorr", "exemplars": COUNT, "errors": "none"}
PARTS = ("exemplar_value", "exemplar_utterance", "exemplar_sample", "exemplar_names")


@pytest.fixture(scope="module")
def audio() -> dict[str, np.ndarray]:
    """Two of them are cut into pieces, if at most a second is encoded at once."""
    return waves(7)


@pytest.fixture(scope="module")
def whole(encoders, audio) -> SimilarityResult:
    return ss.compare(encoders, audio, **SETTINGS)


def assert_same_exemplars(a: SimilarityResult, b: SimilarityResult) -> None:
    """Equal to the last bit."""
    for name in PARTS:
        np.testing.assert_array_equal(a.dataset[name], b.dataset[name], err_msg=name)


def oracle(encoders, audio, pieces: bool) -> dict[str, list[tuple[np.ndarray, ...]]]:
    """By representation: value, utterance and second [utterance, neuron], best first."""
    found = {}
    for encoder in encoders:
        of_utterances = []
        for name, wave in sorted(audio.items()):
            parts = np.array_split(wave, -(-len(wave) // 16_080)) if pieces else [wave]
            hidden, seconds, start = [], [], 0
            for part in parts:
                states = np.asarray(encoder([part]).hidden_states)[:, 0]
                hidden.append(states)
                frames = np.arange(states.shape[1])
                seconds.append((start + frames * 320 + 200) / 16_000)
                start += len(part)
            of_utterances.append((name, np.concatenate(hidden, 1), np.concatenate(seconds)))
        for layer in range(len(of_utterances[0][1])):
            best = [states[layer].argmax(axis=0) for _, states, _ in of_utterances]
            value = np.array([s[layer].max(axis=0) for _, s, _ in of_utterances])
            second = np.array([t[at] for (*_, t), at in zip(of_utterances, best)])
            order = np.argsort(-value, axis=0)
            names = np.array([name for name, *_ in of_utterances], object)
            found[f"{encoder.name}/{layer}"] = (
                np.take_along_axis(value, order, 0),
                names[order],
                np.take_along_axis(second, order, 0),
            )
    return found


def assert_finds(result: SimilarityResult, expected) -> None:
    """The oracle's exemplars; its passes are of other shapes, so activations may be a bit apart."""
    assert list(expected) == list(map(str, result.representations))
    for label, (value, utterance, second) in expected.items():
        records = result.exemplars(label)
        assert [r[:2] for r in records] == [
            (neuron, rank + 1) for neuron in range(value.shape[1]) for rank in range(COUNT)
        ]
        table = {
            name: np.array([getattr(r, name) for r in records], kind).reshape(-1, COUNT)
            for name, kind in (("value", float), ("utterance", object), ("seconds", float))
        }
        np.testing.assert_allclose(table["value"], value[:COUNT].T, rtol=1e-4, atol=1e-5)
        # Where no other is about as large.
        gap = np.diff(value[: COUNT + 1], axis=0)[:COUNT].T < -1e-3
        clear = gap & np.concatenate([gap[:, :1] | True, gap[:, :-1]], axis=1)
        assert clear.mean() > 0.8
        assert (table["utterance"] == utterance[:COUNT].T)[clear].all()
        same = np.isclose(table["seconds"], second[:COUNT].T, atol=1e-3)[clear]
        assert same.mean() > 0.99  # two frames of one utterance may be about as large


def test_exemplars_are_those_of_all_frames(encoders, audio, whole):
    assert_finds(whole, oracle(encoders, audio, pieces=False))


def test_of_a_long_utterance_all_pieces_are_one(encoders, audio):
    cut = ss.compare(encoders, audio, **dict(SETTINGS, max_seconds=1))
    assert cut.attributes["utterances"] > len(audio)
    assert_finds(cut, oracle(encoders, audio, pieces=True))


def test_a_saved_result_and_a_selection_have_them(whole, tmp_path):
    loaded = SimilarityResult.load(whole.save(tmp_path / "result.nc"))
    assert_same_exemplars(loaded, whole)
    last = whole.models[-1]
    alone = loaded.select(last)
    label = str(alone.representations[1])
    assert label.startswith(last)
    assert alone.exemplars(label) == whole.exemplars(label)
    assert alone.exemplars(alone.representations[1], 3) == whole.exemplars(label)[9:12]
    with pytest.raises(UserError, match="did you mean"):
        whole.exemplars(label + "0")


def test_a_result_without_exemplars_says_so(encoders, audio, tmp_path):
    without = ss.compare(encoders, audio, **dict(SETTINGS, exemplars=0))
    assert not [name for name in without.dataset if "exemplar" in str(name)]
    with pytest.raises(UserError, match="exemplars=5"):
        SimilarityResult.load(without.save(tmp_path / "r.nc")).exemplars("x/0")


def test_several_passes_and_an_interruption(encoders, audio, whole, monkeypatch, tmp_path):
    settings = SETTINGS | {"statistics_dir": tmp_path, "checkpoint_every": 0}
    budget = 1.2 * least_gb(ss.compare, encoders, audio, **SETTINGS)
    append, batches = accumulators.Accumulators.append, []

    def dies(self, *batch):
        batches.append(batch)
        if len(batches) == 6:
            raise KeyboardInterrupt
        append(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(accumulators.Accumulators, "append", dies)
        with pytest.raises(KeyboardInterrupt):
            ss.compare(encoders, audio, device_memory_gb=budget, **settings)
    resumed = ss.compare(encoders, audio, device_memory_gb=budget, **settings)
    assert resumed.attributes["passes"] > 2
    assert_same_exemplars(resumed, whole)


def test_shards_and_jobs_merge_to_the_bits_of_one_job(encoders, audio, whole, tmp_path):
    for shard in ("2/2", "1/2"):
        ss.accumulate(encoders, audio, shard=shard, statistics_dir=tmp_path / "a", **SETTINGS)
    assert_same_exemplars(ss.merge([tmp_path / "a"], progress=False), whole)


def test_jobs_with_fewer_exemplars_or_none(encoders, audio, whole, tmp_path):
    ids = list(audio)
    for name, part, count in (("a", ids[:3], COUNT), ("b", ids[3:5], 2), ("c", ids[5:], 0)):
        waves_ = {id_: audio[id_] for id_ in part}
        settings = SETTINGS | {"exemplars": count, "statistics_dir": tmp_path / name}
        ss.compare(encoders, waves_, **settings)
    two = ss.merge([tmp_path / "a", tmp_path / "b"], progress=False)
    assert [exemplar.rank for exemplar in two.exemplars(two.representations[0], 5)] == [1, 2]
    three = ss.merge([tmp_path / name for name in "abc"], progress=False)
    assert three.attributes["merged_without"] == ["exemplars"]


def test_steps_until_a_target_have_those_of_all_steps(encoders, monkeypatch):
    monkeypatch.setattr(target, "FIRST_MINUTES", 0.1)
    corpus = of_speakers(60, 20)
    settings: dict[str, Any] = QUICK | {
        "measures": "lincka", "exemplars": COUNT, "errors_source": "sample",
    }  # fmt: skip
    stepwise = ss.compare(encoders, corpus, target_se=1e-6, **settings)
    assert len(stepwise.attributes["target"]["steps"]) > 1
    assert_same_exemplars(stepwise, ss.compare(encoders, corpus, **settings))


def test_what_cannot_have_exemplars_is_refused_at_once():
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"exemplars": 21}, "at most 20"),
        ({"exemplars": 2, "pool": "utterance"}, "single frames"),
        ({"exemplars": 2, "measures": "attn_frobenius"}, "attention heads"),
    )
    for settings, words in cases:
        with pytest.raises(UserError, match=words):
            ss.compare(["no/such/model"], "no/such/audio", **settings)


def test_tracks_have_none_and_layers_keep_theirs_where_some_are_given(encoders, audio, whole):
    further: dict[str, Any] = {"tracks": ["energy", "logmel"], "given": ["energy"]}
    result = ss.compare(encoders, audio, **SETTINGS | further)
    labels = list(map(str, result.representations))
    assert labels[:-1] == list(map(str, whole.representations))
    assert labels[-1].startswith("logmel") and result.exemplars(labels[-1]) == ()
    for label in labels[:-1]:
        assert result.exemplars(label) == whole.exemplars(label)
