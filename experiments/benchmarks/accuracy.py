"""How far the float32 statistics are from float64: on rows made to be hard, and on real speech."""

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import speechsim_jax as ss
from experiments.benchmarks import definitions
from experiments.benchmarks.machine import write_encoders
from speechsim_jax._jax_compat import x64
from speechsim_jax.audio.corpus import read
from speechsim_jax.audio.open_corpus import open_corpus
from speechsim_jax.comparison.activations import Key
from speechsim_jax.measures import MEASURES, MeasureSelection
from speechsim_jax.measures.scoring import score_all
from speechsim_jax.models.architecture import Outputs
from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.moments_accumulator import MomentsAccumulator
from speechsim_jax.statistics.moments_finished import FinishedMoments

ON_MOMENTS = [measure for measure in MEASURES.values() if measure.statistic == "moments"]
TOLERANCE = 1e-6
"""The rank tolerance of float32 statistics, for both sides."""

_WIDTHS = (16, 12)
_OUTLIERS = (3, 7)
_FRAMES = 2_000_000
_SECONDS, _WINDOWS = 10, 18
_LAYERS = (0, 4, 8, 12)
_STRIDE = 4

Block = tuple[np.ndarray, ...]


def run(speech: str) -> None:
    """Both tables."""
    print(
        f"{_FRAMES:,} frames of two representations; neurons {_OUTLIERS} of the first 10,000 times larger"
    )
    print("mean / std  rows per update  covariance  measures (the worst)")
    for ratio, size in itertools.product((0, 1, 10, 100, 1000), (4096, 256)):
        rows = list(hard_rows(_FRAMES, ratio, size))
        found, exact = (stream(rows, size, dtype) for dtype in ("float32", "float64"))
        relative = relative_errors(found, exact)
        worst = max(relative, key=lambda name: relative[name])
        error = covariance_error(found, covariance(exact))
        print(f"{ratio:10} {size:16} {error:11.1e}  {relative[worst]:.1e} {worst}", flush=True)
    real_speech(speech)


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
    """Of all neurons of all representations."""
    representations = moments.representations
    return (
        np.block([[moments.scatter(x, y) for y in representations] for x in representations])
        / moments.rows
    )


def covariance_error(found: FinishedMoments, exact: np.ndarray) -> float:
    """The largest error of a covariance, relative to its neurons' standard deviations."""
    std = np.sqrt(np.diagonal(exact))
    return float(np.max(np.abs(covariance(found) - exact) / np.outer(std, std)))


def relative_errors(found: FinishedMoments, exact: FinishedMoments) -> dict[str, float]:
    """Of every measure on moments, the largest over pairs of different representations."""
    scores, expected = (
        score_all({"moments": m}, MeasureSelection(tuple(ON_MOMENTS))).matrices
        for m in (found, exact)
    )
    different = ~np.eye(len(exact.representations), dtype=bool)
    return {
        name: float(np.max(np.abs(scores[name][different] / matrix[different] - 1)))
        for name, matrix in expected.items()
    }


def real_speech(speech: str) -> None:
    """Largest absolute error of every measure on hidden states of two base-size random encoders."""
    with tempfile.TemporaryDirectory() as scratch:
        rows = hidden_states(write_encoders(Path(scratch)), speech)
    names = [measure.name for measure in ON_MOMENTS]
    single, double = (
        ss.compare_activations(rows, names, stats_dtype=dtype, rank_tolerance=TOLERANCE)
        for dtype in ("float32", "float64")
    )
    whole = definitions.on_moments(list(rows.values()), TOLERANCE)
    facts = single.dataset
    print(f"\n{_WINDOWS * _SECONDS / 60} minutes of speech, {single.attributes['frames']} frames")
    print(f"representations {', '.join(map(str, rows))}: rank {facts['rank'].values.tolist()}")
    print(f"condition up to {facts['condition'].values.max():.0f}, mean / std up to "
          f"{facts['mean_to_std'].values.max():.1f}")  # fmt: skip
    print("largest absolute error of float32 statistics against")
    print(f"{'measure':20} float64 statistics  whole float64 arrays")
    for name in names:
        found = single.matrix(name).values
        errors = [np.abs(found - double.matrix(name).values).max()]
        if name in whole:
            errors.append(np.nanmax(np.abs(found - whole[name])))
        print(f"{name:20} " + "  ".join(f"{error:18.1e}" for error in errors))
    some = {name: x[::_STRIDE] for name, x in rows.items()}
    names = [measure.name for measure in MEASURES.values() if measure.statistic == "sample"]
    kept = len(next(iter(some.values())))
    sampled = ss.compare_activations(some, names, sample_frames=kept)
    whole = definitions.on_sample(list(some.values()))
    print(f"every {_STRIDE}th frame ({kept}): largest absolute error against whole float64 arrays")
    for name in names:
        error = np.nanmax(np.abs(sampled.matrix(name).values - whole[name]))
        print(f"{name:20} {error:18.1e}")


def hidden_states(folders: Sequence[Path], speech: str) -> dict[Key, np.ndarray]:
    """Some layers of each encoder on the first seconds of some utterances, representation -> rows."""
    length = _SECONDS * 16_000
    sources = (s for s in open_corpus(speech).sources if (s.seconds or _SECONDS) >= _SECONDS)
    waves = (wave for s in sources if len(wave := read(s).samples) >= length)
    windows = [wave[:length] for wave in itertools.islice(waves, _WINDOWS)]
    rows: dict[Key, list[np.ndarray]] = {}
    for folder in folders:
        encoder = ss.load_encoder(folder)
        for wave in windows:
            lengths = np.array([length], np.int32)
            acts = encoder.apply(wave[None], lengths, Outputs(layers=_LAYERS))
            for layer, states in zip(_LAYERS, np.asarray(acts.hidden_states)):
                rows.setdefault(f"{encoder.name}/{layer}", []).append(states[0])
    return {name: np.concatenate(parts) for name, parts in rows.items()}
