"""A corpus as it comes off a disk: good files of every format and name, and every kind of bad one.

    python -m tests.support.bad_corpus FOLDER --files=2000 --seed=0

A good file is written for every id of `Written.good`, a bad one for every id of `Written.bad`; what
is neither (hidden files, texts, video) lies between them and is not to be listed at all.
"""

import argparse
import collections
import gzip
import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

RATE_HZ = 16_000

# --- writing one file -----------------------------------------------------------------------------

FORMATS: tuple[tuple[str, dict], ...] = (
    ("wav", {"subtype": "PCM_16"}),
    ("wav", {"subtype": "FLOAT"}),
    ("wav", {"format": "WAVEX", "subtype": "PCM_24"}),
    ("flac", {}),
    ("ogg", {"format": "OGG", "subtype": "VORBIS"}),
    ("opus", {"format": "OGG", "subtype": "OPUS"}),
    ("mp3", {"format": "MP3"}),
    ("aiff", {"format": "AIFF"}),
    ("au", {"format": "AU"}),
    ("caf", {"format": "CAF"}),
    ("w64", {"format": "W64"}),
    ("rf64", {"format": "RF64"}),
    ("sph", {"format": "NIST"}),
)


class Rng(NamedTuple):
    """Two streams of one seed."""

    choices: random.Random
    samples: np.random.Generator

    def speech(self, rate_hz: int = RATE_HZ, channels: int = 1) -> np.ndarray:
        """0.3 to 1 s of noise, softened so that codecs keep it."""
        seconds = self.choices.uniform(0.3, 1.0)
        white = self.samples.standard_normal((int(seconds * rate_hz), channels))
        soft = np.apply_along_axis(np.convolve, 0, white, np.ones(8) / 8, "same")
        return 0.2 * soft.astype(np.float32)


def write_sound(path: Path, samples: np.ndarray, rate_hz: int = RATE_HZ, **options) -> Path:
    """A sound file of any name; its format goes by the suffix unless it is given."""
    with path.open("w+b") as file:
        suffix = path.suffix[1:].upper()
        soundfile.write(file, samples, rate_hz, **({"format": suffix} | options))
    return path


# --- good files: by number, so that each kind occurs ----------------------------------------------

NAMES = (
    "plain", "with space", " leading", "日本語", "\N{GRINNING FACE}", "cafe\u0301", "caf\u00e9",
    "\u05e9\u05dc\u05d5\u05dd", "-dash", "=SUM(A1)", "hash#0", "colon:1", "comma,semi;",
    "tab\there", "new\nline", "back\\slash", "quote'\"", "%41", "..dots..", "x" * 200,
    "caf\udce9", "a.b.c", "wav", "<b>html", "$(true)", "null", "nan",
)  # fmt: skip


def _good(folder: Path, number: int, rng: Rng) -> Path:
    """A file that is read; every fifth is unusual in its rate, channels or header."""
    stem = NAMES[number % len(NAMES)]
    # "..dots.." and others would collide or hide without a number in front.
    name = f"{number:05}{stem}"
    suffix, options = FORMATS[number % len(FORMATS)]
    path = folder / f"{name}.{suffix.upper() if number % 17 == 0 else suffix}"
    if suffix in ("opus", "mp3", "ogg") or number % 5:
        return write_sound(path, rng.speech(), **options)
    match number // 5 % 8:
        case 0:
            return write_sound(path, rng.speech(8_000), 8_000, **options)
        case 1:
            return write_sound(path, rng.speech(44_100, 2), 44_100, **options)
        case 2:
            return write_sound(path.with_suffix(".wav"), rng.speech(channels=8))
        case 3:  # one channel inverted
            samples = rng.speech()
            return write_sound(path.with_suffix(".wav"), np.concatenate([samples, -samples], 1))
        case 4:  # a pipe has left the length
            path = write_sound(path.with_suffix(".wav"), rng.speech(), subtype="PCM_16")
            return _patch(path, b"data", 4, b"\xff" * 4)
        case 5:
            path = write_sound(path.with_suffix(".flac"), rng.speech())
            content = bytearray(path.read_bytes())
            content[21] |= 0x0F  # 240 GiB of samples
            path.write_bytes(content)
            return path
        case 6:  # integers in floats
            return write_sound(path.with_suffix(".wav"), 20_000 * rng.speech(), subtype="FLOAT")
        case _:
            return write_sound(path.with_suffix(".wav"), rng.speech(), subtype="GSM610")


# --- bad files ------------------------------------------------------------------------------------


