"""Kills comparisons with SIGKILL at random moments and resumes them: results must be the same.

    python -m tests.support.kill_and_resume --runs=40 --seed=0

Small random encoders on noise, a checkpoint after every batch. Runs take turns: one pass, several
passes, a merge of three jobs. Each is killed at any time, after the statistics are stored, or
inside a write (a folder of the store is there after the kill, and is not complete). Every fourth is
resumed on four simulated devices: then scores agree within 1e-5, else bit by bit. Prints a line a
run, and exits with 1 if a resumed result differs, a resumed run is refused, or work that was
complete is repeated.
"""

import argparse
import collections
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

import speechsim_jax as ss
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.models.save import save_folder
from tests.support.tolerances import ERRORS_RELATIVE, ERRORS_RELATIVE_BATCHES, MESH

_SIZES = dict(
    hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
    conv_dim=(32,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
)  # fmt: skip
_UTTERANCES = 36
_WHEN = ("any time", "statistics stored", "inside a write")
_STAGES = ("loading", "reading", "storing", "scoring", "drawing", "complete")
_FOUR_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}


class Job(NamedTuple):
    """A command that is killed and resumed.

    Attributes:
      name: what it does.
      command: without its workdir.
      seconds: that it takes undisturbed.
      expected: its result.
    """

    name: str
    command: list[str]
    seconds: float
    expected: ss.SimilarityResult


def main() -> None:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        jobs = _jobs(folder)
        for number in range(options.runs):
            job, when = jobs[number % len(jobs)], _WHEN[number // len(jobs) % len(_WHEN)]
            workdir = folder / f"run{number}"
            killed = _kill(job, workdir, when, rng)
            stage, inside = _stage(workdir), bool(_incomplete(workdir))
            before = _complete(workdir)
            elsewhere = number % 4 == 3
            problem = _resume(job, workdir, before, elsewhere)
            counts[f"killed while {stage}" if killed else "finished before"] += 1
            counts[f"killed in {job.name}"] += killed
            counts["killed with all statistics stored"] += killed and stage in _STAGES[3:5]
            counts["killed inside a write"] += killed and inside
            counts["wrong, refused or repeated"] += problem is not None
            print(
                f"run {number:2}, {job.name:14}, {when:17}: "
                f"{'killed while ' + stage if killed else 'finished':20}"
                f"{', inside a write' if inside else '':16}"
                f"{', resumed on 4 devices' if elsewhere else ''}: {problem or 'the same'}",
                flush=True,
            )
            shutil.rmtree(workdir)
    print(json.dumps(dict(sorted(counts.items()))))
    sys.exit(counts["wrong, refused or repeated"] > 0)


def _jobs(folder: Path) -> list[Job]:
    rng = np.random.default_rng(0)
    models = []
    for seed, family in enumerate(("wav2vec2", "wavlm")):
        config = Wav2Vec2Config(family=family, **_SIZES)
        models.append(save_folder(folder / family, config, random_tensors(config, seed)))
    for number in range(_UTTERANCES):
        wave = 0.1 * rng.standard_normal(rng.integers(33_000, 40_000))  # one compiled shape
        part = folder / "audio" / f"{number % 3}"
        part.mkdir(parents=True, exist_ok=True)
        soundfile.write(part / f"{number:03}.wav", wave, 16_000)
    cache = f"--compilation_cache={folder / 'xla'}"
    measures = "--measures=maxcorr,mincorr,lincka,svcca,rsa"
    compare = [
        sys.executable, "-m", "experiments.compare", f"--models={','.join(map(str, models))}",
        measures, "--batch_seconds=5", "--rows_per_update=300", "--sample_frames=200",
        "--checkpoint_every=0", cache,
    ]  # fmt: skip
    parts = [folder / f"part{number}" for number in range(3)]
    for number, part in enumerate(parts):
        _run([*compare, f"--audio={folder / 'audio' / str(number)}", "--keep_statistics"], part)
    audio = f"--audio={folder / 'audio'}"
    merge = [
        sys.executable, "-m", "experiments.merge", f"--jobs={','.join(map(str, parts))}", measures,
        cache,
    ]  # fmt: skip
    commands = {
        "one pass": [*compare, audio],
        "several passes": [*compare, audio, "--device_memory_gb=0.0095"],
        "merge": merge,
    }
    jobs = []
    for name, command in commands.items():
        workdir = folder / name.replace(" ", "_")
        _run(command, workdir)  # compiles
        shutil.rmtree(workdir)
        seconds = _run(command, workdir)
        result = ss.SimilarityResult.load(workdir / "result.nc")
        passes = result.attributes.get("passes", 1)
        assert (passes > 1) == (name == "several passes"), f"{name}: {passes} passes"
        print(f"{name}: {seconds:.1f} s undisturbed, {passes} passes", flush=True)
        jobs.append(Job(name, command, seconds, result))
    return jobs


def _run(command: Sequence[str], workdir: Path, **environment: str) -> float:
    """Run to the end; returns the seconds. Raises CalledProcessError if it fails."""
    started = time.monotonic()
    subprocess.run(
        [*command, f"--workdir={workdir}"],
        check=True, capture_output=True, text=True, env=os.environ | environment,
    )  # fmt: skip
    return time.monotonic() - started


def _kill(job: Job, workdir: Path, when: str, rng: random.Random) -> bool:
    """Start a run and kill it at such a moment; False if it was done before."""
    with subprocess.Popen(
        [*job.command, f"--workdir={workdir}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        if when == "any time":
            time.sleep(rng.uniform(0, job.seconds))
        elif when == "statistics stored":
            while process.poll() is None and not list(workdir.glob("statistics/*/complete.*")):
                if _stage(workdir) in _STAGES[3:]:
                    break
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.2 * job.seconds))
        else:
            wanted = rng.randint(0, 6)
            while process.poll() is None and not (
                len(_seen(workdir)) > wanted and _incomplete(workdir)
            ):
                time.sleep(0.0005)
        killed = process.poll() is None
        process.send_signal(signal.SIGKILL)
    return killed


def _entries(workdir: Path) -> list[Path]:
    """Folders of the store: checkpoints, passes, and sums on the way to a merged pass."""
    shard = workdir / "statistics" / "shard-1-of-1"
    try:
        return [path for kind in ("pass", "sum") for path in shard.glob(f"{kind}-*")]
    except FileNotFoundError:  # the run has just removed it
        return []


def _seen(workdir: Path) -> list[Path]:
    """Folders of the store, old checkpoints that are deleted by now counted too."""
    entries = _entries(workdir)
    batches = [int(p.name.split(".batch-")[1][:6]) for p in entries if ".batch-" in p.name]
    return entries + entries[:1] * max(batches, default=0)


def _incomplete(workdir: Path) -> list[Path]:
    return [path for path in _entries(workdir) if not (path / "statistics.json").exists()]


def _complete(workdir: Path) -> set[str]:
    """Names of the passes and checkpoints that were written to their end."""
    return {p.name for p in _entries(workdir) if (p / "statistics.json").exists()}


def _stage(workdir: Path) -> str:
    """How far a run is, from its folder."""
    if (workdir / "result.nc").exists():
        return "drawing" if (workdir / "unfinished.json").exists() else "complete"
    log = _log(workdir)
    names = _complete(workdir)
    if list(workdir.glob("statistics/*/complete.*")) or _all_passes(names, log):
        return "scoring"
    if any(".batch-" not in path.name for path in _entries(workdir)):
        return "storing"
    return "reading" if names or any(m.startswith("compiling") for m in log) else "loading"


def _all_passes(names: set[str], log: Sequence[str]) -> bool:
    announced = [found for m in log if (found := re.fullmatch(r"pass \d+ of (\d+)", m))]
    count = int(announced[-1][1]) if announced else 1
    return len({n.split(".")[0] for n in names if ".batch-" not in n and n[:4] == "pass"}) == count


def _resume(job: Job, workdir: Path, before: set[str], elsewhere: bool) -> str | None:
    """Resume a run; returns what is wrong with it."""
    lines = len(_log(workdir))
    try:
        _run([*job.command, "--resume"], workdir, **(_FOUR_DEVICES if elsewhere else {}))
    except subprocess.CalledProcessError as error:
        return f"refused: {error.stderr.splitlines()[-1]}"
    found = ss.SimilarityResult.load(workdir / "result.nc")
    # What was complete was computed on one device.
    problem = _difference(job.expected, found, exact=not elsewhere)
    return problem or _repeated(before, _log(workdir)[lines:])


def _log(workdir: Path) -> list[str]:
    path = workdir / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["message"] for line in lines if line.endswith("}")]


