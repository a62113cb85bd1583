"""Hidden units: the targets of masked prediction, by k-means (Hsu et al. 2021, section II-A).

Iteration 1 clusters 39 MFCCs, iteration 2 the hidden states of an inner layer of the model that
iteration 1 gave. Both are rows [frame, number], one for each frame of the encoder, and those of an
utterance do not depend on other utterances.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import librosa
import numpy as np
from jaxtyping import Float, Float32, Int, Int32
from sklearn.cluster import MiniBatchKMeans

from speechsim_jax.audio.batching import Batch
from speechsim_jax.audio.corpus import SAMPLE_RATE_HZ
from speechsim_jax.errors import UserError
from speechsim_jax.models.architecture import Outputs
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.encoder import SpeechEncoder

_COEFFICIENTS, _MELS = 13, 40
# 25 ms every 10 ms: every second window is exactly what a frame of the encoder hears.
_WINDOW_SAMPLES, _HOP_SAMPLES = 400, 160
_DELTA_FRAMES = 5
# Kaldi's lifter, 1 + Q/2 sin(pi n / Q): without it energy and tilt make up most of a distance.
_LIFTER = 1 + 11 * np.sin(np.pi * np.arange(_COEFFICIENTS) / 22)

Rows = Float32[np.ndarray, "row number"]


def mfcc(
    samples: Float[np.ndarray, " sample"], config: EncoderConfig, centred: bool = True
) -> Float32[np.ndarray, "frame 39"]:
    """13 cepstral coefficients, their deltas and the deltas' deltas (+-2 windows), by frame.

    By librosa: 40 mel bands (HTK's scale), log power, DCT, kaldi's lifter; fairseq takes kaldi's,
    with dither and pre-emphasis too. `centred` takes the utterance's mean out of each coefficient,
    and with it much of speaker and channel; the published units lack that, and say less about
    phones (see BUILD_NOTES).

    Raises UserError for an encoder whose frames are not 25 ms every 20 ms.
    """
    if (config.window_samples, config.hop_samples) != (_WINDOW_SAMPLES, 2 * _HOP_SAMPLES):
        raise UserError(
            f"MFCC units need frames of 400 samples every 320, the encoder has "
            f"{config.window_samples} every {config.hop_samples}; take a layer of an encoder"
        )
    mel = librosa.feature.melspectrogram(
        y=np.asarray(samples, np.float32),
        sr=SAMPLE_RATE_HZ,
        n_fft=_WINDOW_SAMPLES,
        hop_length=_HOP_SAMPLES,
        center=False,
        n_mels=_MELS,
        htk=True,
    )
    # Without a floor relative to the loudest window, which would tie windows together.
    static = librosa.feature.mfcc(S=librosa.power_to_db(mel, top_db=None), n_mfcc=_COEFFICIENTS)
    static *= _LIFTER[:, None]
    delta = _slope(static)
    rows = np.concatenate([static, delta, _slope(delta)]).T
    frames = rows[::2][: config.frames(len(samples))].astype(np.float32)
    return frames - frames.mean(0) if centred else frames


def _slope(x: Float[np.ndarray, "number window"]) -> Float[np.ndarray, "number window"]:
    """The slope of the line through each window and two on either side (ends repeated)."""
    return librosa.feature.delta(x, width=_DELTA_FRAMES, mode="nearest")


def hidden_rows(
    encoder: SpeechEncoder, batches: Iterable[Batch], layer: int
) -> Iterator[tuple[str, Rows]]:
    """The id of each utterance and the hidden states of a layer in its frames.

    Raises UserError for a layer that the encoder lacks.
    """
    for batch in batches:
        found = encoder.apply(batch.samples, batch.lengths, Outputs(layers=(layer,)))
        states, frames = np.asarray(found.hidden_states[0]), encoder.config.frames(batch.lengths)
        for number, utterance in enumerate(batch.ids):
            yield utterance, states[number, : frames[number]]


@dataclasses.dataclass(frozen=True, eq=False)
class Clusters:
    """The centres of the units."""

    centres: Float32[np.ndarray, "unit number"]

    def label(self, rows: Rows) -> Int32[np.ndarray, " row"]:
        """The unit of each row: the nearest centre."""
        # |x - c|^2 less |x|^2, which is the same for all units; float64, as means can be large.
        centres = self.centres.astype(np.float64)
        distance = np.square(centres).sum(1) - 2 * rows.astype(np.float64) @ centres.T
        return distance.argmin(1).astype(np.int32)

    def counts(self, labels: Iterable[Int[np.ndarray, " _row"]]) -> Int[np.ndarray, " unit"]:
        """How often each unit occurs."""
        size = len(self.centres)
        return sum((np.bincount(rows, minlength=size) for rows in labels), np.zeros(size, int))

    def save(self, path: str | Path) -> None:
        """Write them as .npy."""
        np.save(path, self.centres)

    @classmethod
    def load(cls, path: str | Path) -> "Clusters":
        """Read them back. Raises UserError if the file cannot be read as centres."""
        try:
            centres = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: the units cannot be read ({error})") from error
        if centres.ndim != 2 or centres.dtype != np.float32:
            raise UserError(
                f"{path}: holds {centres.dtype} {list(centres.shape)}; expected the centres of "
                "units, float32 [unit, number]"
            )
        return cls(centres)


def cluster(rows: Rows, units: int, seed: int) -> Clusters:
    """Mini-batch k-means of the rows, as fairseq's simple_kmeans sets it.

    k-means++, batches of 10 000 rows, at most 100 passes, no reassignment, the best of five starts
    (twenty in fairseq). Raises UserError for fewer rows than units.
    """
    if len(rows) < units:
        raise UserError(f"{units} units need as many frames, but there are {len(rows)}")
    options: dict[str, Any] = dict(
        init="k-means++",
        batch_size=10_000,
        max_iter=100,
        max_no_improvement=100,
        tol=0.0,
        n_init=5,
        reassignment_ratio=0.0,
    )
    model = MiniBatchKMeans(units, random_state=seed, **options).fit(rows)
    return Clusters(np.asarray(model.cluster_centers_, np.float32))


def padded(
    labels: Iterable[Int32[np.ndarray, " _frame"]], batch: int, frames: int
) -> Int32[np.ndarray, "{batch} {frames}"]:
    """The units of the first utterances of a batch, -1 elsewhere."""
    rows = np.full((batch, frames), -1, np.int32)
    for row, units in zip(rows, labels):
        row[: len(units)] = units
    return rows
