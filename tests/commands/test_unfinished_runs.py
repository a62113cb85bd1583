"""Runs that end before they are complete, two runs in one workdir, and runs in shards."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speechsim_jax as ss
from speechsim_jax import figures
from speechsim_jax.commands import compare, status
from speechsim_jax.commands.workdir import is_complete
from speechsim_jax.comparison import steps as steps_module
from speechsim_jax.comparison import target
from speechsim_jax.pipeline import accumulators
from speechsim_jax.pipeline import run as run_module
from speechsim_jax.runtime.atomic_write import as_path
from speechsim_jax.runtime.lock import locked
from speechsim_jax.statistics import store
from tests.support.bucket import bucket
from tests.support.budgets import several_passes_gb
from tests.support.commands import assert_mistake, call
from tests.support.paths import DATA, ROOT
from tests.support.same_result import assert_same_result

pytestmark = pytest.mark.slow

BASE = DATA / "parity" / "wav2vec2-base"


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    for number in range(6):
        soundfile.write(folder / f"{number}.wav", 0.1 * rng.standard_normal(9000), 16_000)
    return folder


@pytest.fixture
def arguments(audio, tmp_path) -> list[str]:
    return [
        f"--models={BASE}", f"--audio={audio}", f"--workdir={tmp_path / 'run'}",
        "--measures=lincka,maxcorr", "--batch_seconds=1", "--buckets=1", "--checkpoint_every=0",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(audio) -> ss.SimilarityResult:
    return ss.compare(
        [BASE], str(audio), "lincka,maxcorr", batch_seconds=1, buckets=1, progress=False
    )


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def assert_not_written(ended, *parts: str) -> None:
    """Exit code 1 and one line that says what is complete and how to continue."""
    errors = [line for line in ended.err if line.startswith("error: ")]
    assert ended.code == 1 and errors == ended.err[-1:], ended
    for part in ("No space left on device", *parts):
        assert part in errors[0], errors[0]


# --- complete work is not repeated ---


def test_a_run_that_was_killed_while_it_drew_goes_on(capsys, arguments, tmp_path, monkeypatch):
    """With --keep_statistics or without: from the statistics, and from the scores."""
    with monkeypatch.context() as patch:
        patch.setattr(figures, "save_figures", no_space)
        ended = call(capsys, "compare", *arguments)
    assert_not_written(ended, "complete: result.nc, scores.csv, report.html", "--resume")
    assert (tmp_path / "run" / "unfinished.json").exists()
    assert_mistake(call(capsys, "compare", *arguments), "unfinished run", "--resume", "--overwrite")
    with monkeypatch.context() as patch:
        patch.setattr(accumulators.Accumulators, "append", None)
        patch.setattr("speechsim_jax.comparison.score.score_all", None)
        ended = call(capsys, "compare", *arguments, "--resume")
    assert ended.code == 0, ended
    names = {path.name for path in (tmp_path / "run").iterdir()} - {".lock"}
    assert names == {
        "config.json", "result.nc", "scores.csv", "scores.csv.json", "report.html", "figures",
        "log.jsonl",
    }  # fmt: skip


def test_a_complete_run_has_nothing_to_resume(capsys, arguments, tmp_path, monkeypatch):
    """As when a queue starts the same command again; another configuration is refused."""
    assert call(capsys, "compare", *arguments).code == 0
    with monkeypatch.context() as patch:
        patch.setattr(ss, "compare", None)
        again = call(capsys, "compare", *arguments, "--resume")
    assert again.code == 0 and "lincka" in again.out
    assert_mistake(call(capsys, "compare", *arguments), "result.nc exists", "--overwrite")
    changed = call(capsys, "compare", *arguments, "--resume", "--seed=1")
    assert_mistake(changed, "of another configuration", "--overwrite")


def test_a_full_disk_while_a_checkpoint_is_written(capsys, arguments, monkeypatch, whole, tmp_path):
    with monkeypatch.context() as patch:
        saved = iter(range(2))
        write = store.write_snapshots
        patch.setattr(
            store, "write_snapshots",
            lambda *a: write(*a) if next(saved, None) is not None else no_space(),
        )  # fmt: skip
        ended = call(capsys, "compare", *arguments)
    assert_not_written(ended, "shard-1-of-1 cannot be written", "complete before is kept")
    ended = call(capsys, "compare", *arguments, "--resume")
    assert ended.code == 0 and any("resuming after batch 2" in line for line in ended.err)
    assert_same_result(ss.SimilarityResult.load(tmp_path / "run" / "result.nc"), whole)


# --- what is read back is checked ---


def test_replaced_audio_is_noticed(capsys, arguments, audio, tmp_path, monkeypatch):
    """Same name, size and length, other samples; a file that was only touched is no reason."""
    copy = tmp_path / "audio"
    shutil.copytree(audio, copy)
    given = [word for word in arguments if not word.startswith("--audio")] + [f"--audio={copy}"]
    with monkeypatch.context() as patch:
        patch.setattr(figures, "save_figures", no_space)
        assert call(capsys, "compare", *given).code == 1
    samples, rate = soundfile.read(copy / "3.wav")
    (copy / "3.wav").touch()
    with monkeypatch.context() as patch:
        patch.setattr(figures, "save_figures", no_space)
        assert call(capsys, "compare", *given, "--resume").code == 1
    soundfile.write(copy / "3.wav", samples[::-1], rate)
    ended = call(capsys, "compare", *given, "--resume")
    assert_mistake(ended, str(copy / "3.wav"), "other samples", "start from the beginning")
    soundfile.write(copy / "3.wav", samples[:-100], rate)
    ended = call(capsys, "compare", *given, "--resume")
    assert_mistake(ended, "of another job", "audio: 3.wav has changed")


def test_audio_that_changes_between_passes_is_noticed(audio, tmp_path, monkeypatch):
    """Every pass has to read the same samples."""
    copy = tmp_path / "audio"
    shutil.copytree(audio, copy)
    given = {"batch_seconds": 1, "buckets": 1, "progress": False, "measures": "lincka"}
    budget = several_passes_gb(ss.compare, [BASE], str(copy), **given)
    run_pass = run_module.run_pass

    def replaced(run, number, *rest):
        if number == 2:
            samples, rate = soundfile.read(copy / "1.wav")
            soundfile.write(copy / "1.wav", samples[::-1], rate)
        return run_pass(run, number, *rest)

    monkeypatch.setattr(run_module, "run_pass", replaced)
    with pytest.raises(ss.UserError, match=r"audio of 1\.wav has changed since the first pass"):
        ss.compare([BASE], str(copy), device_memory_gb=budget, **given)


@pytest.mark.parametrize("what", ["plan", "complete", "statistics.json", "cross-0.npy"])
def test_a_damaged_file_is_named(what, capsys, arguments, tmp_path):
    """By `merge`, in one line, and whatever is wrong with it."""
    assert call(capsys, "compare", *arguments, "--keep_statistics").code == 0
    (path,) = (p for p in (tmp_path / "run" / "statistics").rglob("*") if p.name.startswith(what))
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 4
    merge = [f"--jobs={tmp_path / 'run'}", f"--workdir={tmp_path / 'merged'}", "--overwrite"]
    for damaged in (bytes(flipped), content[:-7], b"", None):
        if damaged is None:
            path.unlink()
        else:
            path.write_bytes(damaged)
        ended = call(capsys, "merge", *merge)
        gone = damaged is None and what != "cross-0.npy"  # then it was never complete
        named = "statistics" if gone else path.name
        assert_mistake(ended, named)
    path.write_bytes(content)
    assert call(capsys, "merge", *merge).code == 0


# --- two runs at once ---


def test_two_runs_in_one_workdir(capsys, arguments, tmp_path):
    """The second says who works there; afterwards it runs."""
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from speechsim_jax.runtime.lock import locked\n"
        "with locked(Path(sys.argv[1])): print(flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        ended = call(capsys, "compare", *arguments)
        assert_mistake(ended, f"process {other.pid} on ", "works in it")
        other.kill()
    assert call(capsys, "compare", *arguments).code == 0


@pytest.mark.parametrize(
    "call",
    [
        # As while numpy's C interface is imported: PyErr_Print.
        "ctypes.pythonapi.PyRun_SimpleString(b'raise {error}')",
        # In a callback: PyErr_WriteUnraisable.
        "ctypes.CFUNCTYPE(None)(lambda: (_ for _ in ()).throw({error}))()",
    ],
    ids=["import", "callback"],
)
def test_an_interrupt_that_c_swallows_ends_the_process(call):
    """Other errors are printed as ever."""
    program = (
        "import ctypes\nfrom speechsim_jax.commands import interrupt\n"
        "interrupt.raise_on_interrupt()\n{call}\nprint('after')"
    )
    ends = {}
    for error in ("KeyboardInterrupt", "ValueError"):
        ends[error] = subprocess.run(
            [sys.executable, "-c", program.format(call=call.format(error=error))],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
    interrupted, failed = ends["KeyboardInterrupt"], ends["ValueError"]
    assert (interrupted.returncode, interrupted.stderr) == (130, "interrupted\n")
    assert not interrupted.stdout
    assert failed.returncode == 0 and "ValueError" in failed.stderr and "after" in failed.stdout


def test_an_interrupt_while_a_module_is_imported_ends_the_process(tmp_path):
    """Even one that would swallow it."""
    (tmp_path / "swallows.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    print('went on')\n"
        "except BaseException:\n    print('swallowed')\n"
    )
    program = (
        "import signal\nfrom speechsim_jax.commands import interrupt\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "interrupt.raise_on_interrupt()\nimport swallows\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")


def test_ctrl_c_in_the_first_two_seconds(arguments, tmp_path):
    """Wherever the imports are: the process ends with code 130, in one line."""
    rng = random.Random(0)
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    for number in range(12):
        # A background job of a shell ignores it, and so do its children.
        program = (
            "import runpy, signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "runpy.run_module('experiments.compare', run_name='__main__', alter_sys=True)"
        )
        command = [sys.executable, "-c", program, *arguments, "--overwrite"]
        with subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            # Before 0.15 s Python itself starts.
            time.sleep(0.15 + 1.85 * (number + rng.random()) / 12)
            process.send_signal(signal.SIGINT)
            sent = time.monotonic()
            _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert time.monotonic() - sent < 4
        assert "Traceback" not in err and "interrupted" in err.splitlines()[-1]


# --- steps ---


def test_steps_of_a_command(capsys, arguments, tmp_path, monkeypatch):
    """Killed in the second step: refused without --resume, then continued; status, merge."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "audio"
    folder.mkdir()
    for number in range(16):
        soundfile.write(folder / f"{number}.wav", 0.1 * rng.standard_normal(9000), 16_000)
    monkeypatch.setattr(target, "FIRST_MINUTES", 0.05)
    given = [f"--audio={folder}", "--target_se=1e-4", "--keep_statistics"]
    with monkeypatch.context() as patch:
        patch.setattr(steps_module, "together", no_space)
        with pytest.raises(OSError):
            call(capsys, "compare", *arguments, *given)
    assert_mistake(call(capsys, "compare", *arguments, *given), "--resume", "--overwrite")
    ended = call(capsys, "compare", *arguments, *given, "--resume")
    assert ended.code == 0 and "not reached" in ended.out, ended
    run = tmp_path / "run"
    result = ss.SimilarityResult.load(run / "result.nc")
    assert result.attributes["utterances"] == 16
    steps = result.attributes["target"]["steps"]
    assert steps[0]["clusters"] == 10 and len(steps) > 1
    shown = call(capsys, "status", f"--workdir={run}").out.splitlines()
    assert shown[-1] == f"{len(steps)} of {len(steps)} shards are done; results: complete"
    merged = call(capsys, "merge", f"--jobs={run}", f"--workdir={tmp_path / 'again'}")
    assert merged.code == 0, merged
    assert_same_result(ss.SimilarityResult.load(tmp_path / "again" / "result.nc"), result)
    with locked(run / "statistics" / "step-1" / "shard-1-of-1"):
        ended = call(capsys, "compare", *arguments, *given, "--overwrite")
        assert_mistake(ended, "step-1", "works in it")


