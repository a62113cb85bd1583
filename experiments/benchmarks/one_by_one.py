"""Utterances of different lengths, one call for each: the port and torch transformers, in turns.

Each runs in a process of its own, so that the first pass over the utterances has nothing compiled;
a cache of compiled programs on disk is not used. The second pass follows in the same process.

    python -m experiments.benchmarks.one_by_one MODEL WAVEFORMS port

is such a process, of a folder, an .npz file, and `port` or `torch`; it prints seconds of each pass.
"""

import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32

import speechsim_jax as ss
from experiments.benchmarks.machine import SMALL, cores, report, report_machine
from experiments.benchmarks.processes import run_module
from speechsim_jax.audio.corpus import SAMPLE_RATE_HZ, read
from speechsim_jax.audio.open_corpus import open_corpus, with_durations
from speechsim_jax.errors import UserError
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.models.save import save_folder

_WHAT = "one by one"
_UTTERANCES, _SECONDS = 20, (2, 12)
_PASSES = ("first", "second")
_LENGTHS, _LENGTHS_SECONDS = 1000, (0.1, 30)


def run(speech: str, repeats: int, small: bool = False) -> None:
    """Encode 20 utterances of 2 to 12 s twice, and count the programs of 1,000 lengths.

    Args:
      speech: folder or manifest.
      repeats: turns, of which figures are the median.
      small: a tiny encoder, and fewer and shorter utterances and lengths.
    """
    report_machine(_WHAT)
    config = Wav2Vec2Config(family="wav2vec2", **(SMALL if small else {}))
    seconds = np.array([2, 1]) if small else np.linspace(*_SECONDS, _UTTERANCES)
    times: dict[str, list[dict[str, float]]] = {"port": [], "torch": []}
    with tempfile.TemporaryDirectory() as scratch:
        waveforms = Path(scratch, "waveforms.npz")
        np.savez(waveforms, *utterances(speech, np.random.default_rng(0).permutation(seconds)))
        folder = save_folder(Path(scratch, "model"), config, random_tensors(config, 0))
        for _ in range(repeats):
            for name, of_name in times.items():
                arguments = [str(folder), str(waveforms), name]
                environment = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
                done = run_module("experiments.benchmarks.one_by_one", arguments, **environment)
                of_name.append(done.last_line())
    for which in _PASSES:
        for name, of_name in times.items():
            median = statistics.median(one[which] for one in of_name)
            report(_WHAT, name, median, "s", **{"pass": which})
        ratios = [a[which] / b[which] for a, b in zip(times["port"], times["torch"], strict=True)]
        report(_WHAT, "port : torch", statistics.median(ratios), "ratio", **{"pass": which})
    compiling = statistics.median(one["compiling"] for one in times["port"])
    report(_WHAT, "port, compiling", compiling, "s", **{"pass": _PASSES[0]})
    count = int(times["port"][0]["programs"])
    report(_WHAT, "programs", count, "programs", lengths=len(seconds))
    lengths = np.linspace(*_LENGTHS_SECONDS, 10 if small else _LENGTHS) * SAMPLE_RATE_HZ
    report(_WHAT, "programs", programs(lengths), "programs", lengths=len(lengths))


def utterances(speech: str, seconds: np.ndarray) -> list[Float32[np.ndarray, " _sample"]]:
    """The beginnings of the first utterances that are as long; of each one, one length.

    Args:
      speech: folder or manifest.
      seconds: how long.

    Raises:
      UserError: too few are that long.
    """
    left = list(with_durations(open_corpus(speech)).sources)
    found = []
    for length in seconds:
        source = next((one for one in left if (one.seconds or 0.0) >= length), None)
        if source is None:
            raise UserError(f"{speech}: too few utterances of {length:.1f} s")
        left.remove(source)
        found.append(read(source, 1).samples[: round(length * SAMPLE_RATE_HZ)])
    return found


def programs(lengths: np.ndarray) -> int:
    """How many programs a tiny encoder compiles for waveforms of these lengths, in samples."""
    config = Wav2Vec2Config(family="wav2vec2", **SMALL)
    with tempfile.TemporaryDirectory() as scratch:
        encoder = ss.load_encoder(save_folder(scratch, config, random_tensors(config, 0)))
    with compilations() as seconds:
        for samples in lengths:
            encoder([np.zeros(int(samples), np.float32)])
    return len(seconds)


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
    """The seconds that each compilation by XLA takes within the context."""
    seconds: list[float] = []
    counts = True

    def on_duration(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if counts and event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration_secs)

    # It stays: jax 0.7 has no public way to take a listener off.
    jax.monitoring.register_event_duration_secs_listener(on_duration)
    try:
        yield seconds
    finally:
        counts = False


def _port(folder: str) -> Callable[[np.ndarray], object]:
    encoder = ss.load_encoder(folder)
    return lambda waveform: jax.block_until_ready(encoder([waveform]))


def _torch(folder: str) -> Callable[[np.ndarray], object]:
    import torch
    from transformers import AutoModel

    torch.set_num_threads(cores())
    model = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()

    def encode(waveform: np.ndarray) -> object:
        with torch.inference_mode():
            return model(torch.from_numpy(waveform)[None], output_hidden_states=True)

    return encode


def main() -> None:
    """Time the passes of one of the two."""
    folder, waveforms, name = sys.argv[1:]
    with np.load(waveforms) as arrays:
        waves = [arrays[key] for key in arrays.files]
    encode = {"port": _port, "torch": _torch}[name](folder)
    found: dict[str, float] = {}
    with compilations() as seconds:
        for which in _PASSES:
            started = time.perf_counter()
            for wave in waves:
                encode(wave)
            found[which] = time.perf_counter() - started
    print(json.dumps(found | {"programs": len(seconds), "compiling": sum(seconds)}))


if __name__ == "__main__":
    main()
