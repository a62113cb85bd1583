"""Statistics that jobs have stored, merged: the result of one job on all the audio."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.errors import UserError
from speechsim_jax.statistics import store
from tests.support.paths import DATA
from tests.support.same_result import assert_same_result

FOLDER = DATA / "parity"
SETTINGS = {
    "measures": "maxcorr,mincorr,linreg,lincka,lincka_debiased,svcca,pwcca,rsa,attn_frobenius",
    "batch_seconds": 2,
    "buckets": 1,
    "rows_per_update": 40,
    "sample_frames": 100,
    "progress": False,
}


@pytest.fixture(scope="module")
def encoders() -> list[ss.SpeechEncoder]:
    return [ss.load_encoder(FOLDER / name) for name in ("wavlm-base", "hubert-large")]


@pytest.fixture(scope="module")
def audio() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    waves = {f"u{i}": 0.1 * rng.standard_normal(9000) for i in range(9)}
    return {name: wave.astype(np.float32) for name, wave in waves.items()}


@pytest.fixture(scope="module")
def folders(encoders, audio, tmp_path_factory) -> list[Path]:
    """Three jobs of three utterances each."""
    names = list(audio)
    stored_in = []
    for k in range(3):
        stored_in.append(tmp_path_factory.mktemp(f"job{k}") / "statistics")
        part = {name: audio[name] for name in names[3 * k : 3 * k + 3]}
        ss.compare(encoders, part, keep_statistics=stored_in[-1], **SETTINGS)
    return stored_in


@pytest.fixture(scope="module")
def whole(encoders, audio) -> ss.SimilarityResult:
    return ss.compare(encoders, audio, **SETTINGS)


def test_three_jobs_are_one(folders, whole, tmp_path):
    """In two steps, with the statistics that the first step has stored."""
    ss.merge(folders[:2], keep_statistics=tmp_path / "two", progress=False)
    result = ss.merge([tmp_path / "two", folders[2]], progress=False)
    assert result.measures == whole.measures
    assert_same_result(result, whole)
    for name in ("frames", "rows", "utterances", "seconds"):
        assert result.attributes[name] == whole.attributes[name]
    assert [one["folder"] for one in result.attributes["merged"]] == ["two", "statistics"]


def test_other_measures_of_one_job(folders, encoders, audio):
    first = {name: audio[name] for name in list(audio)[:3]}
    asked = {"measures": "lincka,mean_cca,procrustes"}
    result = ss.merge(folders[:1], progress=False, **asked)
    assert_same_result(result, ss.compare(encoders, first, **SETTINGS | asked))
    with pytest.raises(UserError, match=r"^attn_js needs statistics"):
        ss.merge(folders[:1], measures="attn_js", progress=False)


def test_overlap_is_refused(folders, encoders, audio, tmp_path):
    """By id, and by the samples under another id."""
    with pytest.raises(UserError, match="both contain utterance 'u0'"):
        ss.merge([folders[0], folders[0]], progress=False)
    again = {"other": audio["u4"], "new": audio["u0"][::-1].copy()}
    ss.compare(encoders, again, keep_statistics=tmp_path / "again", **SETTINGS)
    with pytest.raises(UserError, match="contains 'other', the same samples as 'u4' in "):
        ss.merge([folders[1], tmp_path / "again"], progress=False)


def test_other_jobs_are_refused(folders, encoders, audio, tmp_path):
    new = {"new": audio["u0"][::-1].copy(), "newer": audio["u1"][::-1].copy()}
    for folder, models, more, message in (
        ("stride", encoders, {"frame_stride": 2}, "differ in frame_stride"),
        ("fewer", encoders[:1], {}, "differ in their representations"),
        ("float64", encoders, {"stats_dtype": "float64"}, "differ in stats_dtype"),
    ):
        ss.compare(models, new, keep_statistics=tmp_path / folder, **SETTINGS | more)
        with pytest.raises(UserError, match=message):
            ss.merge([folders[0], tmp_path / folder], progress=False)
    with pytest.raises(UserError, match=r"holds no job\.json"):
        ss.merge([tmp_path], progress=False)
    with pytest.raises(UserError, match="holds the statistics of a job already"):
        ss.compare(encoders, new, keep_statistics=folders[0], **SETTINGS)


def test_jobs_of_other_sizes_can_be_merged(folders, whole, tmp_path):
    """How many processes shared a job, and the size of its batches, does not matter."""
    other = tmp_path / "other"
    shutil.copytree(folders[1], other)
    facts = other / "pass-1" / "statistics.json"
    record = json.loads(facts.read_text())
    record["metadata"]["identity"] |= {"process": [0, 4], "batch_seconds": 7, "versions": {}}
    facts.write_text(json.dumps(record))
    assert_same_result(ss.merge([folders[0], other, folders[2]], progress=False), whole)


def test_storing_cannot_start_in_a_resumed_run(encoders, audio, tmp_path):
    """The utterances that were read before are then not recorded."""
    arguments = {"checkpoint_dir": tmp_path / "c", "checkpoint_every": 0} | SETTINGS
    ss.compare(encoders, audio, **arguments)
    with pytest.raises(UserError, match="of another job: keep_statistics was False and is True"):
        ss.compare(encoders, audio, keep_statistics=tmp_path / "kept", **arguments)


def test_what_is_written_is_read(folders, tmp_path):
    """Every array, bit by bit; a folder of another format or with a part missing is refused."""
    result, facts = store.read(folders[0] / "pass-1")
    store.write(tmp_path / "copy", result, facts)
    again, same = store.read(tmp_path / "copy")
    assert same == facts
    for kind in ("sample", "attention"):
        a, b = result.states[kind], again.states[kind]
        for field in dataclasses.fields(a):
            x, y = getattr(a, field.name), getattr(b, field.name)
            assert str(x) == str(y)
    a, b = result.states["moments"], again.states["moments"]
    np.testing.assert_array_equal(a.block(1, 2), b.block(1, 2))
    record = json.loads((tmp_path / "copy" / "statistics.json").read_text())
    (tmp_path / "copy" / "statistics.json").write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(UserError, match="statistics of format 99"):
        store.read(tmp_path / "copy")
    (tmp_path / "copy" / "statistics.json").write_text(json.dumps(record))
    (tmp_path / "copy" / "sample" / "keys.npy").unlink()
    with pytest.raises(UserError, match="holds no statistics that can be read"):
        store.read(tmp_path / "copy")
