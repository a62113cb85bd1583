"""Statistics that jobs have stored, merged: the result of one job on all the audio."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.comparison import merge as merge_module
from speechsim_jax.errors import UserError
from speechsim_jax.measures import MEASURES
from speechsim_jax.pipeline.job_folder import ShardFolder
from speechsim_jax.runtime.checked_files import DamagedFileError
from speechsim_jax.statistics import store
from tests.support import job_runs
from tests.support.same_result import assert_same_result

pytestmark = pytest.mark.slow

SETTINGS = job_runs.SETTINGS | {
    "measures": "maxcorr,mincorr,linreg,lincka,lincka_debiased,svcca,pwcca,rsa,attn_frobenius",
}


@pytest.fixture(scope="module")
def encoders() -> list[ss.SpeechEncoder]:
    return job_runs.encoders()


@pytest.fixture(scope="module")
def audio() -> dict[str, np.ndarray]:
    return job_runs.noise(9)


@pytest.fixture(scope="module")
def folders(encoders, audio, tmp_path_factory) -> list[Path]:
    """Three jobs of three utterances each."""
    names = list(audio)
    stored_in = []
    for k in range(3):
        stored_in.append(tmp_path_factory.mktemp(f"job{k}") / "statistics")
        part = {name: audio[name] for name in names[3 * k : 3 * k + 3]}
        ss.compare(encoders, part, statistics_dir=stored_in[-1], **SETTINGS)
    return stored_in


@pytest.fixture(scope="module")
def whole(encoders, audio) -> ss.SimilarityResult:
    return ss.compare(encoders, audio, **SETTINGS)


def test_three_jobs_are_one(folders, whole, tmp_path):
    """In two steps, with the statistics that the first step has stored."""
    ss.merge(folders[:2], statistics_dir=tmp_path / "two", progress=False)
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
    """By the samples, under whatever id."""
    with pytest.raises(UserError, match="contains 'u0', the same samples as 'u0' in "):
        ss.merge([folders[0], folders[0]], progress=False)
    again = {"other": audio["u4"], "new": audio["u0"][::-1].copy()}
    ss.compare(encoders, again, statistics_dir=tmp_path / "again", **SETTINGS)
    with pytest.raises(UserError, match="contains 'other', the same samples as 'u4' in "):
        ss.merge([folders[1], tmp_path / "again"], progress=False)


def test_ids_count_within_their_job_only(encoders, audio, whole, tmp_path):
    """Two folders of a corpus have files of one name; merged again, their ids differ."""
    names = list(audio)
    parts = [names[:5], names[5:]]
    for number, part in enumerate(parts):
        same_ids = {f"{k:03}.wav": audio[name] for k, name in enumerate(part)}
        ss.compare(encoders, same_ids, statistics_dir=tmp_path / f"part{number}", **SETTINGS)
    both = tmp_path / "both"
    jobs = [tmp_path / "part0", tmp_path / "part1"]
    result = ss.merge(jobs, statistics_dir=both, progress=False)
    # The sample is drawn by id, so it is of other rows.
    for measure in ("lincka", "maxcorr", "linreg"):
        np.testing.assert_allclose(result.matrix(measure), whole.matrix(measure), atol=1e-6)
    (record,) = both.glob("shard-1-of-1/complete.*.json")
    ids = [id_ for id_, _ in json.loads(record.read_text())["counts"]["digests"]]
    assert ids[:2] == ["part0/000.wav", "part0/001.wav"] and ids[5] == "part1/000.wav"
    with pytest.raises(UserError, match=r"contains 'part0/000\.wav', the same samples as '0"):
        ss.merge([jobs[0], both], progress=False)


def test_other_jobs_are_refused(folders, encoders, audio, tmp_path):
    new = {"new": audio["u0"][::-1].copy(), "newer": audio["u1"][::-1].copy()}
    for folder, models, more, message in (
        ("stride", encoders, {"frame_stride": 2}, "differ in frame_stride"),
        ("fewer", encoders[:1], {}, "differ in their representations"),
        ("float64", encoders, {"stats_dtype": "float64"}, "differ in stats_dtype"),
    ):
        ss.compare(models, new, statistics_dir=tmp_path / folder, **SETTINGS | more)
        with pytest.raises(UserError, match=message):
            ss.merge([folders[0], tmp_path / folder], progress=False)
    with pytest.raises(UserError, match="holds no statistics"):
        ss.merge([tmp_path], progress=False)
    with pytest.raises(
        UserError, match="another job: audio: u0 is missing and 2 more, new is new and 1 more"
    ):
        ss.compare(encoders, new, statistics_dir=folders[0], **SETTINGS)


def test_a_statistic_that_some_lack_is_left_out(folders, encoders, audio, caplog):
    """It is said in the log and in the result; what needs it cannot be asked for."""
    fewer = {"measures": "lincka,rsa"}
    lacking = folders[0].with_name("lacking")
    part = {name: audio[name] for name in list(audio)[3:6]}
    ss.compare(encoders, part, statistics_dir=lacking, **SETTINGS | fewer)
    jobs = [folders[0], lacking, folders[2]]
    result = ss.merge(jobs, progress=False)
    assert result.attributes["merged_without"] == ["attention"]
    assert "attention is missing in some of the jobs" in caplog.text
    assert "rsa" in result.measures and "attn_frobenius" not in result.measures
    asked = {"measures": SETTINGS["measures"].replace(",attn_frobenius", "")}
    assert_same_result(result, ss.compare(encoders, audio, **SETTINGS | asked))
    with pytest.raises(UserError, match=r"^attn_frobenius needs statistics"):
        ss.merge(jobs, measures="attn_frobenius", progress=False)


def test_jobs_of_other_sizes_can_be_merged(folders, encoders, audio, whole):
    """The size of a job's batches does not matter, nor how many shards shared it."""
    other = folders[1].with_name("other")
    part = {name: audio[name] for name in list(audio)[3:6]}
    sizes = {"batch_seconds": 1, "rows_per_update": 30}
    for shard in ("2/2", "1/2"):
        ss.accumulate(encoders, part, shard=shard, statistics_dir=other, **SETTINGS | sizes)
    assert_same_result(ss.merge([folders[0], other, folders[2]], progress=False), whole)


