"""Acoustic features as tracks: values of windows centred at the frames.

| name | numbers | |
|---|---|---|
| logmel | 80 | power in mel bands, in dB |
| mfcc | 39 | cepstral coefficients with deltas, as HuBERT's first targets |
| f0 | 2 | voiced or not, and the pitch of what is voiced |
| energy | 1 | level in dB |
| zero_crossings | 1 | changes of sign, a share of the samples |
| spectral_centroid | 1 | mean frequency of the spectrum, in kHz |

Every window is cut around the centre that is asked for, and nothing is resampled from a grid, so
values are exact at any frame rate. Samples before and after the audio are zeros.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.fft
from jaxtyping import Bool, Float, Float32, Float64, Int

from speechsim_jax.audio.corpus import SAMPLE_RATE_HZ
from speechsim_jax.audio.tracks import Piece, Track
from speechsim_jax.errors import UserError, did_you_mean

_WINDOW_SAMPLES = 400  # 25 ms
_FLOOR_DB = -100.0  # below what 16 bits hold
_FLOOR_POWER = 10 ** (_FLOOR_DB / 10)
_LOGMEL_BANDS = 80

_MFCC_BANDS, _COEFFICIENTS, _DELTA_HOP_SAMPLES = 40, 13, 160
# The slope of the line through five windows is their weighted sum.
_SLOPE = np.arange(-2, 3) / 10
# Kaldi's lifter, 1 + Q/2 sin(pi n / Q): without it energy and tilt make up most of a distance.
_LIFTER = 1 + 11 * np.sin(np.pi * np.arange(_COEFFICIENTS) / 22)

_PITCH_HZ = 60.0, 500.0
_PITCH_WINDOW_SAMPLES, _PITCH_REFERENCE_HZ = 1024, 100.0
# Two stretches a period apart; on aligned speech this recognised voiced phones better than pYIN.
_VOICED_SAMPLES, _VOICED_CORRELATION, _VOICED_BELOW_LOUDEST_DB = 512, 0.5, 35.0

# More frames at once would only need more memory.
_BLOCK_FRAMES = 4096

_Samples = Float32[np.ndarray, " sample"]
_Centres = Float64[np.ndarray, " frame"]
_Values = Float[np.ndarray, "frame number"]


def logmel(samples: _Samples, centres: _Centres) -> _Values:
    """Log-mel bands: 80, Hann window of 25 ms, power in dB of at least -100.

    Slaney's mel scale up to 8 kHz, each triangle of area 1, as librosa's and Whisper's.

    Args:
      samples: at 16 kHz.
      centres: of the frames, in seconds.
    """
    return _decibels(_mel_power(samples, _starts(centres, _WINDOW_SAMPLES), _LOGMEL_BANDS, False))


def mfcc(samples: _Samples, centres: _Centres) -> _Values:
    """13 cepstral coefficients with c0, their deltas and the deltas' deltas (+-2 windows of 10 ms).

    40 bands of HTK's mel scale, power in dB of at least -100, DCT, Kaldi's lifter; means stay.
    Windows that a delta would need outside the audio are replaced by the outermost.

    Args:
      samples: at 16 kHz.
      centres: of the frames, in seconds.
    """
    starts = _starts(centres, _WINDOW_SAMPLES)
    first = np.minimum(starts, 0)[:, None, None]
    last = np.maximum(starts, len(samples) - _WINDOW_SAMPLES)[:, None, None]
    steps = _DELTA_HOP_SAMPLES * np.arange(-2, 3)
    around = np.clip(starts[:, None, None] + steps[:, None], first, last)
    needed, place = np.unique(np.clip(around + steps, first, last), return_inverse=True)
    bands = _decibels(_mel_power(samples, needed, _MFCC_BANDS, True))
    cepstra = np.asarray(scipy.fft.dct(bands, norm="ortho", axis=1))[:, :_COEFFICIENTS]
    static = (cepstra * _LIFTER)[place.reshape(len(starts), 5, 5)]
    deltas = np.einsum("k,fjkc->fjc", _SLOPE, static)
    double = np.einsum("j,fjc->fc", _SLOPE, deltas)
    return np.concatenate([static[:, 2, 2], deltas[:, 2], double], axis=1)


def f0(samples: _Samples, centres: _Centres) -> _Values:
    """Voicing, 1 or 0, and log2(f0 / 100 Hz) where there is voicing, else 0.

    Unvoiced frames have no pitch. With both columns every linear measure fits voiced and unvoiced
    frames apart: the first takes up the step between them, the second the octaves among the voiced.

    Pitch by YIN (60 to 500 Hz, windows of 64 ms). Voiced: stretches of 32 ms that are a period
    apart correlate by at least 0.5, and are at most 35 dB below the loudest 25 ms of the piece.

    Args:
      samples: at 16 kHz.
      centres: of the frames, in seconds.
    """
    import librosa

    windows = _windows(samples, _starts(centres, _PITCH_WINDOW_SAMPLES), _PITCH_WINDOW_SAMPLES)
    windows = windows - windows.mean(axis=1, keepdims=True)
    hz = librosa.yin(
        windows.reshape(-1),
        fmin=_PITCH_HZ[0],
        fmax=_PITCH_HZ[1],
        sr=SAMPLE_RATE_HZ,
        frame_length=_PITCH_WINDOW_SAMPLES,
        hop_length=_PITCH_WINDOW_SAMPLES,  # end to end: each is a frame
        center=False,
    )
    voiced = _voiced(windows, np.rint(SAMPLE_RATE_HZ / hz).astype(int), _loudest(samples))
    pitch = np.log2(hz / _PITCH_REFERENCE_HZ)
    return np.stack([voiced, np.where(voiced, pitch, 0)], axis=1).astype(np.float32)


def energy(samples: _Samples, centres: _Centres) -> _Values:
    """Level of 25 ms: mean square in dB of full scale, at least -100.

    Args:
      samples: at 16 kHz.
      centres: of the frames, in seconds.
    """
    windows = _windows(samples, _starts(centres, _WINDOW_SAMPLES), _WINDOW_SAMPLES)
    return _decibels(np.square(windows).mean(axis=1, keepdims=True))


def zero_crossings(samples: _Samples, centres: _Centres) -> _Values:
    """Share of the samples of 25 ms that are of another sign than the one before.

    Args:
      samples: at 16 kHz.
      centres: of the frames, in seconds.
    """
    windows = _windows(samples, _starts(centres, _WINDOW_SAMPLES), _WINDOW_SAMPLES)
    negative = np.signbit(windows)
    crossings = (negative[:, 1:] != negative[:, :-1]).sum(axis=1, keepdims=True)
    return (crossings / _WINDOW_SAMPLES).astype(np.float32)


def spectral_centroid(samples: _Samples, centres: _Centres) -> _Values:
    """Mean frequency weighted by magnitude, Hann window of 25 ms, in kHz; 0 of silence.

    Args:
      samples: at 16 kHz.
      centres: of the frames, in seconds.
    """
    magnitudes = np.sqrt(_power(samples, _starts(centres, _WINDOW_SAMPLES)))
    kilohertz = np.arange(magnitudes.shape[1]) * (SAMPLE_RATE_HZ / 1000 / _WINDOW_SAMPLES)
    total = magnitudes.sum(axis=1, keepdims=True)
    return (magnitudes @ kilohertz)[:, None] / np.where(total > 0, total, 1)


def _starts(centres: _Centres, window: int) -> Int[np.ndarray, " frame"]:
    """The first sample of the window around each centre, to the nearest sample."""
    return np.rint(centres * SAMPLE_RATE_HZ - window / 2).astype(np.int64)


def _windows(
    samples: _Samples, starts: Int[np.ndarray, " frame"], length: int
) -> Float32[np.ndarray, "frame window"]:
    before = max(0, -int(starts.min()))
    after = max(0, int(starts.max()) + length - len(samples))
    padded = np.pad(samples, (before, after)) if before or after else samples
    return np.lib.stride_tricks.sliding_window_view(padded, length)[starts + before]


def _power(
    samples: _Samples, starts: Int[np.ndarray, " frame"]
) -> Float32[np.ndarray, "frame bin"]:
    spectrum = np.fft.rfft(_windows(samples, starts, _WINDOW_SAMPLES) * _hann(), axis=1)
    return np.square(spectrum.real) + np.square(spectrum.imag)


def _mel_power(
    samples: _Samples, starts: Int[np.ndarray, " frame"], bands: int, htk: bool
) -> Float32[np.ndarray, "frame band"]:
    return _power(samples, starts) @ _mel_bands(bands, htk)


def _decibels(power: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    # The inner floor is for the logarithm of 0 alone: in float32, 1e-10 is not quite -100 dB.
    return np.maximum(10 * np.log10(np.maximum(power, _FLOOR_POWER / 2)), _FLOOR_DB)


@functools.cache
def _hann() -> Float32[np.ndarray, " sample"]:
    # The periodic window, as for spectra.
    turns = np.arange(_WINDOW_SAMPLES) / _WINDOW_SAMPLES
    return (0.5 - 0.5 * np.cos(2 * np.pi * turns)).astype(np.float32)


@functools.cache
def _mel_bands(bands: int, htk: bool) -> Float32[np.ndarray, "bin band"]:
    import librosa

    weights = librosa.filters.mel(
        sr=SAMPLE_RATE_HZ, n_fft=_WINDOW_SAMPLES, n_mels=bands, htk=htk, dtype=np.float32
    )
    return np.ascontiguousarray(weights.T)


def _loudest(samples: _Samples) -> float:
    """The largest mean square of 25 ms of the audio."""
    whole = np.pad(samples, (0, -len(samples) % _WINDOW_SAMPLES))
    return float(np.square(whole).reshape(-1, _WINDOW_SAMPLES).mean(axis=1).max(initial=0))


def _voiced(
    windows: Float32[np.ndarray, "frame window"],
    periods: Int[np.ndarray, " frame"],
    loudest: float,
) -> Bool[np.ndarray, " frame"]:
    """Whether each window repeats after its period, and is not too quiet."""
    first = (_PITCH_WINDOW_SAMPLES - _VOICED_SAMPLES - periods) // 2
    index = first[:, None] + np.arange(_VOICED_SAMPLES)
    one = np.take_along_axis(windows, index, axis=1)
    other = np.take_along_axis(windows, index + periods[:, None], axis=1)
    one, other = (x - x.mean(axis=1, keepdims=True) for x in (one, other))
    powers = np.square(one).mean(axis=1), np.square(other).mean(axis=1)
    least = loudest * 10 ** (-_VOICED_BELOW_LOUDEST_DB / 10)
    alike = (one * other).mean(axis=1) >= _VOICED_CORRELATION * np.sqrt(powers[0] * powers[1])
    return alike & ((powers[0] + powers[1]) / 2 >= max(least, _FLOOR_POWER))


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureTrack:
    """An acoustic feature.

    Attributes:
      name: in `FEATURES`.
      width: numbers of a row.
      values: (samples at 16 kHz, centres in seconds) -> rows.
      parameters: for the record.
      libraries: that compute it.
      classes: none.
    """

    name: str
    width: int
    values: Callable[[_Samples, _Centres], _Values]
    parameters: Mapping[str, Any]
    libraries: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    @property
    def record(self) -> dict[str, Any]:
        """The parameters, and versions of the libraries that compute."""
        versions = {library: importlib.metadata.version(library) for library in self.libraries}
        return {"kind": "feature", "feature": self.name, **self.parameters, **versions}

    def rows(self, piece: Piece, centres: _Centres) -> Float32[np.ndarray, "frame number"]:
        """The values of the windows around the centres.

        Args:
          piece: the audio.
          centres: of the frames, in seconds from the start of the piece.
        """
        samples = np.asarray(piece.samples, np.float32)
        rows = np.empty((len(centres), self.width), np.float32)
        for start in range(0, len(centres), _BLOCK_FRAMES):
            block = slice(start, start + _BLOCK_FRAMES)
            rows[block] = self.values(samples, centres[block])
        return rows


_SHORT = {"window_seconds": _WINDOW_SAMPLES / SAMPLE_RATE_HZ, "window": "hann"}
_DECIBELS = {"unit": "dB", "floor_db": _FLOOR_DB}
FEATURES: Mapping[str, FeatureTrack] = {
    track.name: track
    for track in (
        FeatureTrack(
            "logmel",
            _LOGMEL_BANDS,
            logmel,
            {**_SHORT, **_DECIBELS, "bands": _LOGMEL_BANDS, "scale": "slaney"},
            ("librosa",),
        ),
        FeatureTrack(
            "mfcc",
            3 * _COEFFICIENTS,
            mfcc,
            {
                **_SHORT,
                **_DECIBELS,
                "bands": _MFCC_BANDS,
                "scale": "htk",
                "coefficients": _COEFFICIENTS,
                "lifter": 22,
                "delta_windows": 5,
                "delta_hop_seconds": _DELTA_HOP_SAMPLES / SAMPLE_RATE_HZ,
            },
            ("librosa", "scipy"),
        ),
        FeatureTrack(
            "f0",
            2,
            f0,
            {
                "method": "yin",
                "least_hz": _PITCH_HZ[0],
                "most_hz": _PITCH_HZ[1],
                "reference_hz": _PITCH_REFERENCE_HZ,
                "window_seconds": _PITCH_WINDOW_SAMPLES / SAMPLE_RATE_HZ,
                "voiced_seconds": _VOICED_SAMPLES / SAMPLE_RATE_HZ,
                "voiced_correlation": _VOICED_CORRELATION,
                "voiced_below_loudest_db": _VOICED_BELOW_LOUDEST_DB,
            },
            ("librosa",),
        ),
        FeatureTrack("energy", 1, energy, {**_SHORT, **_DECIBELS, "window": "rectangular"}),
        FeatureTrack("zero_crossings", 1, zero_crossings, {**_SHORT, "window": "rectangular"}),
        FeatureTrack("spectral_centroid", 1, spectral_centroid, {**_SHORT, "unit": "kHz"}),
    )
}
"""The acoustic features by name."""


def feature_tracks(names: Sequence[str]) -> tuple[Track, ...]:
    """The acoustic features of these names.

    Args:
      names: of `FEATURES`.

    Raises:
      UserError: a name that there is not, or that is there twice.
    """
    for number, name in enumerate(names):
        if name not in FEATURES:
            raise UserError(
                f"tracks: there is no feature {name!r}{did_you_mean(name, FEATURES)}; there are: "
                f"{', '.join(FEATURES)}"
            )
        if name in names[:number]:
            raise UserError(f"tracks: {name} is there twice; name each once")
    return tuple(FEATURES[name] for name in names)


@dataclasses.dataclass(frozen=True, eq=False)
class _FunctionTrack:
    """What a function says of the audio; see `function_track`."""

    name: str
    width: int
    function: Callable[[_Samples, _Centres], Any]
    record: dict[str, Any]
    classes: tuple[str, ...] = ()

    def rows(self, piece: Piece, centres: _Centres) -> Float32[np.ndarray, "frame number"]:
        """What the function returns, checked."""
        rows = _called(self.name, self.function, piece, centres)
        if rows.shape[1] != self.width:
            raise UserError(
                f"tracks: {self.name} of {piece.utterance} has {rows.shape[1]} numbers a frame; "
                f"expected {self.width}, as with other audio"
            )
        return rows


def function_track(
    name: str,
    function: Callable[[_Samples, _Centres], Any],
    record: Mapping[str, Any] | None = None,
) -> Track:
    """A track of a function of the audio.

    Args:
      name: of the track.
      function: (samples at 16 kHz, centres of the frames in seconds) -> array [frame, number], or
        [frame] of one number. Several threads call it at a time. It is tried once on one second of
        noise.
      record: what the values depend on besides the function's own source: a job that resumes with
        another record is refused.

    Raises:
      UserError: the function fails on the noise, or does not return numbers, a row for each frame.
    """
    rng = np.random.default_rng(0)
    noise = (0.1 * rng.standard_normal(SAMPLE_RATE_HZ)).astype(np.float32)
    centres = (np.arange(49) * 320 + _WINDOW_SAMPLES / 2) / SAMPLE_RATE_HZ
    width = _called(name, function, Piece("a second of noise", 0.0, noise), centres).shape[1]
    facts = {"kind": "function", **_identity(function), **(record or {})}
    return _FunctionTrack(name, width, function, facts)


def _identity(function: Callable[..., Any]) -> dict[str, Any]:
    """A function's name, and the digest of its source where that can be had."""
    if isinstance(function, functools.partial):
        inner = function.func
        state: list[Any] = [function.args, sorted(function.keywords.items())]
        return {**_identity(inner), "arguments_sha256": _digest(state)}
    named = function if hasattr(function, "__qualname__") else type(function)
    identity = {"function": f"{named.__module__}.{named.__qualname__}"}
    plain = inspect.unwrap(getattr(function, "__func__", function))
    owner = getattr(function, "__self__", function)
    closure = inspect.getclosurevars(plain).nonlocals if inspect.isfunction(plain) else {}
    state = [
        getattr(plain, "__defaults__", None),
        getattr(plain, "__kwdefaults__", None),
        sorted(closure.items()),
        sorted(vars(owner).items()) if hasattr(owner, "__dict__") else None,
    ]
    identity["state_sha256"] = _digest(state)
    try:
        source = inspect.getsource(named)
    except (OSError, TypeError):  # typed at a prompt, or of an extension
        return identity
    return identity | {"source_sha256": hashlib.sha256(source.encode()).hexdigest()}


