"""The whole job end to end against the published pipeline: same models, audio and measures.

ours        `experiments.compare --errors=none`, a process of its own, from its start to its end:
            imports, loading, compiling, one pass over the audio, scores, saving, figures; what
            standard errors cost, which the others do not have, says `--what=errors`
published   `stored`: torch, an utterance at a time, all hidden states stored, then measure by
            measure and pair by pair (`published`); imports and loading of models are not counted
its files   the same with hidden states in files, as in the original
moments     the same hidden states, but all measures from moments computed once for each pair

All use as many threads as there are cores, and take turns. "analysis" is the total without forward
passes:

    ours        total - our encoders alone, compiled, on the same batches, decoded beforehand;
                start-up, compiling, reading, saving and figures remain
    others      storing the hidden states, and the measures; reading does not remain

"analysis, core" is ours without start-up, compiling and saving, which the others' does not contain.
"""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import speechsim_jax as ss
from experiments.benchmarks import processes
from experiments.benchmarks.machine import (
    SMALL,
    report,
    report_machine,
    sgemm_rate,
    write_encoders,
)
from experiments.benchmarks.published import MEASURES
from speechsim_jax.audio import batching, selection
from speechsim_jax.audio.open_corpus import open_as
from speechsim_jax.models.architecture import Outputs
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.encoder import SpeechEncoder

_WHAT = "pipeline"
_OTHERS = ("published", "its files", "moments")

Seconds = dict[tuple[str, str], float]
"""By pipeline and part."""


def run(
    speech: str, minutes: Sequence[float], repeats: int, pairs: int, small: bool = False
) -> None:
    """Medians over turns, for each of `minutes`; `pairs` of the others are timed (0: all)."""
    report_machine(_WHAT)
    with tempfile.TemporaryDirectory() as scratch:
        models = write_encoders(Path(scratch) / "models", **(SMALL if small else {}))
        encoders = [ss.load_encoder(model) for model in models]
        for amount in minutes:
            batches = batches_of(speech, amount, encoders[0].config)
            shapes = {batch.samples.shape: batch for batch in batches}
            encoders_alone(encoders, list(shapes.values()))  # compiles
            turns: dict[tuple[str, str], list[float]] = defaultdict(list)
            peaks: dict[str, list[float]] = defaultdict(list)
            for turn in range(repeats):
                workdir = Path(scratch) / f"{amount}-{turn}"
                rate = sgemm_rate()
                arguments = [speech, str(amount), str(pairs), *map(str, models)]
                stored = processes.run_module("experiments.benchmarks.stored", arguments)
                theirs = stored.last_line()
                flags = [f"--max_minutes={amount}", "--errors=none"]
                ours = processes.compare(models, speech, workdir, flags)
                seconds = parts(ours, encoders_alone(encoders, batches), theirs["seconds"])
                for name, value in seconds.items():
                    turns[name].append(value)
                peaks["ours"].append(ours.peak_gib)
                peaks["stored"].append(stored.peak_gib)
                report(_WHAT, "sgemm", rate, "GFLOP/s", minutes=amount, turn=turn)
                for error in errors(workdir, theirs) if turn == 0 else ():
                    report(_WHAT, **error, minutes=amount)
            _report_turns(turns, peaks, amount)


def batches_of(speech: str, minutes: float, config: EncoderConfig) -> list[batching.Batch]:
    """The batches that `compare` reads, decoded."""
    options = ss.Settings()
    corpus = selection.select(open_as(speech, options), minutes, options.seed)
    buckets = batching.plan_buckets(
        [source.seconds for source in corpus.sources if source.seconds],
        hop_samples=config.hop_samples,
        window_samples=config.window_samples,
        count=options.buckets,
        batch_seconds=options.batch_seconds,
        max_seconds=options.max_seconds,
    )
    least = config.window_samples
    return list(batching.batches(corpus, buckets, min_samples=least, on_skip=lambda skipped: None))


def encoders_alone(encoders: Sequence[SpeechEncoder], batches: Sequence[batching.Batch]) -> float:
    """Seconds of the forward passes of all models over all batches."""
    layers = [tuple(range(encoder.config.num_hidden_layers + 1)) for encoder in encoders]
    started = time.perf_counter()
    for batch in batches:
        for encoder, all_layers in zip(encoders, layers):
            acts = encoder.apply(batch.samples, batch.lengths, Outputs(layers=all_layers))
            jax.block_until_ready(acts.hidden_states)
    return time.perf_counter() - started


def parts(ours: processes.Run, alone: float, stored: dict[str, float]) -> Seconds:
    """The seconds of each part of each pipeline; see the docstring of the module."""
    published = stored["storing"] + sum(stored[name] for name in MEASURES)
    analyses = {
        "published": published,
        "its files": published + stored["files"],
        "moments": stored["storing"] + stored["moments"],
    }
    before = stored["reading"] + stored["forward"]
    seconds = {
        ("ours", "end to end"): ours.total,
        ("ours", "forward passes"): alone,
        ("ours", "analysis"): ours.total - alone,
        ("ours", "analysis, core"): ours.reading + ours.scores - ours.compiling - alone,
        ("published", "reading"): stored["reading"],
        ("published", "forward passes"): stored["forward"],
        ("published", "storing"): stored["storing"],
    }
    for part in ("startup", "reading", "scores", "saving", "compiling"):
        seconds["ours", part] = getattr(ours, part)
    for by, analysis in analyses.items():
        seconds |= {(by, "analysis"): analysis, (by, "end to end"): before + analysis}
    return seconds | {("published", name): stored[name] for name in MEASURES}


def errors(workdir: Path, stored: dict[str, Any]) -> list[dict[str, Any]]:
    """The largest differences of our scores from the others', over the pairs that these timed."""
    result = ss.SimilarityResult.load(workdir / "result.nc")
    figures = []
    for by in ("published", "moments"):
        for name in stored[by][0]:
            matrix = result.matrix(name).values
            apart = [
                np.abs([matrix[i, j], matrix[j, i]] - np.array(scores[name])).max()
                for (i, j), scores in zip(stored["pairs"], stored[by])
            ]
            figure = f"largest difference of {name}"
            figures.append({"figure": figure, "value": max(apart), "unit": "absolute", "by": by})
    return figures


def _report_turns(
    turns: dict[tuple[str, str], list[float]], peaks: dict[str, list[float]], minutes: float
) -> None:
    """Medians with the smallest and the largest, and how many times faster ours is."""

    def spread(values: Sequence[float]) -> dict[str, float]:
        low, high = (float(f"{limit:.4g}") for limit in (min(values), max(values)))
        return {"low": low, "high": high, "turns": len(values), "minutes": minutes}

    for (by, part), values in turns.items():
        report(_WHAT, part, statistics.median(values), "s", by=by, **spread(values))
    for by, values in peaks.items():
        report(_WHAT, "peak RSS", statistics.median(values), "GiB", by=by, **spread(values))
    for by in _OTHERS:
        for theirs, ours in (
            ("end to end", "end to end"), ("analysis", "analysis"), ("analysis", "analysis, core"),
        ):  # fmt: skip
            ratios = [a / b for a, b in zip(turns[by, theirs], turns["ours", ours])]
            figure = f"{by} : ours, {ours}"
            report(_WHAT, figure, statistics.median(ratios), "ratio", **spread(ratios))
