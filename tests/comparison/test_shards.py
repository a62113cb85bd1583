"""A job in shards: on machines that share a folder, or a bucket, and nothing else."""

import logging
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.comparison import reading
from speechsim_jax.errors import UserError
from speechsim_jax.pipeline import accumulators
from speechsim_jax.pipeline import job_folder as job_folder_module
from speechsim_jax.pipeline.job_folder import ShardFolder, job_folder, job_status
from speechsim_jax.runtime.lock import LockedError, is_locked, locked
from tests.support import job_runs
from tests.support.bucket import bucket
from tests.support.budgets import least_gb
from tests.support.same_result import assert_same_result

pytestmark = pytest.mark.slow

SETTINGS = job_runs.SETTINGS | {
    "measures": "maxcorr,mincorr,lincka,svcca,rsa,attn_frobenius",
}


@pytest.fixture(scope="module")
def encoders() -> list[ss.SpeechEncoder]:
    return job_runs.encoders()


@pytest.fixture(scope="module")
def audio() -> dict[str, np.ndarray]:
    waves = job_runs.noise(7)
    waves["u3"][:] = np.nan  # skipped, in whichever shard it is
    return waves


@pytest.fixture(scope="module")
def whole(encoders, audio) -> ss.SimilarityResult:
    return ss.compare(encoders, audio, **SETTINGS)


def states(folder: str | Path) -> list[str]:
    return [status.state for status in job_status(job_folder(folder).path)]


@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_shards_merge_to_the_result_of_one_job(where, encoders, audio, whole, tmp_path):
    with bucket() as address:
        folder = str(tmp_path / "job") if where == "disk" else f"{address}/runs/job"
        for number, shard in enumerate(("2/3", "3/3", "1/3"), start=1):
            found = ss.accumulate(encoders, audio, shard=shard, statistics_dir=folder, **SETTINGS)
            assert sum(status.state == "done" for status in found) == number
            if number == 2:
                with pytest.raises(UserError, match="shards 1/3 are not complete"):
                    ss.merge([folder], progress=False)
        result = ss.merge([folder], progress=False)
    assert_same_result(result, whole)
    for name in ("frames", "rows", "utterances", "seconds", "skipped", "models", "settings"):
        assert result.attributes[name] == whole.attributes[name], name
    assert [part["shard"] for part in result.attributes["merged"]] == [
        f"shard-{k}-of-3" for k in (1, 2, 3)
    ]


@pytest.mark.parametrize("count", [3, 9])
def test_a_shard_without_audio_adds_nothing(count, encoders, audio, tmp_path, caplog):
    """It is complete, is merged, and is said to be of no use."""
    few = {name: audio[name] for name in ("u0", "u1")}
    for number in range(1, count + 1):
        caplog.clear()
        given = SETTINGS | {"shard": f"{number}/{count}", "statistics_dir": tmp_path}
        found = ss.accumulate(encoders, few, **given)
        (said,) = [line for line in caplog.messages if "shards" in line]
        assert f"{count} shards" in said and "2 utterances" in said and f"{count - 2} of" in said
    assert [status.state for status in found] == ["done"] * count
    result = ss.merge([tmp_path], progress=False)
    assert_same_result(result, ss.compare(encoders, few, **SETTINGS))
    assert result.attributes["utterances"] == 2


def test_as_many_shards_as_utterances_are_not_warned_of(encoders, audio, tmp_path, caplog):
    few = {name: audio[name] for name in ("u0", "u1")}
    ss.accumulate(encoders, few, shard="1/2", statistics_dir=tmp_path, **SETTINGS)
    assert not [line for line in caplog.messages if "shards" in line]


