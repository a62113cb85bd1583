"""`merge` of many stores: time and memory, in a process of its own each time.

    python -m experiments.benchmarks.merging FOLDER

merges a folder and prints the seconds. The stores are shards of one job: sums over random rows of
two models of five layers, 768 neurons wide.
"""

import dataclasses
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import speechsim_jax as ss
from experiments.benchmarks import processes
from experiments.benchmarks.machine import report, report_machine
from speechsim_jax.pipeline.job_folder import JobFolder
from speechsim_jax.pipeline.one_pass import ReadCounts
from speechsim_jax.pipeline.run import Division
from speechsim_jax.runtime.shards import Shard
from speechsim_jax.statistics.moments import ModelShape, all_tiles
from speechsim_jax.statistics.moments_accumulator import MomentsAccumulator
from speechsim_jax.statistics.store import PassStatistics

_WHAT = "merging"
_ROWS = 512


def run(counts: Sequence[int], small: bool = False) -> None:
    """Merge each number of stores.

    Args:
      counts: numbers of stores.
      small: narrow models.
    """
    report_machine(_WHAT)
    shape = ModelShape(5, 16 if small else 768)
    peaks = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, "job")
            size = _store(folder, shape, count)
            done = processes.run_module("experiments.benchmarks.merging", [str(folder)])
            seconds = done.last_line()["seconds"]
        peaks[count] = done.peak_gib
        report(_WHAT, "size of all stores", size / 2**30, "GiB", stores=count)
        report(_WHAT, "peak RSS", done.peak_gib, "GiB", stores=count)
        report(_WHAT, "time", seconds, "s", stores=count)
        report(_WHAT, "rate", size / 2**20 / seconds, "MiB/s", stores=count)


def _store(folder: Path, shape: ModelShape, count: int) -> int:
    """Write a job of so many shards; returns its bytes."""
    rng = np.random.default_rng(0)
    shapes = (shape, shape)
    tiles = all_tiles(shapes)
    job = JobFolder(folder)
    names = [[model, layer] for model in ("a", "b") for layer in range(shape.layers)]
    plan = job.write_plan(
        {
            "identity": {"statistics": ["moments"]},
            "shards": count,
            "representations": names,
            "measures": ["lincka"],
            "passes": 1,
            "division": Division((tiles,), False).as_json(),
            "files": {},
            "seconds": 0.0,
        }
    )
    attributes = {
        "models": {}, "settings": dataclasses.asdict(ss.Settings()), "note": "", "device": {},
        "corpus": {"origin": "random rows"}, "created": "", "utterances": 1, "seconds": 1.0,
        "frames": _ROWS,
    }  # fmt: skip
    for k in range(count):
        accumulator = MomentsAccumulator(shapes, _ROWS)
        rows = (shape.layers, 1, _ROWS, shape.neurons)
        hidden = tuple(jnp.asarray(rng.standard_normal(rows, np.float32) + 1) for _ in shapes)
        accumulator.append(hidden, np.arange(_ROWS))
        shard = job.shard(Shard(k + 1, count), plan, 0)
        counts = dataclasses.asdict(ReadCounts(1, 1.0, _ROWS, digests=((f"u{k}", str(k)),)))
        metadata = {"counts": counts}
        name = shard.store(1, PassStatistics({"moments": accumulator.result()}), metadata)
        shard.finish({"passes": [name], "counts": counts, "attributes": attributes})
    return sum(path.stat().st_size for path in folder.rglob("*.npy"))


def main(folder: str) -> None:
    """Merge a folder and print the seconds."""
    started = time.perf_counter()
    ss.merge([folder], progress=False)
    print(f'{{"seconds": {time.perf_counter() - started}}}')


if __name__ == "__main__":
    main(sys.argv[1])
