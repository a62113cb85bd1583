"""A corpus: sources of audio, and their decoding to 16 kHz mono."""

import hashlib
import io
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Shaped

from speechsim_jax.audio import mp3_frames, stated_length
from speechsim_jax.audio.columns import Columns
from speechsim_jax.audio.paths import is_file
from speechsim_jax.errors import UserError, counted, printable

_log = logging.getLogger(__name__)

SAMPLE_RATE_HZ = 16_000
_ROUNDED_SECONDS = 0.02
ROUNDED_PART_SECONDS = 0.1
"""By which a stated duration may differ from the audio that there is and be called rounded."""

DATASET = "hf:"  # prefix of the address of a dataset
AUDIO_SUFFIXES = (
    ".flac", ".wav", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".sph", ".au",
    ".snd", ".caf", ".w64", ".rf64",
)  # fmt: skip
"""Of the formats that libsndfile reads and that state their rate."""

_BLOCK_SAMPLES = 1 << 20
_MP3_DELAY = 2 * 1152  # in samples
_RATES_HZ = 1_000, 768_000
# Level of the mean of all channels, relative to the loudest, below which they cancel each other.
_CANCELLED = 0.05
# Floating-point samples may exceed 1 a little; those of this size are integers.
_LARGEST_FLOAT = 16.0

log = logging.getLogger(__name__)


class AudioError(Exception):
    """One file cannot be used; the message is the reason, in one line, without the file's name."""

    def __str__(self) -> str:
        return printable(super().__str__())


@runtime_checkable
class Encoded(Protocol):
    """An encoded recording outside a file: a row of a dataset (`hub_datasets.Row`)."""

    @property
    def key(self) -> str:
        """Identifies the content."""
        ...

    def encoded(self) -> bytes:
        """The bytes of an audio file; raises AudioError if there are none."""
        ...


@dataclass(frozen=True)
class Source:
    """A recording that is not yet decoded: a file, an array or a row of a dataset.

    Attributes:
        id: Unique within the corpus.
        path: The file, if it is one.
        seconds: Duration; None until known (`open_corpus.with_durations`).
        speaker: Empty if not known.
        transcript: Empty if not known.
        samples: The array, if it is one: float, or int16 PCM.
        sample_rate_hz: Of `samples`; a file has its own in its header.
        row: The row of a dataset, if it is one.
        listed: Whether a list or manifest names the file by a relative path.
        offset_seconds: Where the utterance begins in the file; it lasts `seconds`.
        part: Whether the utterance is a part of the file, from `offset_seconds` on.
        unusable: Why it cannot be read, if that is known without opening it.
        channel: Which channel is read, from 0 on; None for the mean of all.
        columns: What else a manifest or dataset says of it, by column: "gender", "accent".
    """

    id: str
    path: Path | None = None
    seconds: float | None = None
    speaker: str = ""
    transcript: str = ""
    samples: Shaped[np.ndarray, "samples"] | None = field(default=None, repr=False, compare=False)
    sample_rate_hz: int = SAMPLE_RATE_HZ
    row: Encoded | None = field(default=None, repr=False)
    listed: bool = field(default=False, repr=False, compare=False)
    offset_seconds: float = 0.0
    part: bool = False
    unusable: str = ""
    channel: int | None = None
    columns: Mapping[str, str] = field(default_factory=Columns, repr=False, compare=False)

    def stamp(self) -> list[Any]:
        """What tells cheaply that the audio was replaced: of a file, size and time of change."""
        if self.path is None or self.row is not None or self.samples is not None:
            return [_content_key(self)]
        try:
            stat = self.path.stat()
        except (OSError, ValueError):  # ValueError: a null character in its name
            return [-1]
        return [stat.st_size, stat.st_mtime_ns]

    def file(self) -> Path | io.BytesIO | None:
        """What soundfile can open; None for an array. Raises AudioError for an empty row."""
        return self.path if self.row is None else io.BytesIO(self.row.encoded())


