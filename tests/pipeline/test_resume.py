"""Checkpoints: a run that is interrupted resumes, and gives the same bits."""

import dataclasses
import logging

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.errors import UserError
from speechsim_jax.pipeline import accumulators
from speechsim_jax.runtime import provenance
from tests.support.paths import DATA

FOLDER = DATA / "parity"
SETTINGS = {
    "measures": "lincka,lincka_debiased,maxcorr,rsa,attn_frobenius",
    "batch_seconds": 1,
    "buckets": 1,
    "rows_per_update": 100,
    "sample_frames": 60,
    "progress": False,
}


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def audio():
    rng = np.random.default_rng(0)
    waves = {
        f"u{i}": 0.1 * rng.standard_normal(n) for i, n in enumerate(rng.choice([4000, 7000], 9))
    }
    waves["u2"][:] = np.nan  # skipped, whichever run meets it
    return {name: wave.astype(np.float32) for name, wave in waves.items()}


@pytest.fixture(scope="module")
def encoders():
    return [ss.load_encoder(FOLDER / name) for name in ("wav2vec2-base", "hubert-base")]


@pytest.fixture(scope="module")
def whole(encoders, audio):
    return ss.compare(encoders, audio, **SETTINGS)


def break_off(monkeypatch, encoders, audio, folder, behind: int, **changed):
    """A run that dies in batch `behind` + 1."""
    append, batches = accumulators.Accumulators.append, []

    def dies(self, *args):
        batches.append(args)
        if len(batches) > behind:
            raise Killed
        append(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(accumulators.Accumulators, "append", dies)
        with pytest.raises(Killed):
            ss.compare(
                encoders, audio, statistics_dir=folder, checkpoint_every=0, **SETTINGS | changed
            )


def same(a: ss.SimilarityResult, b: ss.SimilarityResult) -> bool:
    return all(
        np.array_equal(a.dataset[name], b.dataset[name], equal_nan=True) for name in a.dataset
    )


@pytest.mark.slow
@pytest.mark.parametrize("behind", [1, 3])
def test_the_same_bits_come_out(behind, monkeypatch, encoders, audio, whole, tmp_path, caplog):
    break_off(monkeypatch, encoders, audio, tmp_path / "c", behind)
    with caplog.at_level(logging.INFO):
        result = ss.compare(encoders, audio, statistics_dir=tmp_path / "c", **SETTINGS)
    assert f"resuming after batch {behind}," in caplog.text
    assert set(result.dataset) == set(whole.dataset) and same(result, whole)
    for name in ("frames", "rows", "utterances", "seconds", "skipped"):
        assert result.attributes[name] == whole.attributes[name], name
    assert len(result.attributes["skipped"]) == 1
    # What has been read to its end is only scored.
    with monkeypatch.context() as patch:
        patch.setattr(accumulators.Accumulators, "append", None)
        again = ss.compare(encoders, audio, statistics_dir=tmp_path / "c", **SETTINGS)
    assert same(again, whole)


@pytest.mark.slow
def test_another_job_is_refused(monkeypatch, encoders, audio, tmp_path):
    folder = tmp_path / "c"
    break_off(monkeypatch, encoders, audio, folder, 1)
    fewer = {name: wave for name, wave in audio.items() if name != "u8"}
    for models, waves, changed, named in (
        (encoders, audio, {"seed": 1}, "seed was 0 and is 1 now"),
        (encoders, audio, {"rows_per_update": 99}, "rows_per_update"),
        (encoders, audio, {"stats_precision": "F32_F32_F32"}, "stats_precision was 'auto'"),
        (encoders, audio, {"measures": "lincka"}, "another job"),
        (encoders[:1], audio, {}, "job: models: hubert-base is missing"),
        (encoders, fewer, {}, "audio"),
    ):
        with pytest.raises(UserError, match=named):
            ss.compare(models, waves, statistics_dir=folder, **SETTINGS | changed)


@pytest.mark.slow
def test_other_versions_and_configurations_are_other_jobs(monkeypatch, encoders, audio, tmp_path):
    folder = tmp_path / "c"
    break_off(monkeypatch, encoders, audio, folder, 1)
    config = dataclasses.replace(encoders[0].config, layer_norm_eps=1e-6)
    changed = [dataclasses.replace(encoders[0], config=config), encoders[1]]
    with pytest.raises(UserError, match="job: models: wav2vec2-base has changed"):
        ss.compare(changed, audio, statistics_dir=folder, **SETTINGS)
    versions = provenance.record()["versions"] | {"jax": "0.0"}
    monkeypatch.setattr(provenance, "record", lambda **facts: {"versions": versions})
    with pytest.raises(UserError, match=r"versions: jax was '[\d.]+' and is '0\.0' now"):
        ss.compare(encoders, audio, statistics_dir=folder, **SETTINGS)


def test_a_short_run_stores_no_statistics_unless_asked(encoders, audio, whole, tmp_path):
    for keep in (False, True):
        folder = tmp_path / str(keep)
        result = ss.compare(
            encoders, audio, statistics_dir=folder, keep_statistics=keep, **SETTINGS
        )
        assert same(result, whole)
        assert bool(list(folder.rglob("statistics.json"))) == keep
