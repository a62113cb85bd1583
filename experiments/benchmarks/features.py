"""How fast acoustic features are computed: seconds of speech a second, on one core."""

import itertools
import statistics
import time

import numpy as np
import threadpoolctl

from experiments.benchmarks.machine import report, report_machine
from speechsim_jax.audio.corpus import SAMPLE_RATE_HZ, read
from speechsim_jax.audio.features import FEATURES
from speechsim_jax.audio.open_corpus import open_corpus
from speechsim_jax.audio.tracks import Piece

_WHAT = "features"
_UTTERANCES, _FRAME_SECONDS = 20, 0.02


def run(speech: str, repeats: int, small: bool = False) -> None:
    """Compute every feature of some utterances, frames of 20 ms, and pYIN of librosa beside f0.

    Args:
      speech: folder or manifest.
      repeats: of which a figure is the median, one feature after the other.
      small: two utterances.
    """
    import librosa

    report_machine(_WHAT)
    sources = open_corpus(speech).sources
    chosen = itertools.islice(sources, 2 if small else _UTTERANCES)
    pieces = [Piece(s.id, 0.0, read(s).samples) for s in chosen]
    centres = [np.arange(0.0125, len(p.samples) / SAMPLE_RATE_HZ, _FRAME_SECONDS) for p in pieces]
    seconds = sum(len(piece.samples) for piece in pieces) / SAMPLE_RATE_HZ

    def pyin() -> None:
        for piece in pieces[:2]:
            librosa.pyin(piece.samples, fmin=60, fmax=500, sr=SAMPLE_RATE_HZ, hop_length=320)

    of_two = sum(len(piece.samples) for piece in pieces[:2]) / SAMPLE_RATE_HZ
    taken: dict[str, list[float]] = {name: [] for name in (*FEATURES, "pyin of librosa")}
    with threadpoolctl.threadpool_limits(1):
        for turn in range(repeats + 1):
            for name in taken:
                started = time.perf_counter()
                if name in FEATURES:
                    for piece, at in zip(pieces, centres):
                        FEATURES[name].rows(piece, at)
                else:
                    pyin()
                if turn:  # the first compiles and fills caches
                    taken[name].append(time.perf_counter() - started)
    for name, of_name in taken.items():
        length = seconds if name in FEATURES else of_two
        report(_WHAT, name, length / statistics.median(of_name), "x real time")