@dataclass(frozen=True, eq=False)
class Utterance:
    """Decoded speech, 16 kHz mono float32.

    Attributes:
        id: Of its source.
        samples: At 16 kHz.
        speaker: Empty if not known.
        transcript: Empty if not known.
        notes: What was guessed or changed when it was read, in words that can be counted.
    """

    id: str
    samples: Float32[np.ndarray, "samples"]
    speaker: str = ""
    transcript: str = ""
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return len(self.samples) / SAMPLE_RATE_HZ


@dataclass(frozen=True)
class Skipped:
    """A source that was left out, and the reason."""

    id: str
    reason: str


@dataclass(frozen=True)
class Corpus:
    """An ordered set of sources with unique ids.

    Attributes:
        origin: Where they come from: a path, an address, or "arrays".
        sources: In the order in which they are read.
        facts: What was recognised, guessed and left out when it was opened, for the result.
    """

    origin: str
    sources: tuple[Source, ...]
    facts: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def fingerprint(self) -> str:
        """SHA-256 in hex over the sorted (id, file size or array digest); decodes nothing."""
        digest = hashlib.sha256()
        for source in sorted(self.sources, key=lambda source: source.id):
            # JSON escapes undecodable file names, and whatever could pass for a separator.
            part = [source.offset_seconds, source.seconds] if source.part else []
            part += [] if source.channel is None else [source.channel]
            digest.update(json.dumps([source.id, _content_key(source), *part]).encode())
        return digest.hexdigest()


def total_seconds(sources: Iterable[Source]) -> float:
    """Audio in the sources whose duration is known, in seconds."""
    return sum((source.seconds or 0.0 for source in sources), start=0.0)


def read(source: Source, min_samples: int = 1) -> Utterance:
    """Decode one source, mix it to mono and resample it (soxr HQ) to 16 kHz float32.

    Args:
        source: What to read.
        min_samples: The shortest utterance that can be used, at 16 kHz: the window of the encoder.

    Returns:
        The samples, with the source's id, speaker and transcript.

    Raises:
        AudioError: the source cannot be decoded, is empty, silent, not finite or too short.
        UserError: the audio of a dataset cannot be fetched.
    """
    if source.unusable:
        raise AudioError(source.unusable)
    if source.path is not None and not is_file(source.path):
        raise AudioError(_missing_file(source))
    if (file := source.file()) is not None:
        channels, rate_hz, ends_early = _decode(file, source)
    elif source.samples is not None:
        channels, rate_hz = _as_float(source.samples)[:, None], source.sample_rate_hz
        ends_early = ()
    else:
        raise AudioError("has neither a file nor samples")
    if not len(channels):
        raise AudioError("is empty")
    mono, notes = _mono(channels, source.channel)
    finite = np.isfinite(mono)
    if not finite.all():
        first = int(np.argmin(finite))
        raise AudioError(f"has {'NaN' if np.isnan(mono[first]) else 'inf'} at sample {first}")
    mono, scaled = _in_range(mono)
    resampled = mono
    if rate_hz != SAMPLE_RATE_HZ:
        import soxr  # arrays at 16 kHz need neither this nor soundfile

        resampled = soxr.resample(mono, rate_hz, SAMPLE_RATE_HZ, quality="HQ")
    if len(resampled) < min_samples:
        # Rounding down keeps 399 samples from reading as "25 ms; at least 25 ms are needed".
        ms, least_ms = (1000 * n / SAMPLE_RATE_HZ for n in (len(resampled), min_samples))
        raise AudioError(
            f"is too short: {math.floor(10 * ms) / 10:g} ms; at least {least_ms:g} ms are needed"
        )
    if mono.min() == mono.max():
        raise AudioError(f"is silent: every sample is {mono[0]:g}")
    return Utterance(
        source.id,
        np.ascontiguousarray(resampled),
        source.speaker,
        source.transcript,
        (*notes, *scaled, *ends_early),
    )


