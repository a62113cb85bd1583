"""Synthetic speech of known text, to fine-tune on where transcripts are few.

    speechsim synthesise --corpus=speech/manifest.tsv \\
        --include=librispeech_test_other/* --held_out=libri-1688,libri-533 --workdir=runs/synthetic

writes synthetic/VOICE/NNN.flac and manifest.tsv (path, seconds, speaker, transcript). English
voices of py-nanotts (`pip install .[demo]`) at several pitches and speeds read pieces of the
transcripts of a corpus. What the speakers held out have said is read by one voice alone, which is
the one to hold out with them. --write_alignments adds alignments.tsv.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from absl.flags import FlagValues

from speechsim_jax.commands import flags, training
from speechsim_jax.commands.workdir import new_workdir
from speechsim_jax.errors import UserError
from speechsim_jax.settings import Settings

if TYPE_CHECKING:
    import numpy as np

    from speechsim_jax.audio import synthetic
    from speechsim_jax.training.recipe import Audio

_VOICES = tuple(itertools.product(("en-US", "en-GB"), ((0.8, 0.9), (1.0, 1.0), (1.25, 1.1))))
HELD_OUT_VOICE = "synthetic-en-GB-1.0"
_WORDS = (3, 9)


@dataclasses.dataclass(frozen=True)
class Config:
    """Whose transcripts are read, and how many pieces by each voice.

    Attributes:
      corpus: folders, manifests (.tsv) or lists (.txt) of audio with transcripts.
      workdir: folder for the speech; made if missing.
      audio: which utterances, and which speakers are held out.
      sentences: how many pieces of text each voice reads.
      seed: seed of the pieces.
      write_alignments: whether words and letters at estimated times are written, too.
      overwrite: whether a manifest may be replaced.
    """

    corpus: tuple[str, ...]
    workdir: str
    audio: Audio
    sentences: int = 120
    seed: int = 0
    write_alignments: bool = False
    overwrite: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Flags(training.AudioChanges):
    corpus: tuple[str, ...] = training.corpus()
    sentences: int = flags.own(120, "How many pieces of text each voice reads.", at_least=1)
    seed: int = flags.like(Settings, "seed")
    write_alignments: bool = flags.own(
        False, "Write alignments.tsv, too: words and letters at estimated times, no phones."
    )
    workdir: str = flags.workdir()
    overwrite: bool = flags.overwrite()
    quiet: bool = flags.like(flags.Terminal, "quiet")


def run(config: Config) -> Path:
    """Write the speech.

    Returns:
      Its manifest.

    Raises:
      UserError: a corpus without transcripts of both kinds of speakers, or a bad workdir.
    """
    from speechsim_jax.audio import synthetic
    from speechsim_jax.training.data.splits import open_split

    split = open_split(config.corpus, config.audio)
    texts, others = (
        [source.transcript for source in part if source.transcript.strip()]
        for part in (split.training, split.held_out)
    )
    if not texts or not others:
        raise UserError("expected transcripts of speakers to train on and of speakers held out")
    workdir = new_workdir(config.workdir, config.overwrite, "manifest.tsv")
    return synthetic.write_corpus(
        _readings(texts, others, config), workdir, config.write_alignments
    )


def _readings(
    texts: list[str], others: list[str], config: Config
) -> Iterator[synthetic.SpokenText]:
    """What each voice reads, in its own order."""
    import numpy as np

    from speechsim_jax.audio import synthetic

    for number, (voice, (pitch, speed)) in enumerate(_VOICES):
        speaker = f"synthetic-{voice}-{pitch}"
        rng = np.random.default_rng([config.seed, number])
        said = others if speaker == HELD_OUT_VOICE else texts
        for index, text in enumerate(_pieces(said, config.sentences, rng)):
            path = f"synthetic/{voice}-{pitch}/{index:03}.flac"
            yield synthetic.SpokenText(path, speaker, text, voice, pitch, speed)


def _pieces(texts: list[str], number: int, rng: np.random.Generator) -> list[str]:
    """Runs of consecutive words, each of one text."""
    pieces = []
    for _ in range(number):
        words = texts[rng.integers(len(texts))].split()
        count = min(int(rng.integers(_WORDS[0], _WORDS[1] + 1)), len(words))
        first = int(rng.integers(len(words) - count + 1))
        pieces.append(" ".join(words[first : first + count]))
    return pieces


def define_flags() -> FlagValues:
    """The flags of this command."""
    return flags.define(_Flags)


def config_from_flags(values: FlagValues) -> Config:
    """The flags as a Config; raises UserError for what is missing or malformed."""
    given = flags.from_flags(values, _Flags)

    from speechsim_jax.training.recipe import Recipe

    audio = training.changed(Recipe(), given).audio
    return Config(
        given.corpus,
        given.workdir,
        audio,
        given.sentences,
        given.seed,
        given.write_alignments,
        given.overwrite,
    )


def main(values: FlagValues) -> None:
    """Run from the flags and print where the speech is."""
    print(f"written: {run(config_from_flags(values))}")
