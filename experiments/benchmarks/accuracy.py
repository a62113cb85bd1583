"""Errors of the float32 statistics against float64: on difficult rows, and on real speech."""

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import speechsim_jax as ss
from experiments.benchmarks import plain
from experiments.benchmarks.machine import SMALL, report, report_machine, write_encoders
from speechsim_jax._jax_compat import x64
from speechsim_jax.audio.corpus import SAMPLE_RATE_HZ, read
from speechsim_jax.audio.open_corpus import open_corpus
from speechsim_jax.comparison.arrays import Key
from speechsim_jax.measures import MEASURES, MeasureSelection
from speechsim_jax.measures.scoring import score_all
from speechsim_jax.models.architecture import Outputs
from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.moments_accumulator import MomentsAccumulator
from speechsim_jax.statistics.moments_finished import FinishedMoments
from speechsim_jax.statistics.product_precision import MEAN_TO_STD, measure_all

ON_MOMENTS = [measure for measure in MEASURES.values() if measure.statistic == "moments"]
TOLERANCE = 1e-6
"""The rank tolerance of float32 statistics, for both sides."""

_WHAT = "accuracy"
_WIDTHS = (16, 12)
_OUTLIERS = (3, 7)
_FRAMES = 2_000_000


class Speech(NamedTuple):
    """How much real speech: windows of some seconds, and the layers that are compared."""

    seconds: int
    windows: int
    layers: tuple[int, ...]
    sample_stride: int = 4


_FULL = Speech(seconds=10, windows=18, layers=(0, 4, 8, 12))
_SMALL = Speech(seconds=1, windows=5, layers=(0, 2))

Block = tuple[np.ndarray, ...]


def run(speech: str, small: bool = False) -> None:
    """Errors on generated rows for some ratios of mean to std, and on hidden states of speech.

    Also those of each algorithm of products that the device has.
    """
    report_machine(_WHAT)
    for measured in measure_all():
        labels = {"algorithm": measured.algorithm, "mean_to_std": MEAN_TO_STD}
        report(_WHAT, "covariance, products by it", measured.error, "absolute", **labels)
        report(_WHAT, "short products", measured.product_error, "absolute", **labels)
    frames = 20_000 if small else _FRAMES
    ratios, sizes = ((1000,), (256,)) if small else ((0, 1, 10, 100, 1000), (4096, 256))
    for ratio, size in itertools.product(ratios, sizes):
        rows = list(hard_rows(frames, ratio, size))
        single, double = (stream(rows, size, dtype) for dtype in ("float32", "float64"))
        relative = relative_errors(single, double)
        worst = max(relative, key=lambda name: relative[name])
        labels = {"mean_to_std": ratio, "rows_per_update": size, "frames": frames}
        error = covariance_error(single, covariance(double))
        report(_WHAT, "covariance over standard deviations", error, "absolute", **labels)
        report(_WHAT, "worst measure", relative[worst], "relative", measure=worst, **labels)
    with tempfile.TemporaryDirectory() as scratch:
        folders = write_encoders(Path(scratch), **(SMALL if small else {}))
        amount = _SMALL if small else _FULL
        real_speech(hidden_states(folders, speech, amount), amount)


def hard_rows(frames: int, ratio: float | int, size: int, outlier: float = 1e4) -> Iterator[Block]:
    """Blocks of `size` rows of two representations that share eight latent variables.

    Neurons have mean / std = `ratio`, either sign; two of the first are `outlier` times as large as
    the others. Condition numbers of the correlations: 1e5 and 1e4.
    """
    rng = np.random.default_rng(0)
    representations = []
    for width in _WIDTHS:
        mixing, noise = rng.standard_normal((8, width)), np.geomspace(1, 0.005, width)
        mean = ratio * np.sqrt((mixing**2).sum(0) + noise**2) * rng.choice([-1, 1], width)
        scale = np.ones(width)
        representations.append([part.astype(np.float32) for part in (mixing, noise, mean, scale)])
    representations[0][-1][list(_OUTLIERS)] = outlier
    for start in range(0, frames, size):
        rows = min(size, frames - start)
        shared = rng.standard_normal((rows, 8), np.float32)
        yield tuple(
            (shared @ mixing + rng.standard_normal((rows, len(noise)), np.float32) * noise + mean)
            * scale
            for mixing, noise, mean, scale in representations
        )


