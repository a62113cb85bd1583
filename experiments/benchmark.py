"""Measure, and print figures; nothing here asserts anything.

    python -m experiments.benchmark --what=compare --speech=FOLDER --minutes=4,30
    python -m experiments.benchmark --what=streaming --speech=FOLDER
    python -m experiments.benchmark --what=scores

compare: the whole job (`experiments.compare`, a process of its own each time) with two base-size
encoders, wav2vec2 and HuBERT layouts with seeded random weights: wall time, audio-seconds per
second and peak memory, for each of --minutes. streaming: in one process, the same audio once and
eight times over: peak of live device bytes and of host memory. scores: the measures alone, on 26
networks of width 768, with the machine's own matrix product beside them.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import speechsim_jax as ss
from experiments import _flags
from speechsim_jax import engine
from speechsim_jax.audio import open_corpus, read
from speechsim_jax.errors import UserError
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.random_weights import random_tensors, save_folder
from speechsim_jax.selection import select

_WHAT = flags.DEFINE_enum("what", "compare", ["compare", "streaming", "scores"], "What to measure.")
_SPEECH = flags.DEFINE_string(
    "speech", os.environ.get("SPEECHSIM_SPEECH"), "Speech to use (default: $SPEECHSIM_SPEECH)."
)
_MINUTES = flags.DEFINE_list("minutes", ["4", "30"], "Minutes of audio for --what=compare.")

_SMALL = dict(
    hidden_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=512,
    conv_dim=(64,) * 7,
    num_conv_pos_embeddings=64,
    num_conv_pos_embedding_groups=8,
)


def write_encoders(folder: Path, **sizes) -> list[Path]:
    """A wav2vec2 and a HuBERT folder with random weights; base size unless told."""
    paths = []
    for seed, family in enumerate(("wav2vec2", "hubert")):
        config = EncoderConfig(family=family, **sizes)
        paths.append(save_folder(folder / f"{family}-base", config, random_tensors(config, seed)))
    return paths


def compare(speech: str, minutes: list[float]) -> None:
    """Wall time, rate and peak resident memory of whole runs."""
    with tempfile.TemporaryDirectory() as scratch:
        models = write_encoders(Path(scratch) / "models")
        for wanted in minutes:
            workdir = Path(scratch) / f"run{wanted}"
            command = [
                sys.executable, "-m", "experiments.compare",
                f"--models={','.join(map(str, models))}", f"--audio={speech}",
                f"--max_minutes={wanted}", f"--workdir={workdir}",
            ]  # fmt: skip
            started = time.monotonic()
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.monotonic() - started
            if status:
                raise UserError(f"the run failed: {' '.join(command)}")
            log = (workdir / "log.jsonl").read_text().splitlines()
            peak = usage.ru_maxrss / 2**20
            print(f"\n{wanted} minutes: {seconds:.0f} s in all, peak RSS {peak:.2f} GiB")
            for line in log:
                print("  " + json.loads(line)["message"])


def streaming(speech: str) -> None:
    """Peaks of live device bytes and of host memory for 1x and 8x the audio, in this process."""
    corpus = select(open_corpus(speech), 1.5, 0)
    once = {source.id: read(source).samples for source in corpus.sources}
    repeated = {f"{k}/{name}": wave for k in range(8) for name, wave in once.items()}
    with tempfile.TemporaryDirectory() as scratch:
        encoders = [ss.load_encoder(p) for p in write_encoders(Path(scratch), **_SMALL)]
        for name, audio in (("warm-up", once), ("1x", once), ("8x", repeated)):
            with device_peak() as peak:
                Path("/proc/self/clear_refs").write_text("5")
                result = ss.compare(encoders, audio, progress=False, buckets=2)
            status = Path("/proc/self/status").read_text()
            host = int(status.split("VmHWM:")[1].split()[0]) / 2**10
            print(
                f"{name:8} {result.attributes['seconds']:7.1f} s of audio: "
                f"live device bytes at most {peak[0]:,}, host peak {host:,.0f} MiB"
            )


@contextlib.contextmanager
def device_peak() -> Iterator[list[int]]:
    """The largest sum of live device arrays after any batch, in a list of one."""
    peak = [0]
    append = engine.MomentsStream.append

    def watched(self, *args):
        append(self, *args)
        self.wait()
        peak[0] = max(peak[0], sum(array.nbytes for array in jax.live_arrays()))

    with unittest.mock.patch.object(engine.MomentsStream, "append", watched):
        yield peak


def scores() -> None:
    """All measures over 26 networks of width 768 whose spectra keep about 600 directions."""
    rng = np.random.default_rng(0)
    rows, width, networks = 6000, 768, 26
    shared = rng.standard_normal((rows, 150)).astype(np.float32)
    data = {}
    for index in range(networks):
        mixed = shared @ rng.standard_normal((150, width)).astype(np.float32)
        noise = rng.standard_normal((rows, width)).astype(np.float32)
        scales = np.linspace(12, 2, width, dtype=np.float32)
        data[f"m{index // 13}/{index % 13}"] = mixed + noise * scales
    product = jax.jit(lambda a: a @ a)
    matrix = jnp.ones((2048, 2048))
    product(matrix).block_until_ready()
    started = time.monotonic()
    product(matrix).block_until_ready()
    peak = 2 * 2048**3 / (time.monotonic() - started) / 1e9
    started = time.monotonic()
    result = ss.compare_activations(data, stats_dtype="float32", progress=True)
    kept = result.dataset["svcca_directions"].values
    print(
        f"{time.monotonic() - started:.1f} s with the statistics; "
        f"directions {kept.min()}-{kept.max()}"
    )
    print(f"sgemm of this machine in the same run: {peak:.0f} GFLOP/s")


def main() -> None:
    """Measure what --what names."""
    if _WHAT.value == "scores":
        scores()
        return
    if not _SPEECH.value:
        raise UserError("--speech (or $SPEECHSIM_SPEECH) must name a folder or manifest of speech")
    if _WHAT.value == "compare":
        compare(_SPEECH.value, [float(minutes) for minutes in _MINUTES.value])
    else:
        streaming(_SPEECH.value)


if __name__ == "__main__":
    _flags.start(main)
