"""The attention level: memory by length, time against a loop over stored maps, and a whole run."""

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
from experiments.benchmarks.machine import SMALL, report, report_machine, write_encoders
from experiments.benchmarks.memory import report_run
from speechsim_jax.audio.corpus import read
from speechsim_jax.audio.open_corpus import open_corpus
from speechsim_jax.audio.selection import select
from speechsim_jax.models.architecture import Activations, Outputs
from speechsim_jax.models.encoder import SpeechEncoder, forward
from speechsim_jax.pipeline import attention_inputs
from speechsim_jax.statistics import attention_sums
from speechsim_jax.statistics.attention_accumulator import AttentionAccumulator
from speechsim_jax.statistics.moments import ModelShape

_WHAT = "attention"
_SUMS = ("distance", "divergence", "correlation")
_LENGTHS = (500, 1000, 1750)
_LOOP_PAIRS = 60


def run(speech: str, minutes: float, repeats: int, small: bool = False) -> None:
    """Two encoders: temporaries by length, time against a loop, the whole job."""
    report_machine(_WHAT)
    with tempfile.TemporaryDirectory() as scratch:
        folders = write_encoders(Path(scratch) / "models", **(SMALL if small else {}))
        encoders = [ss.load_encoder(folder) for folder in folders]
        for frames in (20,) if small else _LENGTHS:
            _temporaries(encoders, frames)
        _against_a_loop(encoders, speech, repeats, 3 if small else _LOOP_PAIRS)
        flags = ["--levels=attention", f"--max_minutes={minutes}"]
        times = processes.compare(folders, speech, Path(scratch) / "run", flags)
        report_run(_WHAT, times, minutes)


def _streams(encoders: list[SpeechEncoder]) -> tuple[ModelShape, ...]:
    configs = [encoder.config for encoder in encoders]
    return tuple(ModelShape(c.num_hidden_layers, c.num_attention_heads) for c in configs)


def _projected(
    encoder: SpeechEncoder, acts: Activations, lengths: np.ndarray
) -> attention_inputs.Projected:
    layers = range(1, encoder.config.num_hidden_layers + 1)
    return attention_inputs.projected(acts, layers, lengths)


def _temporaries(encoders: list[SpeechEncoder], frames: int) -> None:
    config = encoders[0].config
    size = config.hop_samples * (frames - 1) + config.window_samples
    samples, samples_lengths = np.zeros((1, size), np.float32), np.array([size], np.int32)
    lengths = np.array([frames], np.int32)
    outputs = Outputs(projections=True)
    sizes, parts = [], []
    for encoder in encoders:
        lowered = forward.lower(
            encoder.parameters, samples, samples_lengths,
            graph=encoder.graph, outputs=outputs, precision="highest",
        )  # fmt: skip
        memory = lowered.compile().memory_analysis()
        assert memory is not None
        sizes.append(memory.temp_size_in_bytes)
        parts.append(_projected(encoder, encoder.apply(samples, samples_lengths, outputs), lengths))

    def update(state, parts, lengths):
        def rows(utterance, queries):
            return attention_inputs.rows_of_projections(parts, utterance, queries)

        return attention_sums.update(state, rows, lengths, frames, _SUMS)

    heads = sum(shape.layers * shape.neurons for shape in _streams(encoders))
    program = jax.jit(update, donate_argnums=0).lower(
        attention_sums.zero(heads), tuple(parts), jnp.asarray(lengths)
    )
    memory = program.compile().memory_analysis()
    assert memory is not None
    for figure, size in (
        ("temporaries of an encoder", max(sizes)),
        ("temporaries of the statistic", memory.temp_size_in_bytes),
        ("queries and keys of both models", sum(x.nbytes for x in jax.tree.leaves(parts))),
        ("all maps, if stored", 4 * heads * frames**2),
    ):
        report(_WHAT, figure, size / 2**20, "MiB", frames=frames)


def _against_a_loop(
    encoders: list[SpeechEncoder], speech: str, repeats: int, loop_pairs: int
) -> None:
    """Nanoseconds per cell and pair of heads, for all sums over an utterance of about 10 s."""
    sources = select(open_corpus(speech), 3.0, 0).sources
    source = min(sources, key=lambda s: abs((s.seconds or 0) - 10))
    wave = read(source).samples
    lengths = np.array([encoders[0].config.frames(len(wave))], np.int32)
    frames = int(lengths[0])
    samples = wave[None], np.array([len(wave)], np.int32)
    attentions = [e.apply(*samples, Outputs(attentions=True)).attentions for e in encoders]
    maps = np.concatenate([np.asarray(a).reshape(-1, frames, frames) for a in attentions])
    acts = [encoder.apply(*samples, Outputs(projections=True)) for encoder in encoders]
    parts = tuple(_projected(e, a, lengths) for e, a in zip(encoders, acts))
    accumulator = AttentionAccumulator(
        _streams(encoders), attention_inputs.rows_of_projections, _SUMS
    )
    everything = list(itertools.combinations_with_replacement(range(len(maps)), 2))
    chosen = np.random.default_rng(0).choice(len(everything), loop_pairs, replace=False)
    accumulator.append(parts, lengths, frames)
    accumulator.wait()
    ours, loop = [], []
    for _ in range(repeats):
        started = time.perf_counter()
        accumulator.append(parts, lengths, frames)
        accumulator.wait()
        ours.append((time.perf_counter() - started) / len(everything) / frames**2 * 1e9)
        started = time.perf_counter()
        for k in chosen:
            plain_similarities(*maps[list(everything[k])])
        loop.append((time.perf_counter() - started) / len(chosen) / frames**2 * 1e9)
    a, b = statistics.median(ours), statistics.median(loop)
    cells = len(everything) * frames**2
    report(_WHAT, "ours, maps included, all pairs", a * cells / 1e9, "s", frames=frames)
    report(_WHAT, "ours, maps included, a cell and pair", a, "ns", pairs=len(everything))
    report(_WHAT, "numpy loop over stored maps, a cell and pair", b, "ns", pairs=loop_pairs)
    report(_WHAT, "loop : ours", b / a, "ratio", frames=frames)


def plain_similarities(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Frobenius, Jensen-Shannon and Pearson of two maps [query, key], in plain numpy."""
    distance = float(np.linalg.norm(a - b))
    m = (a + b) / 2
    divergence = 0.5 * np.sum(a * np.log(a / m)) + 0.5 * np.sum(b * np.log(b / m))
    x, y = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    spread = np.sqrt(np.sum(x * x, 1) * np.sum(y * y, 1))
    return distance, float(divergence), float(np.sum(np.sum(x * y, 1) / spread))
