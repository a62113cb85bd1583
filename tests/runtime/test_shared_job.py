"""One comparison by two processes of two devices each: the result of one, and a lost process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speechsim_jax as ss
from tests.support.paths import ROOT
from tests.support.same_result import assert_same_result
from tests.support.two_processes import free_port

MODELS = ",".join(
    str(ROOT / "tests" / "data" / "parity" / name) for name in ("wavlm-base", "hubert-large")
)
FLAGS = [
    f"--models={MODELS}",
    "--measures=maxcorr,mincorr,linreg,lincka,lincka_debiased,svcca,pwcca,rsa,attn_frobenius",
    "--batch_seconds=2",
    "--rows_per_update=40",
    "--sample_frames=100",
    "--checkpoint_every=0",
]


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    for number in range(17):
        wave = 0.1 * rng.standard_normal(rng.integers(8000, 9000))
        soundfile.write(folder / f"{number:02}.wav", wave, 16_000)
    (folder / "broken.wav").write_bytes(b"RIFF")
    return folder


@pytest.fixture(scope="module")
def one(audio, tmp_path_factory) -> ss.SimilarityResult:
    """Of one process and one device."""
    workdir = tmp_path_factory.mktemp("one")
    with start([f"--audio={audio}", f"--workdir={workdir}"], devices=1) as process:
        assert process.wait() == 0
    return ss.SimilarityResult.load(workdir / "result.nc")


def start(more: list[str], devices: int = 2) -> subprocess.Popen:
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "experiments.compare", *FLAGS, *more]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def start_two(more: list[str]) -> list[subprocess.Popen]:
    place = [f"--coordinator=127.0.0.1:{free_port()}", "--processes=2"]
    return [start([*place, f"--process={number}", *more]) for number in range(2)]


def ends(started: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """Exit code and stderr of each."""
    output = [process.communicate(timeout=300)[1] for process in started]
    return [(process.returncode, text) for process, text in zip(started, output)]


@pytest.mark.slow
def test_two_processes_give_what_one_gives(audio, one, tmp_path):
    done = ends(start_two([f"--audio={audio}", f"--workdir={tmp_path}"]))
    assert [code for code, _ in done] == [0, 0], done
    result = ss.SimilarityResult.load(tmp_path / "result.nc")
    assert result.attributes["processes"] == 2
    assert_same_result(result, one)
    for name in ("frames", "rows", "utterances", "skipped"):
        assert result.attributes[name] == one.attributes[name]
    read = [
        [line for line in path.read_text().splitlines() if "audio-seconds per second" in line]
        for path in (tmp_path / "log.jsonl", tmp_path / "log-1.jsonl")
    ]
    assert [len(lines) for lines in read] == [1, 1]
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
def test_a_dead_process_ends_the_job_which_can_be_resumed(audio, one, tmp_path):
    """Killed after its second commit; the other reports it, and both resume."""
    arguments = [f"--audio={audio}", f"--workdir={tmp_path}", "--resume"]
    first, second = start_two(arguments)
    commits = tmp_path / "checkpoints" / "process-1-of-2"
    while second.poll() is None and not any(commits.glob("[2-9]")):
        time.sleep(0.01)
    second.send_signal(signal.SIGKILL)
    (code, output), (killed, _) = ends([first, second])
    assert killed == -signal.SIGKILL
    assert code == 2
    assert "process 1 of 2" in output.splitlines()[-1] and "--resume" in output.splitlines()[-1], (
        output
    )
    done = ends(start_two(arguments))
    assert [code for code, _ in done] == [0, 0], done
    assert "resuming after batch" in (tmp_path / "log-1.jsonl").read_text()
    assert_same_result(ss.SimilarityResult.load(tmp_path / "result.nc"), one)


def test_another_number_of_processes_is_refused(audio, tmp_path):
    (tmp_path / "checkpoints" / "process-1-of-3").mkdir(parents=True)
    with start([f"--audio={audio}", f"--workdir={tmp_path}", "--resume"]) as process:
        output = process.communicate()[1]
    assert process.returncode == 2
    assert "are of a job of 3 processes, and there are 1 now" in output.splitlines()[-1]
