"""Synthetic voices of py-nanotts, which read texts offline, in seconds."""

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

# The library reads memory that it has not set: what it says depends on what was there before. Its
# own process, where malloc fills memory (glibc's does), says the same every time.
_SPEAK = """
import base64, json, sys
from py_nanotts import NanoTTS
for given in json.load(sys.stdin):
    print(base64.b64encode(NanoTTS().speak(**given)).decode())
"""
_FILLED = {"MALLOC_PERTURB_": "85"}


class SpokenText(NamedTuple):
    """A text, who reads it, how, and into which FLAC file."""

    path: str
    speaker: str
    text: str
    voice: str
    pitch: float
    speed: float = 1.0


def record(readings: Iterable[SpokenText], folder: Path) -> Path:
    """Write the files into `folder`, and manifest.tsv (path, seconds, speaker, transcript).

    Returns the manifest. Raises UserError where there are no voices.
    """
    readings = list(readings)
    lines = ["path\tseconds\tspeaker\ttranscript"]
    for reading, pcm in zip(readings, _spoken(readings), strict=True):
        path = folder / reading.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with soundfile.SoundFile(path, "w", SAMPLE_RATE_HZ, channels=1, subtype="PCM_16") as file:
            file.buffer_write(pcm, "int16")
        seconds = len(pcm) / 2 / SAMPLE_RATE_HZ
        lines.append(f"{reading.path}\t{seconds:.4f}\t{reading.speaker}\t{reading.text}")
    manifest = folder / "manifest.tsv"
    manifest.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return manifest


def _spoken(readings: list[SpokenText]) -> list[bytes]:
    """16-bit samples of each."""
    given = [
        {"text": each.text, "voice": each.voice, "pitch": each.pitch, "speed": each.speed}
        for each in readings
    ]
    done = subprocess.run(
        [sys.executable, "-c", _SPEAK],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        env=os.environ | _FILLED,
    )
    if done.returncode:
        reason = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"no synthetic voices ({reason}); install them with: pip install .[demo]")
    return [base64.b64decode(line) for line in done.stdout.splitlines()]
