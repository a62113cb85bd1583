"""How fast an encoder is that torch runs, against the port of the same weights, in turns."""

import dataclasses
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

import speechsim_jax as ss
from experiments.benchmarks.machine import SMALL, report, report_machine
from speechsim_jax.audio.corpus import log_skipped
from speechsim_jax.audio.open_corpus import open_corpus, with_durations
from speechsim_jax.models import torch_models
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.models.external import Encoder
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.models.save import save_folder
from speechsim_jax.pipeline.encode_corpus import encode_corpus

_WHAT = "doors"


def run(speech: str, minutes: float, repeats: int, small: bool = False) -> None:
    """Encode the first minutes of speech with a base-size model of random weights.

    Args:
      speech: folder or manifest.
      minutes: of audio, as headers state it.
      repeats: turns, of which figures are the median.
      small: a tiny encoder.
    """
    report_machine(_WHAT)
    corpus = with_durations(open_corpus(speech))
    ends = np.cumsum([source.seconds or 0.0 for source in corpus.sources])
    count = 1 + int(np.searchsorted(ends, 60 * minutes))
    corpus = dataclasses.replace(corpus, sources=corpus.sources[:count])
    seconds = float(ends[min(count, len(ends)) - 1])
    config = Wav2Vec2Config(family="wav2vec2", **(SMALL if small else {}))

    def encode(encoder: Encoder) -> None:
        for _ in encode_corpus(encoder, corpus, on_skip=log_skipped):
            pass

    with tempfile.TemporaryDirectory() as scratch:
        folder = save_folder(Path(scratch), config, random_tensors(config, 0))
        encoders = {"port": ss.load_encoder(folder), "torch": torch_models.load(str(folder))}
        times: dict[str, list[float]] = {name: [] for name in encoders}
        for turn, (name, encoder) in itertools.product(range(repeats + 1), encoders.items()):
            started = time.perf_counter()
            encode(encoder)
            if turn:  # the first compiles
                times[name].append(time.perf_counter() - started)
    for name, of_name in times.items():
        report(_WHAT, name, seconds / statistics.median(of_name), "x real time")
    ratios = [torch / port for torch, port in zip(times["torch"], times["port"])]
    report(_WHAT, "torch : port", statistics.median(ratios), "ratio")
