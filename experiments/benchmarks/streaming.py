"""Memory of one process that reads the same audio once and eight times over."""

import contextlib
import tempfile
import unittest.mock
from collections.abc import Iterator
from pathlib import Path

import jax

import speechsim_jax as ss
from experiments.benchmarks.machine import write_encoders
from speechsim_jax.audio.corpus import read
from speechsim_jax.audio.open_corpus import open_corpus
from speechsim_jax.audio.selection import select
from speechsim_jax.pipeline import accumulators

_SMALL = dict(
    hidden_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=512,
    conv_dim=(64,) * 7,
    num_conv_pos_embeddings=64,
    num_conv_pos_embedding_groups=8,
)


def run(speech: str) -> None:
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
    append = accumulators.MomentsAccumulator.append

    def watched(self, *args):
        append(self, *args)
        self.wait()
        peak[0] = max(peak[0], sum(array.nbytes for array in jax.live_arrays()))

    with unittest.mock.patch.object(accumulators.MomentsAccumulator, "append", watched):
        yield peak
