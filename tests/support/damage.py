"""Damages every file that is read back: each damage is noticed, and nothing wrong is computed.

    python -m tests.support.damage --flips=200 --truncations=200 --seed=0

Flips one bit, or cuts off the end, of one file of: an interrupted job with two checkpoints, which
is resumed; a job of several complete passes, which is resumed; stored statistics, which are merged;
a saved result; checkpoints of a training; partial results of an analysis. Noticed means: a line
that names the file, and the right result from the last state that is good, or a UserError.
"""

import argparse
import collections
import json
import logging
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np

import speechsim_jax as ss
from speechsim_jax.commands.workdir import partial_results
from speechsim_jax.pipeline import accumulators
from speechsim_jax.training.checkpoints import Checkpoints
from tests.support.budgets import several_passes_gb
from tests.support.paths import DATA

_SETTINGS = {
    "measures": "lincka,maxcorr,rsa",
    "batch_seconds": 1,
    "buckets": 1,
    "rows_per_update": 100,
    "sample_frames": 60,
    "progress": False,
}
_STATE = {"model": {"x": np.arange(500.0)}, "mu": {"x": np.arange(500.0) / 3}}


class Case(NamedTuple):
    """A folder that is damaged, and what reads it.

    Attributes:
      name: what it is.
      folder: undamaged.
      read: reads a folder; returns whether what it read is right.
    """

    name: str
    folder: Path
    read: Callable[[Path], bool]


class _Killed(Exception):
    pass


def main() -> None:
    """Damage, read, count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--truncations", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        counts = run(Path(scratch), options.flips, options.truncations, options.seed)
    print(json.dumps(dict(sorted(counts.items()))))
    sys.exit(bool(counts["unnoticed"] or counts["wrong"] or counts["traceback"]))


def run(scratch: Path, flips: int, truncations: int, seed: int) -> collections.Counter[str]:
    """How the damages went, by outcome."""
    rng = random.Random(seed)
    cases = _cases(scratch)
    counts: collections.Counter[str] = collections.Counter()
    for number in range(flips + truncations):
        case = cases[number % len(cases)]
        folder = scratch / f"damaged{number}" / case.folder.name
        shutil.copytree(case.folder, folder)
        files = sorted(p for p in folder.rglob("*") if p.is_file() and _is_read(p, folder))
        path = rng.choice(files)
        content = bytearray(path.read_bytes())
        if number < flips:
            bit = rng.randrange(8 * len(content))
            content[bit // 8] ^= 1 << bit % 8
        else:
            del content[rng.randrange(len(content)) :]
        path.write_bytes(content)
        outcome = _outcome(case, folder, path)
        counts[outcome] += 1
        counts[f"damages of {case.name}"] += 1
        if outcome not in ("refused", "good state used"):
            print(f"{case.name}: {path.relative_to(folder)}: {outcome}", flush=True)
        shutil.rmtree(folder.parent)
    return counts


def _is_read(path: Path, folder: Path) -> bool:
    """Whether a file is read, if the others are good.

    Not read are locks, what only `speechsim status` shows, orbax's own records, and the checkpoint
    before the newest.
    """
    if path.name.startswith((".", "started.", "_CHECKPOINT", "_METADATA", "commit_success")):
        return False
    for part in path.relative_to(folder).parts:
        for checkpoint in (r"(\d+)", r"pass-(\d+)\.batch-.*"):
            if re.fullmatch(checkpoint, part):
                place = next(p for p in path.parents if p.name == part).parent
                pattern = part.split("batch-")[0] + "batch-*" if "batch-" in part else "[0-9]*"
                return part == max(other.name for other in place.glob(pattern))
    return True


def _outcome(case: Case, folder: Path, path: Path) -> str:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("speechsim_jax")
    logger.addHandler(handler)
    try:
        right = case.read(folder)
    except ss.UserError as error:
        named = "\n" not in str(error) and (path.name in str(error) or folder.name in str(error))
        return "refused" if named else "unnoticed"
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
        return "traceback"
    finally:
        logger.removeHandler(handler)
    if not right:
        return "wrong"
    return "good state used" if any("damaged" in line for line in lines) else "unnoticed"


def _cases(scratch: Path) -> list[Case]:
    rng = np.random.default_rng(0)
    audio = {f"u{i}": (0.1 * rng.standard_normal(7000)).astype(np.float32) for i in range(8)}
    encoders = [
        ss.load_encoder(DATA / "parity" / name) for name in ("wav2vec2-base", "hubert-base")
    ]
    expected = ss.compare(encoders, audio, **_SETTINGS)
    budget = several_passes_gb(ss.compare, encoders, audio, **_SETTINGS)
    several = ss.compare(encoders, audio, device_memory_gb=budget, **_SETTINGS)
    assert several.attributes["passes"] > 1

    def resumed(folder: Path) -> bool:
        found = ss.compare(encoders, audio, statistics_dir=folder, **_SETTINGS)
        return _same(found, several if "passes" in folder.name else expected)

    def interrupted(folder: Path, batches: int, **settings) -> Path:
        append, seen = accumulators.Accumulators.append, []

        def dies(self, *args):
            seen.append(args)
            if len(seen) > batches:
                raise _Killed
            append(self, *args)

        given = _SETTINGS | {"statistics_dir": folder, "checkpoint_every": 0} | settings
        with mock.patch.object(accumulators.Accumulators, "append", dies):
            try:
                ss.compare(encoders, audio, **given)
            except _Killed:
                return folder
        raise AssertionError("it was not interrupted")

    stored = scratch / "stored"
    ss.compare(encoders, audio, statistics_dir=stored, **_SETTINGS)
    (scores,) = stored.glob("*/scores-*.nc")
    scores.unlink()  # `merge` does not read it
    (scratch / "result").mkdir()
    expected.save(scratch / "result" / "result.nc")
    (scratch / "training").mkdir()
    checkpoints = Checkpoints(scratch / "training", {"seed": 1}, 0)
    for step in (1, 2):
        checkpoints.save(step, _STATE, {"seconds": step})
    checkpoints.close()
    partial_results(scratch / "partial", {"seed": 1}, False, False)
    return [
        Case("an interrupted job", interrupted(scratch / "interrupted", 4), resumed),
        Case(
            "complete passes",
            interrupted(scratch / "passes", 13, device_memory_gb=budget),
            resumed,
        ),
        Case("stored statistics", stored, lambda f: _same(ss.merge([f], progress=False), expected)),
        Case(
            "a result",
            scratch / "result",
            lambda f: _same(ss.SimilarityResult.load(f / "result.nc"), expected),
        ),
        Case("a training", scratch / "training", _training_resumed),
        Case(
            "partial results",
            scratch / "partial",
            lambda f: bool(partial_results(f, {"seed": 1}, True, False)),
        ),
    ]


def _training_resumed(folder: Path) -> bool:
    checkpoints = Checkpoints(folder, {"seed": 1}, 0)
    saved = checkpoints.latest()
    checkpoints.close()
    assert saved is not None
    return all(
        np.array_equal(saved.state[part]["x"], _STATE[part]["x"]) for part in ("model", "mu")
    )


def _same(found: ss.SimilarityResult, expected: ss.SimilarityResult) -> bool:
    return all(
        np.array_equal(found.dataset[name], expected.dataset[name], equal_nan=True)
        for name in found.measures
    )


if __name__ == "__main__":
    main()
