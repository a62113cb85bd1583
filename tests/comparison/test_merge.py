"""Statistics that jobs have kept, added up: what one job on all the audio gives."""

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
    kept_in = []
    for k in range(3):
        kept_in.append(tmp_path_factory.mktemp(f"job{k}") / "statistics")
        part = {name: audio[name] for name in names[3 * k : 3 * k + 3]}
        ss.compare(encoders, part, keep_statistics=kept_in[-1], **SETTINGS)
    return kept_in


@pytest.fixture(scope="module")
def whole(encoders, audio) -> ss.SimilarityResult:
    return ss.compare(encoders, audio, **SETTINGS)


def test_three_jobs_are_one(folders, whole, tmp_path):
    """In two steps, and with what the first step has kept."""
    ss.merge(folders[:2], keep_statistics=tmp_path / "two", progress=False)
    found = ss.merge([tmp_path / "two", folders[2]], progress=False)
    assert found.measures == whole.measures
    assert_same_result(found, whole)
    for name in ("frames", "rows", "utterances", "seconds"):
        assert found.attributes[name] == whole.attributes[name]
    assert [one["folder"] for one in found.attributes["merged"]] == ["two", "statistics"]


def test_other_measures_of_one_job(folders, encoders, audio):
    first = {name: audio[name] for name in list(audio)[:3]}
    asked = {"measures": "lincka,mean_cca,procrustes"}
    found = ss.merge(folders[:1], progress=False, **asked)
    assert_same_result(found, ss.compare(encoders, first, **SETTINGS | asked))
    with pytest.raises(UserError, match=r"^attn_js needs statistics"):
        ss.merge(folders[:1], measures="attn_js", progress=False)


def test_overlap_is_refused(folders, encoders, audio, tmp_path):
    """By name, and by what is heard under another name."""
    with pytest.raises(UserError, match="both contain utterance 'u0'"):
        ss.merge([folders[0], folders[0]], progress=False)
    again = {"other": audio["u4"], "new": audio["u0"][::-1].copy()}
    ss.compare(encoders, again, keep_statistics=tmp_path / "again", **SETTINGS)
    with pytest.raises(UserError, match="contains 'other', the same samples as 'u4' in "):
        ss.merge([folders[1], tmp_path / "again"], progress=False)


def test_other_jobs_are_refused(folders, encoders, audio, tmp_path):
    new = {"new": audio["u0"][::-1].copy(), "newer": audio["u1"][::-1].copy()}
    for folder, models, more, said in (
        ("stride", encoders, {"frame_stride": 2}, "differ in frame_stride"),
        ("fewer", encoders[:1], {}, "differ in their representations"),
        ("float64", encoders, {"stats_dtype": "float64"}, "differ in stats_dtype"),
    ):
        ss.compare(models, new, keep_statistics=tmp_path / folder, **SETTINGS | more)
        with pytest.raises(UserError, match=said):
            ss.merge([folders[0], tmp_path / folder], progress=False)
    with pytest.raises(UserError, match=r"holds no job\.json"):
        ss.merge([tmp_path], progress=False)
    with pytest.raises(UserError, match="holds the statistics of a job already"):
        ss.compare(encoders, new, keep_statistics=folders[0], **SETTINGS)


def test_jobs_of_other_sizes_can_be_merged(folders, whole, tmp_path):
    """How many processes shared a job, and how its batches were made, does not matter."""
    other = tmp_path / "other"
    shutil.copytree(folders[1], other)
    facts = other / "pass-1" / "statistics.json"
    told = json.loads(facts.read_text())
    told["metadata"]["identity"] |= {"process": [0, 4], "batch_seconds": 7, "versions": {}}
    facts.write_text(json.dumps(told))
    assert_same_result(ss.merge([folders[0], other, folders[2]], progress=False), whole)


def test_keeping_cannot_begin_half_way(encoders, audio, tmp_path):
    """What was heard before is not known then."""
    given = {"checkpoint_dir": tmp_path / "c", "checkpoint_every": 0} | SETTINGS
    ss.compare(encoders, audio, **given)
    with pytest.raises(UserError, match="of another job: keep_statistics was False and is True"):
        ss.compare(encoders, audio, keep_statistics=tmp_path / "kept", **given)


def test_what_is_written_is_read(folders, tmp_path):
    """Every array, bit by bit; a folder of another format or with a part missing is refused."""
    found, facts = store.read(folders[0] / "pass-1")
    store.write(tmp_path / "copy", found, facts)
    again, same = store.read(tmp_path / "copy")
    assert same == facts
    for kind in ("sample", "attention"):
        a, b = found.states[kind], again.states[kind]
        for field in dataclasses.fields(a):
            x, y = getattr(a, field.name), getattr(b, field.name)
            assert str(x) == str(y)
    a, b = found.states["moments"], again.states["moments"]
    np.testing.assert_array_equal(a.block(1, 2), b.block(1, 2))
    told = json.loads((tmp_path / "copy" / "statistics.json").read_text())
    (tmp_path / "copy" / "statistics.json").write_text(json.dumps(told | {"format": 99}))
    with pytest.raises(UserError, match="statistics of format 99"):
        store.read(tmp_path / "copy")
    (tmp_path / "copy" / "statistics.json").write_text(json.dumps(told))
    (tmp_path / "copy" / "sample" / "keys.npy").unlink()
    with pytest.raises(UserError, match="holds no statistics that can be read"):
        store.read(tmp_path / "copy")