# --- shards ---


def test_shards_of_a_command(capsys, arguments, tmp_path, whole):
    """Whoever completes the set writes the results; the progress is in the folder."""
    ended = call(capsys, "compare", *arguments, "--shard=2/3")
    assert ended.code == 0 and "speechsim status" in ended.out
    assert any("still to come: 1/3, 3/3" in line for line in ended.err)
    shown = call(capsys, "status", f"--workdir={tmp_path / 'run'}").out.splitlines()
    assert [line.split()[:2] for line in shown[:3]] == [
        ["1/3", "missing"], ["2/3", "done"], ["3/3", "missing"],
    ]  # fmt: skip
    assert shown[3] == "1 of 3 shards are done; results: not written"
    with locked(tmp_path / "run" / "statistics" / "shard-1-of-3"):
        assert status.run(status.Config(str(tmp_path / "run")))[0].state == "missing"
        ended = call(capsys, "compare", *arguments, "--overwrite")
        assert_mistake(ended, "shard-1-of-3", "works in it")
    assert call(capsys, "compare", *arguments, "--shard=1/3").code == 0
    again = call(capsys, "compare", *arguments, "--shard=1/3")
    assert_mistake(again, "unfinished run", "--resume")
    assert call(capsys, "compare", *arguments, "--shard=1/3", "--resume").code == 0
    ended = call(capsys, "compare", *arguments, "--shard=3/3")
    assert ended.code == 0 and "lincka" in ended.out
    result = ss.SimilarityResult.load(tmp_path / "run" / "result.nc")
    assert_same_result(result, whole)
    shown = call(capsys, "status", f"--workdir={tmp_path / 'run'}").out.splitlines()
    assert shown[3] == "3 of 3 shards are done; results: complete"
    assert call(capsys, "compare", *arguments, "--shard=1/3", "--resume").code == 0


