"""Synthetic speech: texts read by the voices of py-nanotts, offline."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import soundfile

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


def write_corpus(texts: Iterable[SpokenText], folder: Path) -> Path:
    """Read texts aloud into FLAC files, and list them in manifest.tsv.

    Args:
        texts: What to read.
        folder: Where the files and the manifest go.

    Returns:
        The manifest, with the columns path, seconds, speaker and transcript.

    Raises:
        UserError: the voices are not installed.
    """
    texts = list(texts)
    lines = ["path\tseconds\tspeaker\ttranscript"]
    for text, pcm in zip(texts, _speak(texts), strict=True):
        path = folder / text.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with soundfile.SoundFile(path, "w", SAMPLE_RATE_HZ, channels=1, subtype="PCM_16") as file:
            file.buffer_write(pcm, "int16")
        seconds = len(pcm) / 2 / SAMPLE_RATE_HZ
        lines.append(f"{text.path}\t{seconds:.4f}\t{text.speaker}\t{text.text}")
    manifest = folder / "manifest.tsv"
    manifest.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return manifest


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
        raise UserError(f"no synthetic voices ({reason}); install them with: pip install .[demo]")
    return [base64.b64decode(line) for line in process.stdout.splitlines()]
