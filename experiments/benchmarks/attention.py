"""The attention level: a whole run over real speech, a plain loop over stored maps, and memory."""

import itertools
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import speechsim_jax as ss
from experiments.benchmarks import processes
from experiments.benchmarks.machine import write_encoders
from experiments.benchmarks.memory import say_run
from speechsim_jax.audio.corpus import read
from speechsim_jax.audio.open_corpus import open_corpus
from speechsim_jax.audio.selection import select
from speechsim_jax.models.architecture import Outputs
from speechsim_jax.models.encoder import SpeechEncoder, forward
from speechsim_jax.pipeline import attention_inputs
from speechsim_jax.statistics import attention_sums
from speechsim_jax.statistics.attention_accumulator import AttentionAccumulator
from speechsim_jax.statistics.moments import ModelShape

_WANTED = ("distance", "divergence", "correlation")
_LENGTHS = (500, 1000, 1750)
_LOOP_PAIRS = 60


def run(speech: str, minutes: float, repeats: int) -> None:
    """Two base-size encoders: temporaries by length, time against a loop, the whole job."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = write_encoders(Path(scratch) / "models")
        encoders = [ss.load_encoder(folder) for folder in folders]
        for frames in _LENGTHS:
            _temporaries(encoders, frames)
        _against_a_loop(encoders, speech, repeats)
        flags = ["--levels=attention", f"--max_minutes={minutes}"]
        found = processes.compare(folders, speech, Path(scratch) / "run", flags)
        say_run("attention", found, minutes)


def _temporaries(encoders: list[SpeechEncoder], frames: int) -> None:
    samples = jax.ShapeDtypeStruct((1, 320 * frames + 80), np.float32)
    lengths = jax.ShapeDtypeStruct((1,), np.int32)
    wanted = Outputs(projections=True)
    sizes, parts = [], []
    for encoder in encoders:
        lowered = forward.lower(
            encoder.parameters, samples, lengths,
            graph=encoder.graph, outputs=wanted, precision="highest",
        )  # fmt: skip
        memory = lowered.compile().memory_analysis()
        assert memory is not None
        sizes.append(memory.temp_size_in_bytes)
        acts = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), lowered.out_info)
        parts.append(attention_inputs.projected(acts, range(1, 13), np.array([frames], np.int32)))

    def update(state, parts, lengths):
        def rows(utterance, queries):
            return attention_inputs.rows_of_projections(parts, utterance, queries)

        return attention_sums.update(state, rows, lengths, frames, _WANTED)

    program = jax.jit(update, donate_argnums=0).lower(
        attention_sums.zero(288), tuple(parts), jnp.array([frames], jnp.int32)
    )
    memory = program.compile().memory_analysis()
    assert memory is not None
    print(
        f"T = {frames}: temporaries of an encoder {max(sizes) / 2**20:.0f} MiB, "
        f"of the statistic {memory.temp_size_in_bytes / 2**20:.0f} MiB; queries and keys of both "
        f"models {sum(x.nbytes for x in jax.tree.leaves(parts)) / 2**20:.0f} MiB; "
        f"all maps whole would be {288 * frames**2 * 4 / 2**20:,.0f} MiB"
    )


def _against_a_loop(encoders: list[SpeechEncoder], speech: str, repeats: int) -> None:
    """Nanoseconds a cell and pair of heads, all three measures, for an utterance of 10 s or so."""
    sources = select(open_corpus(speech), 3.0, 0).sources
    source = min(sources, key=lambda s: abs((s.seconds or 0) - 10))
    wave = read(source).samples
    lengths = np.array([encoders[0].config.frames(len(wave))], np.int32)
    frames = int(lengths[0])
    samples = wave[None], np.array([len(wave)], np.int32)
    wholes = [np.asarray(e.apply(*samples, Outputs(attentions=True)).attentions) for e in encoders]
    maps = np.concatenate([whole.reshape(-1, frames, frames) for whole in wholes])
    acts = [encoder.apply(*samples, Outputs(projections=True)) for encoder in encoders]
    parts = tuple(attention_inputs.projected(a, range(1, 13), lengths) for a in acts)
    stream = AttentionAccumulator(
        (ModelShape(12, 12),) * 2, attention_inputs.rows_of_projections, _WANTED
    )
    everything = list(itertools.combinations_with_replacement(range(len(maps)), 2))
    chosen = np.random.default_rng(0).choice(len(everything), _LOOP_PAIRS, replace=False)
    stream.append(parts, lengths, frames)
    stream.wait()
    ours, loop = [], []
    for _ in range(repeats):
        started = time.perf_counter()
        stream.append(parts, lengths, frames)
        stream.wait()
        ours.append((time.perf_counter() - started) / len(everything) / frames**2 * 1e9)
        started = time.perf_counter()
        for k in chosen:
            plain_similarities(*maps[list(everything[k])])
        loop.append((time.perf_counter() - started) / len(chosen) / frames**2 * 1e9)
    a, b = statistics.median(ours), statistics.median(loop)
    print(
        f"{frames} frames, {len(everything)} head pairs: ours {a:.2f} ns a cell and pair, making "
        f"maps included ({a * len(everything) * frames**2 / 1e9:.1f} s); a numpy loop over stored "
        f"maps {b:.1f} ns ({_LOOP_PAIRS} pairs timed); ratio {b / a:.1f}"
    )


def plain_similarities(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Frobenius, Jensen-Shannon and Pearson of two maps [query, key], as one would write them."""
    distance = float(np.linalg.norm(a - b))
    m = (a + b) / 2
    divergence = 0.5 * np.sum(a * np.log(a / m)) + 0.5 * np.sum(b * np.log(b / m))
    x, y = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    spread = np.sqrt(np.sum(x * x, 1) * np.sum(y * y, 1))
    return distance, float(divergence), float(np.sum(np.sum(x * y, 1) / spread))
