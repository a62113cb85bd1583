"""Synthetic speech: texts read by the voices of py-nanotts, offline."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from jaxtyping import Float32

from speechsim_jax.audio import letters
from speechsim_jax.audio.corpus import SAMPLE_RATE_HZ
from speechsim_jax.errors import UserError

# The library reads uninitialised memory, so its output depends on what was there before. In a
# process of its own, where glibc's malloc fills memory with a constant, output is reproducible.
_SPEAK = """
import base64, json, sys
from py_nanotts import NanoTTS
for arguments in json.load(sys.stdin):
    print(base64.b64encode(NanoTTS().speak(**arguments)).decode())
"""
_FILL_MEMORY = {"MALLOC_PERTURB_": "85"}

ALIGNMENTS = "alignments.tsv"
"""Next to the manifest."""

# Voice, speed and word.
_VoiceWord = tuple[str, float, str]


class SpokenText(NamedTuple):
    """A text and how it is read.

    Attributes:
        path: The FLAC file to write, relative to the folder of the manifest.
        speaker: The name of the speaker in the manifest.
        text: What is read, and the transcript in the manifest.
        voice: A voice of py-nanotts, e.g. en-GB.
        pitch: 1 for the voice's usual pitch.
        speed: 1 for the voice's usual speed.
    """

    path: str
    speaker: str
    text: str
    voice: str
    pitch: float
    speed: float = 1.0


def write_corpus(texts: Iterable[SpokenText], folder: Path, alignments: bool = False) -> Path:
    """Read texts aloud into FLAC files, and list them in manifest.tsv.

    Args:
        texts: What to read.
        folder: Where the files and the manifest go.
        alignments: Whether words and letters at estimated times go into alignments.tsv, with the
            columns path, tier ("word" or "letter"), start, end and label.

    Returns:
        The manifest, with the columns path, seconds, speaker and transcript.

    Raises:
        UserError: the voices are not installed.
    """
    texts = list(texts)
    words = _words_alone(texts) if alignments else {}
    spoken = _speak([*texts, *words.values()])
    lines = ["path\tseconds\tspeaker\ttranscript"]
    for text, pcm in zip(texts, spoken):
        path = folder / text.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with soundfile.SoundFile(path, "w", SAMPLE_RATE_HZ, channels=1, subtype="PCM_16") as file:
            file.buffer_write(pcm, "int16")
        seconds = len(pcm) / 2 / SAMPLE_RATE_HZ
        lines.append(f"{text.path}\t{seconds:.4f}\t{text.speaker}\t{text.text}")
    manifest = folder / "manifest.tsv"
    _write_lines(manifest, lines)
    if alignments:
        alone = dict(zip(words, spoken[len(texts) :]))
        _write_lines(folder / ALIGNMENTS, _aligned(texts, spoken, alone))
    return manifest


def _words_alone(texts: Sequence[SpokenText]) -> dict[_VoiceWord, SpokenText]:
    """The words of each voice, at the pitch at which it first says them."""
    alone: dict[_VoiceWord, SpokenText] = {}
    for text in texts:
        for word in letters.words_of(text.text):
            key = (text.voice, text.speed, word)
            alone.setdefault(key, text._replace(path="", text=word))
    return alone


def _aligned(
    texts: Sequence[SpokenText], spoken: Sequence[bytes], alone: Mapping[_VoiceWord, bytes]
) -> Iterator[str]:
    """The lines of an alignment file."""
    yield "path\ttier\tstart\tend\tlabel"
    # The pitch does not change the timing, so that one alignment is of all.
    known: dict[tuple[str, float, str, int], list[letters.Segment]] = {}
    for text, pcm in zip(texts, spoken):
        key = (text.voice, text.speed, text.text, len(pcm))
        if key not in known:
            words = {
                word: _samples(alone[text.voice, text.speed, word])
                for word in letters.words_of(text.text)
            }
            known[key] = letters.segments(text.text, _samples(pcm), words)
        for segment in known[key]:
            times = f"{segment.start:.4f}\t{segment.end:.4f}"
            yield f"{text.path}\t{segment.tier}\t{times}\t{segment.label}"


def _samples(pcm: bytes) -> Float32[np.ndarray, " sample"]:
    return np.frombuffer(pcm, np.int16).astype(np.float32) / 32768


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _speak(texts: list[SpokenText]) -> list[bytes]:
    """The 16-bit samples of each text."""
    arguments = [
        {"text": text.text, "voice": text.voice, "pitch": text.pitch, "speed": text.speed}
        for text in texts
    ]
    process = subprocess.run(
        [sys.executable, "-c", _SPEAK],
        input=json.dumps(arguments),
        capture_output=True,
        text=True,
        env=os.environ | _FILL_MEMORY,
    )
    if process.returncode:
        reason = (process.stderr.splitlines() or [f"exit code {process.returncode}"])[-1]
        raise UserError(
            f"no synthetic voices ({reason}); install them with: pip install py-nanotts"
        )
    return [base64.b64decode(line) for line in process.stdout.splitlines()]