def _digest(state: Any) -> str:
    """SHA-256 of what a function was given: arrays by their values, other things as they print."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, np.ndarray):
            digest.update(repr((value.dtype.str, value.shape)).encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        else:
            # Addresses differ from process to process.
            digest.update(re.sub(r" at 0x[0-9a-f]+", "", repr(value)).encode() + b"\0")

    add(state)
    return digest.hexdigest()


def _called(
    name: str, function: Callable[..., Any], piece: Piece, centres: _Centres
) -> Float32[np.ndarray, "frame number"]:
    """The finite rows that a function returns; raises UserError."""
    samples = piece.samples.view()
    samples.flags.writeable = False  # the models hear the same array
    try:
        returned = function(samples, centres)
    except Exception as error:  # whatever it is, it is the function's
        reason = " ".join(str(error).split())
        raise UserError(
            f"tracks: {name} fails on {piece.utterance}: {type(error).__name__}: {reason}"
        ) from error
    rows = _as_rows(returned, f"{name} of {piece.utterance}")
    if len(rows) != len(centres):
        raise UserError(
            f"tracks: {name} of {piece.utterance} has {len(rows)} rows; expected one for each of "
            f"{len(centres)} frames"
        )
    return rows


def _as_rows(values: Any, what: str) -> Float32[np.ndarray, "frame number"]:
    """Finite numbers as [frame, number]; raises UserError that begins with `what`."""
    try:
        array = np.asarray(values)
    except ValueError:  # lists of several lengths
        array = np.empty((), object)
    if array.dtype.kind not in "biuf" or array.ndim not in (1, 2) or array.shape[-1:] == (0,):
        raise UserError(
            f"tracks: {what} is {array.dtype} of shape {array.shape}; expected numbers [frame] or "
            "[frame, number]"
        )
    with np.errstate(over="ignore"):  # becomes inf
        rows = array.reshape(len(array), -1).astype(np.float32, copy=False)
    finite = np.isfinite(rows)
    if not finite.all():
        frame = int(np.argmin(finite.all(axis=1)))
        raise UserError(f"tracks: {what} has {rows[frame][~finite[frame]][0]} at frame {frame}")
    return rows


@dataclasses.dataclass(frozen=True, eq=False)
class _ArrayTrack:
    """Rows that are known beforehand; see `array_track`."""

    name: str
    width: int
    arrays: Mapping[str, Float32[np.ndarray, "_frame number"]]
    first_seconds: float
    hop_seconds: float
    record: dict[str, Any]
    classes: tuple[str, ...] = ()

    def rows(self, piece: Piece, centres: _Centres) -> Float32[np.ndarray, "frame number"]:
        """The rows of the frames nearest to the centres."""
        if piece.utterance not in self.arrays:
            raise UserError(
                f"tracks: {self.name} has no array for {piece.utterance}; expected one for each "
                "utterance"
            )
        array = self.arrays[piece.utterance]
        seconds = piece.start_seconds + centres
        number = np.rint((seconds - self.first_seconds) / self.hop_seconds).astype(np.int64)
        number = np.maximum(number, 0)
        if piece.start_seconds:  # the last frame of a piece may be half a frame later
            number = np.where(number == len(array), len(array) - 1, number)
        if len(number) and number.max() >= len(array):
            raise UserError(
                f"tracks: {self.name} of {piece.utterance} has {len(array)} rows; frame "
                f"{number.max()}, at {seconds[number.argmax()]:.3f} s, needs one"
            )
        return array[number]


def array_track(
    name: str,
    arrays: Mapping[str, Any],
    first_seconds: float = 0.0125,
    hop_seconds: float = 0.02,
) -> Track:
    """A track of rows that are known beforehand.

    Row k of an utterance belongs to its frame k, centred at `first_seconds + k hop_seconds`. A
    frame takes the row nearest in time, so pieces of a long utterance go on where the last ended.

    Args:
      name: of the track.
      arrays: of each utterance [frame, number], or [frame] of one number.
      first_seconds: centre of frame 0 from the start of the utterance.
      hop_seconds: from frame to frame; the defaults are those of wav2vec 2.0 and its like.

    Raises:
      UserError: no arrays, not of finite numbers, or of several widths; impossible times.
    """
    if not arrays:
        raise UserError(f"tracks: {name} has no arrays; expected one for each utterance")
    if not (0 < hop_seconds < math.inf and 0 <= first_seconds < math.inf):
        raise UserError(
            f"tracks: {name}: frames from {first_seconds} s every {hop_seconds} s; expected "
            "at least 0, and more than 0"
        )
    rows = {str(id_): _as_rows(array, f"{name} of {id_}") for id_, array in arrays.items()}
    first, *others = rows
    width = rows[first].shape[1]
    if other := next((id_ for id_ in others if rows[id_].shape[1] != width), None):
        raise UserError(
            f"tracks: {name} of {other} has {rows[other].shape[1]} numbers a row, of {first} "
            f"{width}; expected as many in each"
        )
    digest = hashlib.sha256()
    for id_ in sorted(rows):
        digest.update(repr((id_, rows[id_].shape)).encode())
        digest.update(np.ascontiguousarray(rows[id_]).data)
    record = {
        "kind": "arrays",
        "sha256": digest.hexdigest(),
        "first_seconds": first_seconds,
        "hop_seconds": hop_seconds,
    }
    return _ArrayTrack(name, width, rows, first_seconds, hop_seconds, record)
