"""Words and letters of synthetic speech at estimated times; no phones.

A synthesiser that gives neither phones nor times reads every word of a text alone. These words,
without the silence around them, are joined, and the whole is aligned with the speech by dynamic
time warping of cepstral coefficients. The letters of a word share its time equally.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64

from speechsim_jax.audio import features
from speechsim_jax.audio.corpus import SAMPLE_RATE_HZ

# Letters and digits, with apostrophes between them.
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_HOP_SAMPLES = 160
_HOP_SECONDS = _HOP_SAMPLES / SAMPLE_RATE_HZ
# Speech is at most so much below the loudest window, and above digital silence.
_RANGE_DB, _SILENCE_DB = 35.0, -99.0
_COEFFICIENTS = slice(1, 13)  # without the level

_Samples = Float32[np.ndarray, " sample"]
_Word = Float32[np.ndarray, " _sample"]
_Times = Float64[np.ndarray, "word two"]


class Segment(NamedTuple):
    """A word or a letter.

    Attributes:
        tier: "word" or "letter".
        start: In seconds.
        end: In seconds.
        label: In lower case, without apostrophes.
    """

    tier: str
    start: float
    end: float
    label: str


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text in lower case, with the apostrophes inside them."""
    return tuple(_WORD.findall(text.lower()))


def segments(text: str, speech: _Samples, alone: Mapping[str, _Word]) -> list[Segment]:
    """The words of a text and their letters, at the times at which they are spoken.

    Args:
        text: What is spoken.
        speech: At 16 kHz.
        alone: Every word of the text, spoken alone by the same voice.

    Returns:
        Words in order, each followed by its letters; without words that have no time.
    """
    words = words_of(text)
    found = []
    times = word_times(speech, [alone[word] for word in words])
    for word, (start, end) in zip(words, times.tolist()):
        label = re.sub("['\u2019]", "", word)
        if not end > start:
            continue
        found.append(Segment("word", start, end, label))
        bounds = np.linspace(start, end, len(label) + 1).tolist()
        found += [Segment("letter", *of) for of in zip(bounds, bounds[1:], label)]
    return found


def word_times(speech: _Samples, alone: Sequence[_Word]) -> _Times:
    """Start and end of each word in speech, in seconds; equal for a word that takes no time.

    Each word ends where the next one starts. Memory and time grow with the square of the length.

    Args:
        speech: At 16 kHz.
        alone: Each word, spoken alone.
    """
    first, spoken = _trimmed(speech)
    parts = [_trimmed(word)[1] for word in alone]
    ends = np.cumsum([len(part) // _HOP_SAMPLES for part in parts])
    if not len(spoken) or not ends.any():
        return np.zeros((len(alone), 2))

    import librosa

    rows, columns = _coefficients(np.concatenate(parts)), _coefficients(spoken)
    _, path = librosa.sequence.dtw(rows, columns, metric="euclidean")
    of_row, of_column = path[::-1].T
    # Half way between what goes with the last frame before each end, and with the first after it.
    last, next_ = np.searchsorted(of_row, ends) - 1, np.searchsorted(of_row, ends)
    before = np.where(ends > 0, of_column[last] + 1, 0)
    after = np.append(of_column, columns.shape[1])[next_]
    bounds = np.concatenate([[0.0], (before + after) / 2])
    return (first + np.stack([bounds[:-1], bounds[1:]], axis=1)) * _HOP_SECONDS


def _trimmed(samples: _Samples) -> tuple[int, _Word]:
    """The first hop that has speech, and all hops up to the last that has."""
    count = len(samples) // _HOP_SAMPLES
    if not count:
        return 0, samples[:0]
    level = features.energy(samples, _centres(count))[:, 0]
    speech = np.flatnonzero(level > max(level.max() - _RANGE_DB, _SILENCE_DB))
    if not len(speech):
        return 0, samples[:0]
    first, last = int(speech[0]), int(speech[-1]) + 1
    return first, samples[first * _HOP_SAMPLES : last * _HOP_SAMPLES]


def _coefficients(samples: _Samples) -> Float64[np.ndarray, "coefficient frame"]:
    values = features.mfcc(samples, _centres(len(samples) // _HOP_SAMPLES))[:, _COEFFICIENTS]
    values = values.T.astype(np.float64)
    spread = values.std(axis=1, keepdims=True)
    return (values - values.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)


def _centres(count: int) -> Float64[np.ndarray, " frame"]:
    return (np.arange(count) + 0.5) * _HOP_SECONDS