def _patch(path: Path, mark: bytes, offset: int, new: bytes) -> Path:
    content = bytearray(path.read_bytes())
    at = content.index(mark) + offset
    content[at : at + len(new)] = new
    path.write_bytes(content)
    return path


def _bytes(suffix: str, content: bytes) -> Callable[[Path, Rng], Path]:
    def make(stem: Path, _: Rng) -> Path:
        path = stem.with_name(f"{stem.name}.{suffix}")
        path.write_bytes(content)
        return path

    return make


def _samples(change: Callable[[np.ndarray], np.ndarray], rate_hz: int = RATE_HZ):
    def make(stem: Path, rng: Rng) -> Path:
        path = stem.with_name(f"{stem.name}.wav")
        return write_sound(path, change(rng.speech(rate_hz)), rate_hz, subtype="FLOAT")

    return make


def _cut(suffix: str, options: dict) -> Callable[[Path, Rng], Path]:
    def make(stem: Path, rng: Rng) -> Path:
        path = write_sound(stem.with_name(f"{stem.name}.{suffix}"), rng.speech(), **options)
        content = path.read_bytes()
        path.write_bytes(content[: int(rng.choices.uniform(0.15, 0.95) * len(content))])
        return path

    return make


def _header(offset: int, new: bytes) -> Callable[[Path, Rng], Path]:
    """A WAV with other bytes at an offset of its header."""

    def make(stem: Path, rng: Rng) -> Path:
        path = write_sound(stem.with_name(f"{stem.name}.wav"), rng.speech(), subtype="PCM_16")
        return _patch(path, b"RIFF", offset, new)

    return make


def _link(target: str) -> Callable[[Path, Rng], Path]:
    def make(stem: Path, _: Rng) -> Path:
        path = stem.with_name(f"{stem.name}.wav")
        path.symlink_to(target or path.name)
        return path

    return make


def _pipe(stem: Path, _: Rng) -> Path:
    path = stem.with_name(f"{stem.name}.wav")
    os.mkfifo(path)
    return path