def _mono(
    channels: Float32[np.ndarray, "samples channels"], channel: int | None
) -> tuple[Float32[np.ndarray, "samples"], tuple[str, ...]]:
    """One channel, or the mean of all; of channels that cancel each other, the loudest."""
    count = channels.shape[1]
    if count == 1:
        return channels[:, 0], ()
    if channel is not None:
        if channel >= count:
            raise AudioError(f"has {counted(count, 'channel')}, and channel {channel + 1} is asked")
        return channels[:, channel], ()
    with np.errstate(over="ignore", invalid="ignore"):  # `read` reports what is not finite
        mono = channels.mean(axis=1)
        levels = np.sqrt(np.mean(np.square(channels, dtype=np.float64), axis=0))
        level = math.sqrt(float(np.mean(np.square(mono, dtype=np.float64))))
        cancels = level < _CANCELLED * levels.max()
    if cancels:
        loudest = int(np.argmax(levels >= 0.9 * levels.max()))
        return channels[:, loudest], ("channels cancel each other, one was taken",)
    return mono, ("channels averaged",)


def _in_range(
    samples: Float32[np.ndarray, "samples"],
) -> tuple[Float32[np.ndarray, "samples"], tuple[str, ...]]:
    """Floating-point samples in the range of integers, scaled as integers are."""
    peak = float(np.abs(samples).max())
    if peak <= _LARGEST_FLOAT:
        return samples, ()
    for bits in (16, 24, 32):
        if peak <= 2 ** (bits - 1):
            scaled = samples / np.float32(2 ** (bits - 1))
            return scaled, (f"values up to {bits} bits, scaled",)
    raise AudioError(f"has values up to {peak:.3g}; expected -1 to 1")


def log_skipped(skipped: Skipped) -> None:
    """Log a file that could not be used."""
    _log.warning("skipped %s: %s", printable(skipped.id), printable(skipped.reason))


def nothing_usable(corpus: Corpus, skipped: Sequence[Skipped]) -> UserError:
    """The error for a corpus of which every file was skipped, with the first of the reasons."""
    first = f", the first: {skipped[0].id} {skipped[0].reason}" if skipped else ""
    return UserError(
        f"{corpus.origin}: no usable audio ({counted(len(skipped), 'file')} skipped{first})"
    )


def check_any_exists(corpus: Corpus) -> None:
    """Raise UserError if every source is a file and none of them exists; reads nothing."""
    if not any(source.path is None or is_file(source.path) for source in corpus.sources):
        raise nothing_usable(corpus, [Skipped(s.id, _missing_file(s)) for s in corpus.sources])


def _content_key(source: Source) -> int | str:
    if source.row is not None:
        return source.row.key
    if source.samples is not None:
        data = np.ascontiguousarray(source.samples)
        return data.dtype.str + hashlib.sha256(data.tobytes()).hexdigest()
    try:
        return source.path.stat().st_size if source.path else -1
    except (OSError, ValueError):  # as in `Source.stamp`
        return -1


def _decode(
    file: Path | io.BytesIO, source: Source
) -> tuple[Float32[np.ndarray, "samples channels"], int, tuple[str, ...]]:
    """All samples of a file, or of the part that the source is, the rate and notes."""
    size = file.stat().st_size if isinstance(file, Path) else len(file.getbuffer())
    if not size:
        raise AudioError("is empty: it has 0 bytes")
    if (fault := stated_length.fault(file)) is not None:
        raise AudioError(fault)
    try:
        import soundfile

        with soundfile.SoundFile(_openable(file)) as audio:
            rate_hz = audio.samplerate
            if not _RATES_HZ[0] <= rate_hz <= _RATES_HZ[1]:
                raise AudioError(f"has a sampling rate of {rate_hz} Hz, which cannot be")
            stated = plausible_frames(audio.frames, size)
            # Decoders of MP3 may leave out what encoders put before and behind.
            tolerance = _MP3_DELAY if audio.format == "MP3" else 0
            if stated is None and audio.format == "OGG":  # its last page has the length
                raise AudioError("is damaged: its end is missing")
            first, wanted = 0, None
            if source.part:
                first = round(source.offset_seconds * rate_hz)
                if stated is not None and first >= stated:
                    raise AudioError(
                        f"begins at {source.offset_seconds:g} s of a file of {stated / rate_hz:g} s"
                    )
                audio.seek(first)
                if source.seconds is not None:
                    wanted = round(source.seconds * rate_hz)
                # A manifest may state the whole file with its duration rounded.
                rounded = math.inf if stated is None else stated - _ROUNDED_SECONDS * rate_hz
                if not first and wanted is not None and wanted > rounded:
                    wanted = None
            samples = _read_blocks(audio, wanted, size)
            expected = None if stated is None else stated - first
            if expected is not None and wanted is not None:
                expected = min(expected, wanted)
            if expected is not None and len(samples) < expected - tolerance:
                raise AudioError(f"is damaged: {len(samples)} of {expected} samples decode")
            asked = source.seconds if source.part and source.seconds is not None else 0.0
            if asked - len(samples) / rate_hz > ROUNDED_PART_SECONDS:
                return samples, rate_hz, ("parts that end after the file's end",)
            return samples, rate_hz, ()
    except AudioError:
        raise
    except Exception as error:  # whatever a decoder raises, it is this file that is at fault
        raise AudioError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """Why a file cannot be decoded, without its name."""
    text = getattr(error, "error_string", str(error))  # libsndfile's, without the name
    if "possibly a pipe" in text:  # so libsndfile calls what is no MP3, in a file called .mp3
        text = "Format not recognised."
    return f"cannot be decoded: {text}"


