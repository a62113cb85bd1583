"""The statistic of docs/extending.md in several passes, in checkpoints and in merged jobs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax import measures
from speechsim_jax.errors import UserError
from speechsim_jax.pipeline import accumulators
from speechsim_jax.statistics import store
from tests.support.budgets import least_gb
from tests.support.pages import blocks
from tests.support.paths import DATA, ROOT

pytestmark = pytest.mark.slow

FOLDER = DATA / "parity"
SETTINGS = {
    "measures": "lincka,peak_ratio",
    "batch_seconds": 1,
    "buckets": 1,
    "rows_per_update": 40,
    "progress": False,
}


@pytest.fixture(scope="module", autouse=True)
def names():
    """The names of the page, once its classes and its measure are registered."""
    page: dict[str, Any] = {"np": np, "ss": ss}
    registries = (measures.MEASURES, store.STATES, accumulators._FACTORIES)
    before = [dict(registry) for registry in registries]
    for registry, name in zip(registries, ("peak_ratio", "peaks", "peaks")):
        registry.pop(name, None)  # the page itself may have been run by another test
    for block in blocks(ROOT / "docs" / "extending.md"):
        if "register_statistic(Peaks" in block.code or "def peak_ratio" in block.code:
            exec(block.code, page)
    yield page
    for registry, entries in zip(registries, before):
        registry.clear()
        registry.update(entries)


@pytest.fixture(scope="module")
def audio() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"u{i}": (0.1 * rng.standard_normal(7000)).astype(np.float32) for i in range(8)}


@pytest.fixture(scope="module")
def encoders() -> list[ss.SpeechEncoder]:
    return [ss.load_encoder(FOLDER / name) for name in ("wavlm-base", "hubert-large")]


@pytest.fixture(scope="module")
def whole(encoders, audio) -> np.ndarray:
    return ratios(ss.compare(encoders, audio, **SETTINGS))


def ratios(result: ss.SimilarityResult) -> np.ndarray:
    return result.matrix("peak_ratio").values


class Killed(Exception):
    """Stands for whatever ends a run."""


def count_batches(monkeypatch, killed_at: Callable[[int], bool]) -> list[object]:
    """Filled with all batches that are read; raises `Killed` at those of such numbers."""
    append, batches = accumulators.Accumulators.append, []

    def spy(self, *batch):
        batches.append(batch)
        if killed_at(len(batches)):
            raise Killed
        append(self, *batch)

    monkeypatch.setattr(accumulators.Accumulators, "append", spy)
    return batches


def test_scores_are_those_of_the_hidden_states(encoders, audio, whole):
    hidden = [
        np.concatenate([np.asarray(e([wave]).hidden_states)[:, 0] for wave in audio.values()], 1)
        for e in encoders
    ]
    peaks = [np.abs(layer).max(axis=0).mean() for model in hidden for layer in model]
    expected = [[min(a, b) / max(a, b) for a in peaks] for b in peaks]
    np.testing.assert_allclose(whole, expected, rtol=1e-5)


def test_several_passes_and_an_interruption(encoders, audio, whole, monkeypatch, tmp_path):
    settings = {"statistics_dir": tmp_path, "checkpoint_every": 0} | SETTINGS
    budget = 1.2 * least_gb(ss.compare, encoders, audio, **SETTINGS)
    last = {}
    batches = count_batches(monkeypatch, lambda number: number == last.get("number"))
    ss.compare(encoders, audio, **SETTINGS)
    in_a_pass = len(batches)
    batches.clear()
    last["number"] = 2 * in_a_pass + 2  # the second batch of the third pass
    with pytest.raises(Killed):
        ss.compare(encoders, audio, device_memory_gb=budget, **settings)
    resumed = ss.compare(encoders, audio, device_memory_gb=budget, **settings)
    passes = resumed.attributes["passes"]
    assert passes >= 3
    assert len(batches) - 1 == in_a_pass * passes  # only the last one is read again
    np.testing.assert_allclose(ratios(resumed), whole, rtol=1e-6)


def test_a_checkpoint_changes_no_bit(encoders, audio, whole, monkeypatch, tmp_path):
    count_batches(monkeypatch, lambda number: number == 4)
    settings = {"statistics_dir": tmp_path, "checkpoint_every": 0} | SETTINGS
    with pytest.raises(Killed):
        ss.compare(encoders, audio, **settings)
    resumed = ss.compare(encoders, audio, **settings)
    np.testing.assert_array_equal(ratios(resumed), whole)


def test_stored_statistics_merge(encoders, audio, whole, tmp_path):
    ids = list(audio)
    for name, part in (("a", ids[:3]), ("b", ids[3:])):
        waves = {id_: audio[id_] for id_ in part}
        ss.compare(encoders, waves, statistics_dir=tmp_path / name, **SETTINGS)
    merged = ss.merge([tmp_path / "a", tmp_path / "b"], progress=False)
    np.testing.assert_allclose(ratios(merged), whole, rtol=1e-6)


def test_what_is_not_registered_is_refused_at_once(names, tmp_path, monkeypatch, encoders, audio):
    with pytest.raises(UserError, match="'peaks' already"):
        accumulators.register_statistic(names["Peaks"], names["PeaksAccumulator"])
    ss.compare(encoders[:1], audio, statistics_dir=tmp_path / "a", **SETTINGS)
    monkeypatch.delitem(store.STATES, "peaks")
    with pytest.raises(UserError, match="'peaks'"):
        ss.merge([tmp_path / "a"], progress=False)
    unknown = dataclasses.replace(measures.MEASURES["peak_ratio"], name="nowhere", statistic="no")
    monkeypatch.setitem(measures.MEASURES, "nowhere", unknown)
    with pytest.raises(UserError, match=r"nowhere .*'no'"):
        ss.compare(["no/such/folder"], "no-such-audio", measures="nowhere")


def test_arrays_have_no_other_statistics():
    x = np.random.default_rng(0).standard_normal((20, 4))
    with pytest.raises(UserError, match=r"peak_ratio .*'peaks'"):
        ss.compare_activations({"x": x, "y": -x}, ["peak_ratio"])