def _difference(
    expected: ss.SimilarityResult, found: ss.SimilarityResult, exact: bool
) -> str | None:
    for name, variable in expected.dataset.variables.items():
        a, b = variable.values, found.dataset[name].values
        if a.dtype.kind == "f" and not exact:
            # Facts of a representation, as its condition, have any size.
            bounds = {"atol": MESH, "rtol": 0.0 if name in expected.measures else MESH}
            if str(name).endswith("_se"):
                # Four devices have batches of other shapes.
                turned = str(name).startswith(("svcca", "rsa"))
                relative = ERRORS_RELATIVE_BATCHES if turned else ERRORS_RELATIVE
                bounds = {"atol": 1e-9, "rtol": relative}
            if str(name).endswith("_se_error"):
                # Beyond any bound where nothing is known of an error, which has no value then.
                known = np.isfinite(expected.dataset[str(name).removesuffix("_error")].values)
                a, b = np.where(known, a, 0), np.where(known, b, 0)
                bounds = {"atol": 1e-9, "rtol": ERRORS_RELATIVE_BATCHES}
            if not np.allclose(a, b, **bounds, equal_nan=True):
                return f"{name} differs by {np.nanmax(np.abs(a - b)):.1e}"
        elif not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            return f"{name} differs"
    return None


def _repeated(before: set[str], log: Sequence[str]) -> str | None:
    """Whether the resumed run has read again what was complete."""
    # A second reading for standard errors comes after the passes, and may be resumed, too.
    log = list(itertools.takewhile(lambda m: "read a second time" not in m, log))
    batches = {}
    for name in before:
        number, _, rest = name.partition(".")
        batch = int(rest[6:12]) if rest.startswith("batch-") else None
        batches.setdefault(number, set()).add(batch)
    for number, of_pass in batches.items():
        if number[:4] != "pass":
            continue
        if None in of_pass:
            if any(m.startswith("resuming") for m in log) and len(batches) == 1:
                return f"{number} was complete and is read again"
        elif not any(m.startswith(f"resuming after batch {max(of_pass)},") for m in log):
            return f"{number} was at batch {max(of_pass)} and starts elsewhere"
    return None


if __name__ == "__main__":
    main()