def _read_blocks(
    audio: Any, frames: int | None, size: int
) -> Float32[np.ndarray, "samples channels"]:
    """So many frames of a SoundFile, or all: until the file ends, whatever its header says."""
    blocks, left = [], _most_frames(size) if frames is None else frames
    # Otherwise soundfile reads no further than the header says, and seeks there.
    audio.seekable = lambda: False
    while left > 0:
        most = max(1, _BLOCK_SAMPLES // audio.channels)
        block = audio.read(min(left, most), dtype="float32", always_2d=True)
        if not len(block):
            break
        blocks.append(block)
        left -= len(block)
    return np.concatenate(blocks) if blocks else np.zeros((0, audio.channels), np.float32)


def _openable(file: Path | io.BytesIO) -> Any:
    """The file as soundfile takes it, also if its name is no UTF-8 or its length unknown."""
    if (completed := mp3_frames.with_length(file)) is not None:
        return completed
    if isinstance(file, io.BytesIO):
        return file
    try:
        str(file).encode()
    except UnicodeEncodeError:
        return os.fsencode(file)
    return str(file)


def _most_frames(size: int) -> int:
    """More than a file of so many bytes can hold: silence compresses a few hundred times."""
    return 1024 * size


def plausible_frames(frames: int, size: int) -> int | None:
    """The length that a header states, None if it cannot be that of a file of `size` bytes."""
    return frames if 0 < frames <= _most_frames(size) else None


def channels_of(source: Source) -> int:
    """Channels by the header of a file; 1 where there is none that can be read."""
    try:
        import soundfile

        file = None if source.unusable else source.file()
        if isinstance(file, Path) and not is_file(file):  # a pipe would wait for ever
            return 1
        return 1 if file is None else soundfile.info(_openable(file)).channels
    except Exception:  # reading it says why
        return 1


def stated_seconds(file: Path | io.BytesIO) -> float | None:
    """Duration by the header of a file; None if there is none, or it cannot be.

    Raises:
        AudioError: the header cannot be read.
    """
    if isinstance(file, Path) and not is_file(file):  # a pipe would wait for ever
        raise AudioError("is not a file")
    size = file.stat().st_size if isinstance(file, Path) else len(file.getbuffer())
    try:
        import soundfile

        info = soundfile.info(_openable(file))
    except Exception as error:  # as in `_decode`
        raise AudioError(_reason(error)) from error
    frames = plausible_frames(info.frames, size)
    if frames is None or not _RATES_HZ[0] <= info.samplerate <= _RATES_HZ[1]:
        return None
    return frames / info.samplerate


def _as_float(samples: Shaped[np.ndarray, "samples"]) -> Float32[np.ndarray, "samples"]:
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / np.float32(32768)
    with np.errstate(over="ignore"):  # becomes inf, which `read` reports
        return samples.astype(np.float32)


def _missing_file(source: Source) -> str:
    hint = "; paths in a list count from its own folder" if source.listed else ""
    if source.path is not None and "\\" in source.path.as_posix():
        hint = "; it is written with backslashes, which divide folders on Windows only"
    return f"is not a file: {source.path}{hint}"