def _with(index: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(samples: np.ndarray) -> np.ndarray:
        samples[index] = value
        return samples

    return change


def _garbled_flac(stem: Path, rng: Rng) -> Path:
    path = write_sound(stem.with_name(f"{stem.name}.flac"), rng.speech())
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    path.write_bytes(content)
    return path


def _joined_ogg(stem: Path, rng: Rng) -> Path:
    path = stem.with_name(f"{stem.name}.ogg")
    parts = [write_sound(path, rng.speech(), subtype="VORBIS").read_bytes() for _ in range(2)]
    path.write_bytes(b"".join(parts))
    return path


def _zipped(stem: Path, rng: Rng) -> Path:
    path = write_sound(stem.with_name(f"{stem.name}.wav"), rng.speech())
    path.write_bytes(gzip.compress(path.read_bytes()))
    return path


def _locked(stem: Path, rng: Rng) -> Path:
    path = write_sound(stem.with_name(f"{stem.name}.wav"), rng.speech())
    path.chmod(0)
    return path


_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 32044\n"
_VIDEO = b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(2000)
_DECODED = "cannot be decoded: "
_EMPTY = "is empty: it has 0 bytes"

BAD: dict[str, tuple[Callable[[Path, Rng], Path], str]] = {
    "0 bytes, WAV": (_bytes("wav", b""), _EMPTY),
    "0 bytes, FLAC": (_bytes("flac", b""), _EMPTY),
    "0 bytes, MP3": (_bytes("mp3", b""), _EMPTY),
    "text": (_bytes("wav", b"hello " * 500), _DECODED),
    "a web page": (_bytes("mp3", b"<!DOCTYPE html><html>404</html>" * 40), _DECODED),
    "a pointer of Git LFS": (_bytes("flac", _POINTER), _DECODED),
    "a video": (_bytes("wav", _VIDEO), _DECODED),
    "zeros only": (_bytes("wav", bytes(40_000)), _DECODED),
    "a header alone": (_bytes("wav", b"RIFF\xff\xff\xff\xffWAVEfmt "), _DECODED),
    "random bytes": (_bytes("opus", random.Random(0).randbytes(9000)), _DECODED),
    "compressed once more": (_zipped, _DECODED),
    "no samples": (_samples(lambda x: x[:0]), "is empty"),
    "too short": (_samples(lambda x: x[:160]), "is too short: 10 ms"),
    "silent": (_samples(np.zeros_like), "is silent: every sample is 0"),
    "constant": (_samples(lambda x: 0 * x + 0.25), "is silent: every sample is 0.25"),
    "NaN": (_samples(_with(700, np.nan)), "has NaN at sample 700"),
    "infinite": (_samples(_with(9, np.inf)), "has inf at sample 9"),
    "absurd values": (_samples(lambda x: 1e20 * x), "has values up to"),
    "500 Hz": (_samples(lambda x: x, 500), "has a sampling rate of 500 Hz"),
    "2 MHz": (_header(24, struct.pack("<I", 2_000_000)), "has a sampling rate of 2000000 Hz"),
    "1 GB by its header": (_header(40, struct.pack("<I", 10**9)), "is damaged: the file has"),
    "no channels": (_header(22, b"\0\0"), _DECODED),
    "an unknown codec": (_header(20, b"\x61\x01"), _DECODED),
    "a link to nothing": (_link("nowhere"), "is not a file"),
    "a link to itself": (_link(""), "is not a file"),
    "a device": (_link("/dev/zero"), "is not a file"),
    "a pipe": (_pipe, "is not a file"),
    "FLAC, garbled": (_garbled_flac, _DECODED),
    "OGG, joined": (_joined_ogg, "holds several recordings"),
} | {
    f"{options.get('format', suffix.upper())} {options.get('subtype', '')}, cut": (
        _cut(suffix, options),
        _DECODED if suffix == "flac" else "is damaged: ",
    )
    for suffix, options in FORMATS
}
"""By kind: what writes a file of it, given the path without a suffix, and how its reason starts."""
if os.getuid():  # root may read whatever there is
    BAD["unreadable"] = (_locked, _DECODED)


# --- the corpus -----------------------------------------------------------------------------------


class Written(NamedTuple):
    """What was written.

    Attributes:
        good: Ids of what can be read.
        bad: How the reason starts, by the id of what cannot be.
        kinds: Number of bad files by kind.
        duplicates: Files with the samples of another, among the good.
        passed_over: Files by suffix that are counted and not listed.
    """

    good: tuple[str, ...]
    bad: dict[str, str]
    kinds: dict[str, int]
    duplicates: int
    passed_over: dict[str, int]


def write(root: Path, files: int = 2000, seed: int = 0) -> Written:
    """Write so many good and bad files, three good for one bad, in a few folders."""
    rng = Rng(random.Random(seed), np.random.default_rng(seed))
    folders = [root / name for name in ("a", "a/b.wav", "TRAIN", "sous dossier é", "x/y")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    good: list[str] = []
    bad: dict[str, str] = {}
    kinds: collections.Counter[str] = collections.Counter()
    makers = list(BAD.items())
    duplicates = 0
    for number in range(files):
        folder = folders[number % len(folders)]
        if number % 4 == 3:
            kind, (make, reason) = makers[number // 4 % len(makers)]
            path = make(folder / f"{number:05}bad {NAMES[number % len(NAMES)]}", rng)
            bad[path.relative_to(root).as_posix()] = reason
            kinds[kind] += 1
            continue
        if number % 100 == 50:  # a copy, or a link
            path = folder / f"{number:05}copy.wav"
            original = write_sound(folder / f"{number:05}original.wav", rng.speech())
            if number % 200 == 50:
                path.write_bytes(original.read_bytes())
            else:
                path.symlink_to(original.name)
            good.append(original.relative_to(root).as_posix())
            duplicates += 1
        else:
            path = _good(folder, number, rng)
        good.append(path.relative_to(root).as_posix())
    return Written(tuple(good), bad, dict(kinds), duplicates, _write_others(root, rng))


def _write_others(root: Path, rng: Rng) -> dict[str, int]:
    """What is not to be listed: hidden files, texts, video; and a folder that holds itself."""
    for name in (".hidden", "__MACOSX"):
        (root / name).mkdir()
    for name in (".x.wav", "a/._00000plain.wav", ".hidden/y.wav", "__MACOSX/._z.flac"):
        write_sound(root / name, rng.speech())
    for name in ("readme.txt", "Thumbs.db", "a/desktop.ini", "x.raw", "x.wav.part", "wav"):
        (root / name).write_bytes(b"text")
    (root / "a" / "again").symlink_to("../a")
    (root / "empty").mkdir()
    others = {".mp4": 3, ".m4a": 2, ".mkv": 1}
    for suffix, count in others.items():
        for index in range(count):
            (root / f"clip{index}{suffix}").write_bytes(_VIDEO)
    return others


def main() -> None:
    """Write a corpus and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    written = write(options.folder, options.files, options.seed)
    counts = {"good": len(written.good), "bad": len(written.bad), "kinds": written.kinds}
    print(json.dumps(counts, indent=1))


if __name__ == "__main__":
    main()
