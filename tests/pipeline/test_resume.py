"""Checkpoints: a run that is interrupted resumes, and gives the same bits."""

import dataclasses
import logging

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.errors import UserError
from speechsim_jax.pipeline import accumulators
from speechsim_jax.runtime import provenance
from speechsim_jax.runtime.run_checkpoints import Checkpoints
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
                encoders, audio, checkpoint_dir=folder, checkpoint_every=0, **SETTINGS | changed
            )


def same(a: ss.SimilarityResult, b: ss.SimilarityResult) -> bool:
    return all(
        np.array_equal(a.dataset[name], b.dataset[name], equal_nan=True) for name in a.dataset
    )


@pytest.mark.parametrize("behind", [1, 3])
def test_the_same_bits_come_out(behind, monkeypatch, encoders, audio, whole, tmp_path, caplog):
    break_off(monkeypatch, encoders, audio, tmp_path / "c", behind)
    with caplog.at_level(logging.INFO):
        result = ss.compare(encoders, audio, checkpoint_dir=tmp_path / "c", **SETTINGS)
    assert f"resuming after batch {behind}," in caplog.text
    assert set(result.dataset) == set(whole.dataset) and same(result, whole)
    for name in ("frames", "rows", "utterances", "seconds", "skipped"):
        assert result.attributes[name] == whole.attributes[name], name
    assert len(result.attributes["skipped"]) == 1
    # What has been read to its end is only scored.
    with monkeypatch.context() as patch:
        patch.setattr(accumulators.Accumulators, "append", None)
        again = ss.compare(encoders, audio, checkpoint_dir=tmp_path / "c", **SETTINGS)
    assert same(again, whole)


def test_another_job_is_refused(monkeypatch, encoders, audio, tmp_path):
    folder = tmp_path / "c"
    break_off(monkeypatch, encoders, audio, folder, 1)
    fewer = {name: wave for name, wave in audio.items() if name != "u8"}
    for models, waves, changed, named in (
        (encoders, audio, {"seed": 1}, "seed was 0 and is 1 now"),
        (encoders, audio, {"rows_per_update": 99}, "rows_per_update"),
        (encoders, audio, {"measures": "lincka"}, "another job"),
        (encoders[:1], audio, {}, "job: models: hubert-base is missing"),
        (encoders, fewer, {}, "audio"),
    ):
        with pytest.raises(UserError, match=named):
            ss.compare(models, waves, checkpoint_dir=folder, **SETTINGS | changed)


def test_other_versions_and_configurations_are_other_jobs(monkeypatch, encoders, audio, tmp_path):
    folder = tmp_path / "c"
    break_off(monkeypatch, encoders, audio, folder, 1)
    config = dataclasses.replace(encoders[0].config, layer_norm_eps=1e-6)
    changed = [dataclasses.replace(encoders[0], config=config), encoders[1]]
    with pytest.raises(UserError, match="job: models: wav2vec2-base has changed"):
        ss.compare(changed, audio, checkpoint_dir=folder, **SETTINGS)
    versions = provenance.record()["versions"] | {"jax": "0.0"}
    monkeypatch.setattr(provenance, "record", lambda **facts: {"versions": versions})
    with pytest.raises(UserError, match=r"versions: jax was '[\d.]+' and is '0\.0' now"):
        ss.compare(encoders, audio, checkpoint_dir=folder, **SETTINGS)


def test_checkpoints_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    blocked = Checkpoints(tmp_path / "file", {}, 0)
    assert blocked.latest() is None
    with pytest.raises(UserError, match="cannot be written to"):
        blocked.save(1, {"a": {"x": np.zeros(3)}}, {})
    full = Checkpoints(tmp_path / "full", {}, 0)
    full.save(1, {"a": {"x": np.zeros(3)}}, {})

    def no_space(*_, **__):
        raise ValueError("INTERNAL: write failed\nNo space left on device")

    monkeypatch.setattr(full._manager, "save", no_space)
    full.save(2, {"a": {"x": np.zeros(3)}}, {})  # begun, and looked at before the next one
    with pytest.raises(UserError, match="write failed No space left on device") as error:
        full.save(3, {"a": {"x": np.zeros(3)}}, {})
    assert "\n" not in str(error.value)
    full.close()


def test_short_runs_write_nothing(encoders, audio, whole, tmp_path):
    result = ss.compare(encoders, audio, checkpoint_dir=tmp_path / "c", **SETTINGS)
    assert same(result, whole) and not (tmp_path / "c").exists()


def test_a_broken_checkpoint_gives_way_to_the_one_before(tmp_path):
    state = {"one": {"x": np.arange(5.0), "of": [np.arange(3, dtype=np.int32)], "names": ["a"]}}
    first = Checkpoints(tmp_path, {"job": (1, 2)}, 0)
    assert first.latest() is None and not first.started and first.due()
    for step in (1, 2, 3):
        later = {"one": state["one"] | {"x": state["one"]["x"] + step}}
        first.save(step, later, {"cursor": step})
    first.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    result = Checkpoints(tmp_path, {"job": (1, 2)}, 60).latest()
    assert result.step == 3 and result.metadata["cursor"] == 3
    assert np.array_equal(result.state["one"]["x"], state["one"]["x"] + 3)
    assert result.state["one"]["of"][0].dtype == np.int32 and result.state["one"]["names"] == ["a"]
    for broken, expected in (("3", 2), ("2", None)):
        for file in (tmp_path / broken).rglob("*"):
            if file.is_file():
                file.write_bytes(file.read_bytes()[: len(file.read_bytes()) // 2])
        again = Checkpoints(tmp_path, {"job": (1, 2)}, 60)
        if expected:
            assert again.latest().step == expected
        else:
            with pytest.raises(UserError, match="can be read"):
                again.latest()
