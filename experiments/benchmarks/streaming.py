"""Memory of one process that reads the same audio once and eight times over."""

import contextlib
import tempfile
import unittest.mock
from collections.abc import Iterator
from pathlib import Path

import jax

import speechsim_jax as ss
from experiments.benchmarks.machine import SMALL, report, report_machine, write_encoders
from speechsim_jax.audio.corpus import read
from speechsim_jax.audio.open_corpus import open_corpus
from speechsim_jax.audio.selection import select
from speechsim_jax.pipeline import accumulators

_WHAT = "streaming"
_MINUTES = 1.5
_SIZES = dict(
    hidden_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=512,
    conv_dim=(64,) * 7,
    num_conv_pos_embeddings=64,
    num_conv_pos_embedding_groups=8,
)


def run(speech: str, small: bool = False) -> None:
    """Peaks of live device bytes and of host memory for 1x and 8x the audio, in this process."""
    report_machine(_WHAT)
    corpus = select(open_corpus(speech), _MINUTES / 10 if small else _MINUTES, 0)
    once = {source.id: read(source).samples for source in corpus.sources}
    repeated = {f"{k}/{name}": wave for k in range(8) for name, wave in once.items()}
    with tempfile.TemporaryDirectory() as scratch:
        folders = write_encoders(Path(scratch), **(SMALL if small else _SIZES))
        encoders = [ss.load_encoder(folder) for folder in folders]
        for name, audio in (("warm-up", once), ("1x", once), ("8x", repeated)):
            with device_peak() as peak:
                Path("/proc/self/clear_refs").write_text("5")
                result = ss.compare(encoders, audio, progress=False, buckets=2)
            status = Path("/proc/self/status").read_text()
            host = int(status.split("VmHWM:")[1].split()[0]) / 2**20
            seconds = result.attributes["seconds"]
            report(_WHAT, "live device bytes, peak", peak[0], "bytes", run=name, seconds=seconds)
            report(_WHAT, "host memory, peak", host, "GiB", run=name, seconds=seconds)


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
