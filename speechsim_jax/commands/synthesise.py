"""Synthetic speech of known text, to fine-tune on where transcripts are few: offline, in seconds.

    python -m experiments.synthesise --corpus=speech/manifest.tsv \\
        --include=librispeech_test_other/* --held_out=libri-1688,libri-533 --workdir=runs/synthetic

writes synthetic/VOICE/NNN.flac and manifest.tsv (path, seconds, speaker, transcript). English
voices of py-nanotts (`pip install .[demo]`) at several pitches and speeds read pieces of the
transcripts of a corpus. What the speakers held out have said is read by one voice alone, which is
the one to hold out with them.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags

from speechsim_jax.audio import synthetic
from speechsim_jax.commands import compare, training
from speechsim_jax.commands import flags as _flags
from speechsim_jax.errors import UserError
from speechsim_jax.training.data.splits import open_split
from speechsim_jax.training.recipe import Audio

_SENTENCES = flags.DEFINE_integer(
    "sentences", 120, "How many pieces of text each voice reads.", lower_bound=1
)
flags.adopt_module_key_flags(_flags)  # for --help
flags.adopt_module_key_flags(training)

_VOICES = tuple(itertools.product(("en-US", "en-GB"), ((0.8, 0.9), (1.0, 1.0), (1.25, 1.1))))
HELD_OUT_VOICE = "synthetic-en-GB-1.0"
_WORDS = (3, 9)


@dataclasses.dataclass(frozen=True)
class Config:
    """Whose transcripts are read, and how many pieces by each voice."""

    corpus: tuple[str, ...]
    workdir: str
    audio: Audio
    sentences: int = 120
    seed: int = 0
    overwrite: bool = False


def run(config: Config) -> Path:
    """Write the speech; returns its manifest. Raises UserError."""
    split = open_split(config.corpus, config.audio)
    texts, others = (
        [source.transcript for source in part if source.transcript.strip()]
        for part in (split.training, split.held_out)
    )
    if not texts or not others:
        raise UserError("expected transcripts of speakers to train on and of speakers held out")
    workdir = _flags.new_workdir(config.workdir, config.overwrite, "manifest.tsv")
    return synthetic.write_corpus(_readings(texts, others, config), workdir)


def _readings(
    texts: list[str], others: list[str], config: Config
) -> Iterator[synthetic.SpokenText]:
    """What each voice reads, in its own order."""
    for number, (voice, (pitch, speed)) in enumerate(_VOICES):
        speaker = f"synthetic-{voice}-{pitch}"
        rng = np.random.default_rng([config.seed, number])
        said = others if speaker == HELD_OUT_VOICE else texts
        for index, text in enumerate(_pieces(said, config.sentences, rng)):
            path = f"synthetic/{voice}-{pitch}/{index:03}.flac"
            yield synthetic.SpokenText(path, speaker, text, voice, pitch, speed)


def _pieces(texts: list[str], number: int, rng: np.random.Generator) -> list[str]:
    """So many runs of words that follow each other in some text."""
    pieces = []
    for _ in range(number):
        words = texts[rng.integers(len(texts))].split()
        count = min(int(rng.integers(_WORDS[0], _WORDS[1] + 1)), len(words))
        first = int(rng.integers(len(words) - count + 1))
        pieces.append(" ".join(words[first : first + count]))
    return pieces


def main() -> None:
    """Run from the flags and say what was made."""
    compare.refuse_flags("synthetic speech")
    for flag in training.OF_TRAINING:
        if flag.present:
            raise UserError(f"--{flag.name} is not for synthetic speech")
    run_ = training.run_from_flags()
    audio = training.with_flags(training.Recipe()).audio
    config = Config(
        run_.corpus, run_.workdir, audio, _SENTENCES.value, _flags.SEED.value, run_.overwrite
    )
    print(f"written: {run(config)}")