def test_shards_are_merged_by_hand(capsys, arguments, tmp_path, whole, monkeypatch):
    """Where the process that completed the set was killed before it merged."""
    assert call(capsys, "compare", *arguments, "--shard=1/2").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(ss, "merge", no_space)
        with pytest.raises(OSError):
            call(capsys, "compare", *arguments, "--shard=2/2")
    workdir = f"--workdir={tmp_path / 'run'}"
    ended = call(capsys, "merge", workdir)
    assert ended.code == 0, ended
    assert_same_result(ss.SimilarityResult.load(tmp_path / "run" / "result.nc"), whole)
    other = call(capsys, "merge", f"--jobs={tmp_path / 'run'}", f"--workdir={tmp_path / 'again'}")
    assert other.code == 0
    same = call(capsys, "merge", f"--jobs={tmp_path / 'run'}", workdir, "--overwrite")
    assert_mistake(same, "is one of --jobs")


def test_a_damaged_shard_is_run_again_alone(capsys, arguments, tmp_path, whole):
    """Its file is truncated, or its folder deleted; what was merged from it is not in the way."""
    run = tmp_path / "run"
    assert call(capsys, "compare", *arguments, "--shard=1/2").code == 0
    (damaged,) = run.glob("statistics/shard-1-of-2/pass-1*/moments/cross-0.npy")
    damaged.write_bytes(damaged.read_bytes()[:100])
    ended = call(capsys, "compare", *arguments, "--shard=2/2")
    assert_mistake(ended, "cross-0.npy is damaged", "run shard-1-of-2 again with --resume")
    assert_mistake(call(capsys, "merge", f"--workdir={run}", "--resume"), "run shard-1-of-2 again")
    ended = call(capsys, "compare", *arguments, "--shard=1/2", "--resume")
    assert ended.code == 0, ended
    assert_same_result(ss.SimilarityResult.load(run / "result.nc"), whole)
    (run / "result.nc").unlink()
    for folder in run.glob("statistics/shard-2-of-2/pass-1*"):
        shutil.rmtree(folder)
    assert [s.state for s in status.run(status.Config(str(run)))] == ["done", "stopped"]
    ended = call(capsys, "compare", *arguments, "--shard=2/2", "--resume")
    assert ended.code == 0, ended
    assert_same_result(ss.SimilarityResult.load(run / "result.nc"), whole)


