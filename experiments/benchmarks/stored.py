"""The published pipeline, and the same with moments, as a process: `pipeline` runs it.

    python -m experiments.benchmarks.stored SPEECH MINUTES PAIRS FOLDER...

prints a line of JSON. Each utterance goes through each torch model alone, and all hidden states are
stored in memory; then every measure reads them (`published`). The original also computes attention
maps; here they are left out, so that torch can use its faster attention.

All representations are stored, but measures are timed on PAIRS pairs (0: all) and the
representations in them, and scaled up. Pairs are drawn by a seed, those within a model and between
models in proportion.

"files" is the time that the original spends on its files: every representation is written once,
read by each measure, and again for each pair by maxcorr and pwcca.
"""

import itertools
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.machine import cores
from experiments.benchmarks.plain import Scores
from experiments.benchmarks.published import FROM_MOMENTS, MEASURES, Measure, Representation
from speechsim_jax.audio.corpus import read
from speechsim_jax.audio.open_corpus import open_corpus
from speechsim_jax.audio.selection import select

Pairs = list[tuple[int, int]]


def main(speech: str, minutes: str, count: str, *folders: str) -> None:
    """Print the seconds of each part, and the scores of the pairs that were timed."""
    import torch

    torch.set_num_threads(cores())
    with torch.inference_mode():
        started = time.perf_counter()
        sources = select(open_corpus(speech), float(minutes), 0).sources
        waves = [read(source).samples for source in sources]
        seconds = {"reading": time.perf_counter() - started}
        representations, models = [], []
        for model, folder in enumerate(folders):
            layers, spent = hidden_states(Path(folder), waves)
            representations += layers
            models += [model] * len(layers)
            seconds |= {name: seconds.get(name, 0) + value for name, value in spent.items()}
        pairs = sample_of_pairs(models, int(count))
        scores: dict[str, dict[tuple[int, int], Scores]] = {}
        for name, measure in (MEASURES | {"moments": FROM_MOMENTS}).items():
            seconds[name], scores[name] = timed(measure, representations, pairs)
        seconds["files"] = through_files(representations)
    published = [
        {k: v for name in MEASURES for k, v in scores[name][pair].items()} for pair in pairs
    ]
    moments = [scores["moments"][pair] for pair in pairs]
    report = {
        "seconds": seconds,
        "pairs": pairs,
        "frames": len(representations[0]),
        "representations": len(representations),
        "published": published,
        "moments": moments,
    }
    print(json.dumps(report))


def hidden_states(
    folder: Path, waves: Sequence[np.ndarray]
) -> tuple[list[Representation], dict[str, float]]:
    """All hidden states of a model, and the seconds of its forward passes and of storing them."""
    import torch
    from transformers import AutoFeatureExtractor, AutoModel

    extractor = AutoFeatureExtractor.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()

    def forward(wave: np.ndarray) -> tuple[Representation, ...]:
        inputs: Any = extractor(wave, sampling_rate=16_000, return_tensors="pt")
        return model(inputs["input_values"], output_hidden_states=True).hidden_states

    forward(waves[0])  # not timed: the first pass allocates memory for the others
    spent = {"forward": 0.0, "storing": 0.0}
    stored: dict[int, list[Representation]] = defaultdict(list)
    for wave in waves:
        started = time.perf_counter()
        states = forward(wave)
        spent["forward"] += time.perf_counter() - started
        for layer, state in enumerate(states):
            stored[layer].append(state[0])
    started = time.perf_counter()
    representations = [torch.cat(stored.pop(layer)) for layer in sorted(stored)]
    spent["storing"] += time.perf_counter() - started
    return representations, spent


def sample_of_pairs(models: Sequence[int], count: int, seed: int = 0) -> Pairs:
    """Pairs (i, j), i < j, of representations.

    Args:
        models: The model of each representation.
        count: How many pairs; 0 for all.
        seed: Of the choice.
    """
    everything = list(itertools.combinations(range(len(models)), 2))
    if not 0 < count < len(everything):
        return everything
    within = [(i, j) for i, j in everything if models[i] == models[j]]
    between = [(i, j) for i, j in everything if models[i] != models[j]]
    share = round(count * len(within) / len(everything))
    rng = np.random.default_rng(seed)
    drawn = [
        kind[k]
        for kind, size in ((within, share), (between, count - share))
        for k in rng.choice(len(kind), size, replace=False)
    ]
    return sorted(drawn)


def timed(
    measure: Measure, representations: Sequence[Representation], pairs: Pairs
) -> tuple[float, dict[tuple[int, int], Scores]]:
    """The seconds that all representations and pairs would take, and the scores of `pairs`."""
    chosen = sorted(set(itertools.chain.from_iterable(pairs)))
    started = time.perf_counter()
    of = {i: measure.of(representations[i]) for i in chosen}
    middle = time.perf_counter()
    scores = {
        (i, j): measure.pair(representations[i], representations[j], of[i], of[j]) for i, j in pairs
    }
    ended = time.perf_counter()
    everything = len(representations) * (len(representations) - 1) / 2
    seconds = (middle - started) * len(representations) / len(chosen)
    return seconds + (ended - middle) * everything / len(pairs), scores


def through_files(representations: Sequence[Representation]) -> float:
    """Seconds to write all representations, and to read them as often as the original does."""
    import torch

    some = representations[:: max(1, len(representations) // 4)]
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch) / f"{i}.npz" for i in range(len(some))]
        started = time.perf_counter()
        for path, representation in zip(paths, some):
            np.savez(path, data=representation.numpy())
        middle = time.perf_counter()
        for path in paths:
            torch.tensor(np.load(path)["data"])
        ended = time.perf_counter()
    count = len(representations)
    reads = len(MEASURES) * count + 2 * 2 * count * (count - 1) / 2
    return ((middle - started) * count + (ended - middle) * reads) / len(some)


if __name__ == "__main__":
    main(*sys.argv[1:])