def test_parts_are_added_up_a_few_at_a_time(folders, whole, monkeypatch, tmp_path):
    """The sums on the way are deleted; an interrupted merge continues."""
    monkeypatch.setattr(merge_module, "_AT_A_TIME", 2)
    target = tmp_path / "all"
    with monkeypatch.context() as patch:
        patch.setattr(ShardFolder, "finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ss.merge(folders, statistics_dir=target, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(ShardFolder, "store", None)
        result = ss.merge(folders, statistics_dir=target, progress=False)
    assert_same_result(result, whole)
    entries = sorted(path.name.split(".")[0] for path in (target / "shard-1-of-1").iterdir())
    assert "sum-1-1" not in entries and entries.count("pass-1") == 1
    with pytest.raises(UserError, match="holds other statistics"):
        ss.merge(folders[:2], statistics_dir=target, progress=False)


@pytest.mark.parametrize("finished", [False, True])
def test_no_job_is_overwritten(finished, folders, encoders, audio, tmp_path):
    """The target is the folder of a job of one of two shards, or of a whole one."""
    if finished:
        target = shutil.copytree(folders[2], tmp_path / "job")
    else:
        target = tmp_path / "job"
        ss.accumulate(encoders, audio, shard="1/2", statistics_dir=target, **SETTINGS)
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="holds other statistics"):
        ss.merge(folders[:2], statistics_dir=target, progress=False)
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("module", ["__main__", None, "speechsim_jax_extra.measures"])
def test_a_measure_of_ones_own_is_scored_each_time(folders, monkeypatch, tmp_path, module):
    """Its function may have changed since, wherever it was defined."""
    for number in (0.25, 0.5):

        def function(_, number=number):
            return number

        function.__module__ = module
        own = dataclasses.replace(MEASURES["rsa"], name="own", function=function)
        monkeypatch.setitem(MEASURES, "own", own)
        result = ss.merge(
            folders[:1], measures="own", statistics_dir=tmp_path / "all", progress=False
        )
        assert (result.matrix("own").values == number).all()


def test_what_is_written_is_read(folders, tmp_path):
    """Every array, bit by bit; a folder of another format or with a part missing is refused."""
    (folder,) = folders[0].glob("shard-1-of-1/pass-1.*")
    result, facts = store.read(folder)
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
    record = tmp_path / "copy" / "statistics.json"
    text = record.read_text()
    record.write_text('{"format": 2, "kinds": []}')
    with pytest.raises(UserError, match="is of format 2, this version reads 4"):
        store.read(tmp_path / "copy")
    record.write_text(text)
    (tmp_path / "copy" / "sample" / "keys.npy").unlink()
    with pytest.raises(DamagedFileError, match=r"keys\.npy cannot be read: No such file"):
        store.read(tmp_path / "copy")