def test_a_complete_run_is_known_under_any_name_of_its_workdir(capsys, arguments, tmp_path):
    assert call(capsys, "compare", *arguments).code == 0
    (tmp_path / "link").symlink_to(tmp_path / "run")
    others = [word for word in arguments if not word.startswith("--workdir")]
    for name in (f"{tmp_path}/run/", f"{tmp_path}/run/../run", f"{tmp_path}/link"):
        ended = call(capsys, "compare", *others, f"--workdir={name}", "--resume")
        assert ended.code == 0, ended


def test_a_failed_merge_leaves_nothing_in_the_way(capsys, arguments, tmp_path):
    """Of other jobs, in the same workdir."""
    job = tmp_path / "run"
    assert call(capsys, "compare", *arguments, "--keep_statistics").code == 0
    copy = Path(shutil.copytree(job, tmp_path / "copy"))
    (path,) = copy.glob("statistics/*/pass-1*/moments/cross-0.npy")
    path.write_bytes(b"")
    both = f"--workdir={tmp_path / 'both'}"
    assert_mistake(call(capsys, "merge", f"--jobs={copy}", both), "cross-0.npy is damaged")
    assert call(capsys, "merge", f"--jobs={job}", both).code == 0


def test_the_array_job_says_which_shard(capsys, arguments, monkeypatch, tmp_path):
    for name, value in {"ID": 2, "MIN": 1, "MAX": 2, "COUNT": 2, "STEP": 1}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert call(capsys, "compare", *arguments, "--shard=auto").code == 0
    assert [s.state for s in status.run(status.Config(str(tmp_path / "run")))] == [
        "missing", "done",
    ]  # fmt: skip


