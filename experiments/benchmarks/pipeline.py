"""The whole job end to end against the published pipeline: same models, audio and measures.

ours        `experiments.compare`, a process of its own, from its start to its end: imports,
            loading, compiling, one pass over the audio, scores, saving, figures
published   `stored`: torch, an utterance at a time, all hidden states kept, then measure by measure
            and pair by pair (`published`); imports and the loading of models are not counted
its files   the same with hidden states in files, as the original has them
moments     the same hidden states, but all measures from moments made once for each pair

All use as many threads as there are cores, and take turns. "analysis" is what remains of the whole
without forward passes:

    ours        total - our encoders alone, compiled, on the same batches, decoded beforehand;
                start-up, compiling, reading, saving and figures remain
    others      keeping the hidden states, and the measures; reading does not remain

"analysis, core" is ours without start-up, compiling and saving, which others' does not contain.
"""

import json
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
from experiments.benchmarks.machine import say, say_machine, sgemm_rate, write_encoders
from experiments.benchmarks.published import MEASURES
from speechsim_jax.audio import batching, selection
from speechsim_jax.audio.open_corpus import open_corpus
from speechsim_jax.models.architecture import Outputs
from speechsim_jax.models.encoder import SpeechEncoder

_WHAT = "pipeline"
_OTHERS = ("published", "its files", "moments")

Seconds = dict[tuple[str, str], float]
"""By whose they are, and which part."""


def run(speech: str, minutes: Sequence[float], repeats: int, pairs: int) -> None:
    """Medians over turns, for each of `minutes`; of the others so many pairs are timed (0: all)."""
    say_machine(_WHAT)
    with tempfile.TemporaryDirectory() as scratch:
        models = write_encoders(Path(scratch) / "models")
        encoders = [ss.load_encoder(model) for model in models]
        for wanted in minutes:
            batches = batches_of(speech, wanted)
            shapes = {batch.samples.shape: batch for batch in batches}
            encoders_alone(encoders, list(shapes.values()))  # compiles
            turns: dict[tuple[str, str], list[float]] = defaultdict(list)
            peaks: dict[str, list[float]] = defaultdict(list)
            for turn in range(repeats):
                workdir = Path(scratch) / f"{wanted}-{turn}"
                rate = sgemm_rate()
                given = [speech, str(wanted), str(pairs), *map(str, models)]
                stored = processes.python("experiments.benchmarks.stored", given)
                theirs = json.loads(stored.out.splitlines()[-1])
                ours = processes.compare(models, speech, workdir, [f"--max_minutes={wanted}"])
                seconds = parts(ours, encoders_alone(encoders, batches), theirs["seconds"])
                for name, value in seconds.items():
                    turns[name].append(value)
                peaks["ours"].append(ours.peak_gib)
                peaks["stored"].append(stored.peak_gib)
                say(_WHAT, "sgemm", rate, "GFLOP/s", minutes=wanted, turn=turn)
                for error in errors(workdir, theirs) if turn == 0 else ():
                    say(_WHAT, **error, minutes=wanted)
            _say_turns(turns, peaks, wanted)


def batches_of(speech: str, minutes: float) -> list[batching.Batch]:
    """What `compare` reads, decoded."""
    options = ss.Settings()
    corpus = selection.select(open_corpus(speech), minutes, options.seed)
    buckets = batching.plan_buckets(
        [source.seconds for source in corpus.sources if source.seconds],
        count=options.buckets,
        batch_seconds=options.batch_seconds,
        max_seconds=options.max_seconds,
    )
    return list(batching.batches(corpus, buckets, on_skip=lambda skipped: None))


def encoders_alone(encoders: Sequence[SpeechEncoder], batches: Sequence[batching.Batch]) -> float:
    """Seconds of the forward passes of all models over all batches."""
    layers = [tuple(range(encoder.config.num_hidden_layers + 1)) for encoder in encoders]
    started = time.perf_counter()
    for batch in batches:
        for encoder, wanted in zip(encoders, layers):
            acts = encoder.apply(batch.samples, batch.lengths, Outputs(layers=wanted))
            jax.block_until_ready(acts.hidden_states)
    return time.perf_counter() - started


def parts(ours: processes.Run, alone: float, stored: dict[str, float]) -> Seconds:
    """Where everybody's time went; see the module's docstring."""
    published = stored["keeping"] + sum(stored[name] for name in MEASURES)
    analyses = {
        "published": published,
        "its files": published + stored["files"],
        "moments": stored["keeping"] + stored["moments"],
    }
    before = stored["reading"] + stored["forward"]
    found = {
        ("ours", "end to end"): ours.total,
        ("ours", "forward passes"): alone,
        ("ours", "analysis"): ours.total - alone,
        ("ours", "analysis, core"): ours.reading + ours.scores - ours.compiling - alone,
        ("published", "reading"): stored["reading"],
        ("published", "forward passes"): stored["forward"],
        ("published", "keeping"): stored["keeping"],
    }
    for part in ("startup", "reading", "scores", "saving", "compiling"):
        found["ours", part] = getattr(ours, part)
    for by, seconds in analyses.items():
        found |= {(by, "analysis"): seconds, (by, "end to end"): before + seconds}
    return found | {("published", name): stored[name] for name in MEASURES}


def errors(workdir: Path, stored: dict[str, Any]) -> list[dict[str, Any]]:
    """The largest differences of our scores from the others', over the pairs that these timed."""
    result = ss.SimilarityResult.load(workdir / "result.nc")
    found = []
    for by in ("published", "moments"):
        for name in stored[by][0]:
            matrix = result.matrix(name).values
            apart = [
                np.abs([matrix[i, j], matrix[j, i]] - np.array(scores[name])).max()
                for (i, j), scores in zip(stored["pairs"], stored[by])
            ]
            figure = f"largest difference of {name}"
            found.append({"figure": figure, "value": max(apart), "unit": "absolute", "by": by})
    return found


def _say_turns(
    turns: dict[tuple[str, str], list[float]], peaks: dict[str, list[float]], minutes: float
) -> None:
    """Medians with the smallest and the largest, and how many times faster ours is."""

    def spread(values: Sequence[float]) -> dict[str, float]:
        low, high = (float(f"{limit:.4g}") for limit in (min(values), max(values)))
        return {"low": low, "high": high, "turns": len(values), "minutes": minutes}

    for (by, part), values in turns.items():
        say(_WHAT, part, statistics.median(values), "s", by=by, **spread(values))
    for by, values in peaks.items():
        say(_WHAT, "peak RSS", statistics.median(values), "GiB", by=by, **spread(values))
    for by in _OTHERS:
        for theirs, ours in (
            ("end to end", "end to end"), ("analysis", "analysis"), ("analysis", "analysis, core"),
        ):  # fmt: skip
            ratios = [a / b for a, b in zip(turns[by, theirs], turns["ours", ours])]
            figure = f"{by} : ours, {ours}"
            say(_WHAT, figure, statistics.median(ratios), "ratio", **spread(ratios))
