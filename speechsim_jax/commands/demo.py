"""The paper in miniature, offline, in minutes: small encoders on synthetic speech.

    speechsim demo --workdir=runs/demo

The encoders are the zoo's, which come with the package: trained with the objectives of wav2vec 2.0
and of HuBERT on an hour of speech, some of them fine-tuned. Synthetic voices read them a few
minutes of text. Its letters, at estimated times, are the labels of the claim about concepts. From
there on it is exactly what `speechsim replicate --preset=zoo` does with your own recordings.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

from absl.flags import FlagValues

from speechsim_jax.commands import flags, replicate
from speechsim_jax.commands.compilation_cache import use_compilation_cache
from speechsim_jax.commands.workdir import new_workdir
from speechsim_jax.settings import Output, Settings, documented

NOTE = "small encoders of the zoo, synthetic speech"

_VOICES = {"en-US": 1.0, "en-GB": 1.0, "de-DE": 1.1, "es-ES": 0.9, "fr-FR": 1.05, "it-IT": 0.95}
_PITCHES = (0.8, 1.2)
_SENTENCES = (
    "The harbour was quiet before the first boats came in with the morning tide.",
    "She counted seven lanterns along the wall and wrote the number in her book.",
    "Nobody could say why the clock in the tower had stopped at a quarter past four.",
    "Two languages may share a word and still disagree about what it means.",
    "Bring the long ladder, the short rope, and whatever is left of the green paint.",
    "A speech model listens to thousands of hours before it hears the first label.",
    "The train leaves at nine, but the bridge is closed and we shall have to walk.",
    "Every window on the north side of the street was lit when the snow began.",
)


@documented
@dataclasses.dataclass(frozen=True)
class Config:
    """Where the demo puts its speech and results."""

    workdir: str = flags.workdir("runs/demo")
    seed: int = flags.like(Settings, "seed")
    figure_formats: tuple[str, ...] = flags.figure_formats()
    figure_style: str = flags.figure_style()
    progress: bool = flags.progress()

    def __post_init__(self) -> None:
        flags.check_figures(self.figure_formats, self.figure_style)


def write_speech(folder: Path) -> Path:
    """Speech of six voices at two pitches each, with letters; returns its manifest."""
    from speechsim_jax.audio import synthetic

    readings = []
    for (voice, pitch), high in itertools.product(_VOICES.items(), _PITCHES):
        speaker = f"{voice}-{'high' if high > 1 else 'low'}"
        readings += [
            synthetic.SpokenText(f"{speaker}/{index}.flac", speaker, sentence, voice, pitch * high)
            for index, sentence in enumerate(_SENTENCES)
        ]
    return synthetic.write_corpus(readings, folder, alignments=True)


def run(config: Config) -> replicate.Outcome:
    """Have the speech read, then test the paper's claims on it. Raises UserError."""
    from speechsim_jax.audio import synthetic

    workdir = new_workdir(config.workdir, overwrite=True)
    audio = write_speech(workdir / "speech")
    letters = audio.with_name(synthetic.ALIGNMENTS)
    return replicate.run(
        replicate.of_preset(
            "zoo",
            audio=str(audio),
            workdir=str(workdir),
            settings={"seed": config.seed, "labels": (f"letter:{letters}:letter",)},
            output=Output(note=NOTE, progress=config.progress),
            overwrite=True,
            figure_formats=config.figure_formats,
            figure_style=config.figure_style,
        )
    )


def define_flags() -> FlagValues:
    """The flags of this command."""
    return flags.define(Config, flags.Terminal)


def main(values: FlagValues) -> None:
    """Run the demo and print what became of the claims."""
    config = flags.from_flags(values, Config, progress=not values["quiet"].value)
    use_compilation_cache(values["compilation_cache"].value)
    outcome = run(config)

    from speechsim_jax.analyses.replication import findings

    print(findings.table(outcome.findings))
    print(f"\n{outcome.result.errors_note()}")
    print(
        f"\nwritten: {config.workdir}/findings.md, report.html, result.nc and figures next to them"
    )