def test_a_workdir_in_a_bucket(audio, whole, capsys):
    """A run, a job in shards, its progress and a merge with nothing but objects."""
    with bucket() as address:
        given = {
            "models": (str(BASE),),
            "audio": str(audio),
            "measures": "lincka,maxcorr",
            "settings": ss.Settings(batch_seconds=1, buckets=1),
        }
        result = compare.run(compare.Config(workdir=f"{address}/one", **given))
        assert_same_result(result, whole)
        for k in (1, 2):
            config = compare.Config(
                workdir=f"{address}/two", resources=ss.Resources(shard=f"{k}/2"), **given
            )
            assert (compare.run(config) is None) == (k == 1)
            states = [s.state for s in status.run(status.Config(f"{address}/two"))]
            assert states == ["done", "done" if k == 2 else "missing"]
        assert_same_result(ss.SimilarityResult.load(f"{address}/two/result.nc"), whole)
        with pytest.raises(ss.UserError, match=r"two/result\.nc exists"):
            compare.run(config)
        names = {path.name for path in as_path(f"{address}/two").iterdir()}
        assert names == {
            "config.json", "result.nc", "scores.csv", "scores.csv.json", "report.html", "figures",
            "statistics", "log-1-of-2.jsonl", "log-2-of-2.jsonl",
        }  # fmt: skip
        log = (as_path(f"{address}/two") / "log-2-of-2.jsonl").read_text().splitlines()
        assert all(json.loads(line)["message"] for line in log)


# --- a run that was to replace a complete one ---


@pytest.fixture
def merged(capsys, arguments, tmp_path) -> tuple[list[str], dict[str, bytes]]:
    """The command that has merged a job, and the files that it wrote."""
    assert call(capsys, "compare", *arguments, "--keep_statistics").code == 0
    merge = [f"--jobs={tmp_path / 'run'}", f"--workdir={tmp_path / 'merged'}"]
    assert call(capsys, "merge", *merge).code == 0
    return merge, written(tmp_path / "merged")