def stream(blocks: Iterable[Block], size: int, dtype: str) -> FinishedMoments:
    """The statistics of the blocks, one stream a representation, `size` rows an update."""
    statistic = None
    for block in blocks:
        if statistic is None:
            streams = tuple(ModelShape(1, x.shape[1]) for x in block)
            statistic = MomentsAccumulator(streams, size, dtype, rows_dtype="float32")
        with x64(dtype == "float64"):
            hidden = tuple(jnp.asarray(x[None, None]) for x in block)
        statistic.append(hidden, np.arange(len(block[0])))
    assert statistic is not None, "no rows"
    return statistic.result().finish(rank_tolerance=TOLERANCE)


def covariance(moments: FinishedMoments) -> np.ndarray:
    """The covariance of all neurons of all representations."""
    representations = moments.representations
    return (
        np.block([[moments.scatter(x, y) for y in representations] for x in representations])
        / moments.rows
    )


def covariance_error(moments: FinishedMoments, exact: np.ndarray) -> float:
    """The largest error of a covariance, relative to its neurons' standard deviations."""
    std = np.sqrt(np.diagonal(exact))
    return float(np.max(np.abs(covariance(moments) - exact) / np.outer(std, std)))


def relative_errors(moments: FinishedMoments, exact: FinishedMoments) -> dict[str, float]:
    """The largest error of each measure on moments, over pairs of different representations."""
    scores, expected = (
        score_all({"moments": m}, MeasureSelection(tuple(ON_MOMENTS))).matrices
        for m in (moments, exact)
    )
    different = ~np.eye(len(exact.representations), dtype=bool)
    return {
        name: float(np.max(np.abs(scores[name][different] / matrix[different] - 1)))
        for name, matrix in expected.items()
    }


def real_speech(rows: dict[Key, np.ndarray], amount: Speech) -> None:
    """Largest absolute error of every measure on these representations, `[frame, neuron]` each."""
    names = [measure.name for measure in ON_MOMENTS]
    single, double = (
        ss.compare_activations(rows, names, stats_dtype=dtype, rank_tolerance=TOLERANCE)
        for dtype in ("float32", "float64")
    )
    facts, frames = single.dataset, len(next(iter(rows.values())))
    for figure in ("condition", "mean_to_std"):
        value = float(facts[figure].values.max())
        report(_WHAT, f"{figure}, largest", value, "ratio", frames=frames)
    plain_scores = plain.on_moments(list(rows.values()), TOLERANCE)
    for name in names:
        scores = single.matrix(name).values
        error = float(np.abs(scores - double.matrix(name).values).max())
        report(_WHAT, "error against float64 statistics", error, "absolute", measure=name)
        if name in plain_scores:
            error = float(np.nanmax(np.abs(scores - plain_scores[name])))
            report(_WHAT, "error against float64 arrays", error, "absolute", measure=name)
    some = {name: x[:: amount.sample_stride] for name, x in rows.items()}
    names = [measure.name for measure in MEASURES.values() if measure.statistic == "sample"]
    count = len(next(iter(some.values())))
    sampled = ss.compare_activations(some, names, sample_frames=count)
    plain_scores = plain.on_sample(list(some.values()))
    for name in names:
        error = float(np.nanmax(np.abs(sampled.matrix(name).values - plain_scores[name])))
        report(_WHAT, "error against float64 arrays", error, "absolute", measure=name, rows=count)


def hidden_states(folders: Sequence[Path], speech: str, amount: Speech) -> dict[Key, np.ndarray]:
    """Rows of some layers of each encoder, on the first seconds of some utterances."""
    length = amount.seconds * SAMPLE_RATE_HZ
    sources = open_corpus(speech).sources
    sources = (s for s in sources if (s.seconds or amount.seconds) >= amount.seconds)
    waves = (wave for s in sources if len(wave := read(s).samples) >= length)
    windows = [wave[:length] for wave in itertools.islice(waves, amount.windows)]
    rows: dict[Key, list[np.ndarray]] = {}
    for folder in folders:
        encoder = ss.load_encoder(folder)
        for wave in windows:
            lengths = np.array([length], np.int32)
            acts = encoder.apply(wave[None], lengths, Outputs(layers=amount.layers))
            for layer, states in zip(amount.layers, np.asarray(acts.hidden_states)):
                rows.setdefault(f"{encoder.name}/{layer}", []).append(states[0])
    return {name: np.concatenate(parts) for name, parts in rows.items()}