def test_a_lost_shard_is_run_again_alone(encoders, audio, whole, tmp_path, monkeypatch):
    """What the others have stored is not touched; a complete shard is not read again."""
    given = SETTINGS | {"statistics_dir": tmp_path, "checkpoint_every": 0}
    ss.accumulate(encoders, audio, shard="1/2", **given)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}

    def dies(*_):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(ShardFolder, "store", dies)
        with pytest.raises(RuntimeError):
            ss.accumulate(encoders, audio, shard="2/2", **given)
    assert states(tmp_path) == ["done", "stopped"]
    ss.accumulate(encoders, audio, shard="2/2", **given)
    assert states(tmp_path) == ["done", "done"]
    with monkeypatch.context() as patch:
        patch.setattr(accumulators.Accumulators, "append", None)
        ss.accumulate(encoders, audio, shard="1/2", **given)
    assert before.items() <= {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npy")}.items()
    assert_same_result(ss.merge([tmp_path], progress=False), whole)


def _hold(folder: Path, ready, done) -> None:
    with locked(folder):
        ready.set()
        done.wait(60)


def test_two_runs_of_one_shard(encoders, audio, tmp_path):
    """Where there are locks, the second is refused and says who works on it."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    arguments = tmp_path / "shard-1-of-2", ready, done
    other = context.Process(target=_hold, args=arguments)
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(LockedError, match=f"shard-1-of-2: process {other.pid} on "):
            ss.accumulate(encoders, audio, shard="1/2", statistics_dir=tmp_path, **SETTINGS)
        assert is_locked(tmp_path / "shard-1-of-2")
    finally:
        done.set()
        other.join()


def test_two_runs_of_one_shard_in_a_bucket(encoders, audio, whole, monkeypatch, caplog):
    """There are no locks: the first of two complete ones counts, and the other says so."""
    with bucket() as address:
        folder = f"{address}/job"
        given = SETTINGS | {"statistics_dir": folder, "shard": "1/2"}
        runs = iter(["20300102T-b", "20300101T-a"])
        run_passes = reading.run_passes

        def overtaken(*arguments):
            with monkeypatch.context() as patch:
                patch.setattr(reading, "run_passes", run_passes)
                ss.accumulate(encoders, audio, **given)
            return run_passes(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(job_folder_module, "new_run", lambda: next(runs, "20300103T-c"))
            patch.setattr(reading, "run_passes", overtaken)
            ss.accumulate(encoders, audio, **given)
        assert "another run was complete first" in caplog.text
        ss.accumulate(encoders, audio, **given | {"shard": "2/2"})
        assert_same_result(ss.merge([folder], progress=False), whole)


def test_shards_must_be_of_one_job(encoders, audio, tmp_path):
    given = SETTINGS | {"statistics_dir": tmp_path}
    ss.accumulate(encoders, audio, shard="1/2", **given)
    for changed, message in (
        ({"shard": "2/3"}, "shards was 2 and is 3 now"),
        ({"shard": "2/2", "seed": 1}, "seed was 0 and is 1 now"),
    ):
        with pytest.raises(UserError, match=f"is of another job: {message}"):
            ss.accumulate(encoders, audio, **given | changed)
    with pytest.raises(UserError, match="has no result of its own; use accumulate"):
        ss.compare(encoders, audio, shard="2/2", **given)
    with pytest.raises(UserError, match="accumulate needs statistics_dir"):
        ss.accumulate(encoders, audio, shard="2/2", **SETTINGS)


def test_all_shards_follow_the_plan_of_the_first(encoders, audio, whole, tmp_path, caplog):
    """A machine with less memory has divided the layer pairs; one with more keeps to it."""
    measures = {"measures": "maxcorr,lincka,svcca"}
    given = SETTINGS | measures | {"statistics_dir": tmp_path}
    budget = 1.2 * least_gb(ss.accumulate, encoders, audio, shard="1/2", **given)
    shutil.rmtree(tmp_path)
    ss.accumulate(encoders, audio, shard="1/2", device_memory_gb=budget, **given)
    with caplog.at_level(logging.INFO):
        ss.accumulate(encoders, audio, shard="2/2", **given)
    assert "pass 2 of" in caplog.text
    result = ss.merge([tmp_path], progress=False)
    for measure in measures["measures"].split(","):
        np.testing.assert_allclose(result.matrix(measure), whole.matrix(measure), atol=1e-5)
