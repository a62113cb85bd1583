"""Kills comparisons with SIGKILL at random moments and resumes them: results must be bit-equal.

    python -m tests.support.kill_and_resume --runs=20 --seed=0

Small random encoders on noise, a checkpoint after every batch. A third of the runs is killed at any
time, a third some time after the second commit, a third while a checkpoint is being written (its
temporary folder is there after the kill). Prints a line a run, and exits with 1 if a resumed result
differs in one bit or if batches before the last commit were read again.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

import speechsim_jax as ss
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.models.save import save_folder

_SIZES = dict(
    hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
    conv_dim=(32,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
)  # fmt: skip
_UTTERANCES = 40
_WHEN = ("any time", "after two commits", "inside a write")


def main() -> None:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        command = _command(folder)
        started = time.monotonic()
        subprocess.run([*command, f"--workdir={folder / 'whole'}"], check=True, capture_output=True)
        whole = time.monotonic() - started
        expected = ss.SimilarityResult.load(folder / "whole" / "result.nc")
        print(f"undisturbed: {whole:.1f} s, {_commits(folder / 'whole')} commits")
        counts = dict.fromkeys(("wrong", "after two commits", "inside a write", "finished"), 0)
        for number in range(options.runs):
            workdir = folder / f"run{number}"
            when = _WHEN[number % len(_WHEN)]
            killed = _kill(command, workdir, when, whole, rng)
            done = _last_commit(workdir)
            writing = bool(list((workdir / "checkpoints").glob("*tmp*")))
            if (workdir / "checkpoints").exists() or not (workdir / "result.nc").exists():
                again = [*command, f"--workdir={workdir}", "--resume"]
                subprocess.run(again, check=True, capture_output=True)
            else:
                done = 0
            found = ss.SimilarityResult.load(workdir / "result.nc")
            problem = _difference(expected, found) or _lost(workdir, done)
            counts["wrong"] += bool(problem)
            counts["after two commits"] += done >= 2
            counts["inside a write"] += writing
            counts["finished"] += not killed
            print(
                f"run {number:2}, {when:17}: {'killed' if killed else 'finished'} after commit "
                f"{done}{', inside a write' if writing else ''}: {problem or 'the same bits'}",
                flush=True,
            )
            shutil.rmtree(workdir)
    print(json.dumps(counts))
    sys.exit(counts["wrong"] > 0)


def _command(folder: Path) -> list[str]:
    rng = np.random.default_rng(0)
    models = []
    for seed, family in enumerate(("wav2vec2", "wavlm")):
        config = EncoderConfig(family=family, **_SIZES)
        models.append(save_folder(folder / family, config, random_tensors(config, seed)))
    (folder / "audio").mkdir()
    for number in range(_UTTERANCES):
        wave = 0.1 * rng.standard_normal(rng.integers(33_000, 40_000))  # one compiled shape
        soundfile.write(folder / "audio" / f"{number:03}.wav", wave, 16_000)
    return [
        sys.executable, "-m", "experiments.compare", f"--audio={folder / 'audio'}",
        f"--models={','.join(map(str, models))}",
        "--measures=maxcorr,mincorr,lincka,svcca,rsa,attn_js", "--batch_seconds=5",
        "--rows_per_update=300", "--sample_frames=200", "--checkpoint_every=0",
        f"--compilation_cache={folder / 'xla'}",
    ]  # fmt: skip


def _kill(command: list[str], workdir: Path, when: str, whole: float, rng: random.Random) -> bool:
    """Start a run and kill it at such a moment; False if it was done before."""
    with subprocess.Popen(
        [*command, f"--workdir={workdir}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        if when == "any time":
            time.sleep(rng.uniform(0, whole))
        elif when == "after two commits":
            while process.poll() is None and _last_commit(workdir) < 2:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, whole / 4))
        else:
            wanted = rng.randint(1, 8)
            while process.poll() is None and not (
                _last_commit(workdir) >= wanted and list((workdir / "checkpoints").glob("*tmp*"))
            ):
                time.sleep(0.001)
        killed = process.poll() is None
        process.send_signal(signal.SIGKILL)
    return killed


def _last_commit(workdir: Path) -> int:
    """The newest checkpoint that is complete: its folder has its final name."""
    steps = [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]
    return max(steps, default=0)


def _log(workdir: Path) -> list[str]:
    lines = (workdir / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["message"] for line in lines]


def _commits(workdir: Path) -> int:
    return sum(message.startswith("checkpoint ") for message in _log(workdir))


def _difference(expected: ss.SimilarityResult, found: ss.SimilarityResult) -> str | None:
    for name, variable in expected.dataset.variables.items():
        a, b = variable.values, found.dataset[name].values
        if not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            return f"{name} differs"
    return None


def _lost(workdir: Path, done: int) -> str | None:
    """Whether the resumed run started anywhere but after the last commit."""
    resumed = [m for m in _log(workdir) if m.startswith("resuming after batch ")]
    after = int(resumed[-1].split(",")[0].split()[-1]) if resumed else 0
    return None if after == done else f"resumed after batch {after}, committed was {done}"


if __name__ == "__main__":
    main()