def written(folder: Path) -> dict[str, bytes]:
    names = ("result.nc", "scores.csv", "report.html", "config.json", "figures/trend_lincka.png")
    return {name: (folder / name).read_bytes() for name in names}


def damaged_statistics(capsys, merge: list[str], job: Path, _) -> None:
    (path,) = job.glob("statistics/*/pass-1*/moments/cross-0.npy")
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    assert_mistake(call(capsys, "merge", *merge, "--overwrite"), "cross-0.npy is damaged")
    path.write_bytes(content)


def full_disk(capsys, merge: list[str], _, patch) -> None:
    patch.setattr(ss.SimilarityResult, "save", no_space)
    ended = call(capsys, "merge", *merge, "--measures=lincka", "--overwrite")
    assert ended.code == 1 and "No space left on device" in ended.err[-1], ended


def no_statistics(capsys, merge: list[str], job: Path, _) -> None:
    hidden = job.rename(job.with_name("hidden"))
    (job / "statistics").mkdir(parents=True)
    ended = call(capsys, "merge", *merge, "--overwrite")
    assert ended.code == 2, ended
    shutil.rmtree(job)
    hidden.rename(job)


def bug(capsys, merge: list[str], _, patch) -> None:
    patch.setattr("speechsim_jax.comparison.score.score_all", None)
    with pytest.raises(TypeError):
        call(capsys, "merge", *merge, "--measures=lincka", "--overwrite")


@pytest.mark.parametrize("failure", [damaged_statistics, full_disk, no_statistics, bug])
def test_a_failed_merge_keeps_what_was_complete(failure, merged, capsys, tmp_path, monkeypatch):
    """Named complete; resuming does the failed work, and takes nothing old for it."""
    merge, before = merged
    with monkeypatch.context() as patch:
        failure(capsys, merge, tmp_path / "run", patch)
    folder = tmp_path / "merged"
    assert written(folder) == before and is_complete(folder)
    assert_mistake(call(capsys, "merge", *merge), "result.nc exists", "--overwrite")
    assert_mistake(call(capsys, "merge", *merge, "--resume"), "an earlier run", "--overwrite")
    (folder / "result.nc").write_bytes(b"old")
    ended = call(capsys, "merge", *merge, "--resume", "--overwrite")
    assert ended.code == 0, ended
    assert written(folder)["result.nc"] != b"old" and is_complete(folder)
    assert not (folder / "failed.json").exists()
    assert call(capsys, "merge", *merge, "--resume").code == 0  # nothing to do


def test_half_replaced_results_are_unfinished(merged, capsys, tmp_path, monkeypatch):
    """From the first file on that is of another run than the rest."""
    merge, _ = merged
    folder = tmp_path / "merged"
    with monkeypatch.context() as patch:
        patch.setattr(figures, "save_figures", no_space)
        assert call(capsys, "merge", *merge, "--overwrite").code == 1
        assert not is_complete(folder)
        assert call(capsys, "merge", *merge, "--overwrite").code == 1
    assert not is_complete(folder)  # the second has replaced nothing complete
    assert call(capsys, "merge", *merge, "--resume").code == 0 and is_complete(folder)


def test_a_failed_comparison_keeps_what_was_complete(capsys, arguments, tmp_path, monkeypatch):
    assert call(capsys, "compare", *arguments).code == 0
    folder = tmp_path / "run"
    before = written(folder)
    given = [word for word in arguments if not word.startswith("--audio")]
    ended = call(capsys, "compare", *given, f"--audio={tmp_path / 'none'}", "--overwrite")
    assert_mistake(ended, "none")
    assert is_complete(folder) and written(folder) == before
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "run_pass", no_space)
        with pytest.raises(OSError):
            call(capsys, "compare", *arguments, "--overwrite")
    assert is_complete(folder) and written(folder) == before
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "run_pass", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call(capsys, "compare", *arguments, "--overwrite").code == 130
    assert not is_complete(folder)  # the message says how to go on
    assert call(capsys, "compare", *arguments, "--overwrite", "--resume").code == 0
    assert is_complete(folder)
