"""The paper in miniature, offline: small trained encoders on synthetic speech, in minutes.

    python -m experiments.demo --workdir=runs/demo

The encoders are the zoo's, which come with the package: trained with the objectives of wav2vec 2.0
and of HuBERT on an hour of speech, some of them fine-tuned. Synthetic voices read them a few
minutes of text. From there on it is exactly what `experiments.replicate --preset=zoo` does with
your own recordings.
"""

import dataclasses
import itertools
from pathlib import Path

from absl import flags

from speechsim_jax.analyses.replication import findings
from speechsim_jax.audio import synthetic
from speechsim_jax.commands import compare, replicate
from speechsim_jax.commands import flags as _flags

_USED = ("figure_formats", "figure_style")
for _name in _USED:
    flags.declare_key_flag(_name)
flags.adopt_module_key_flags(_flags)  # for --help

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


@dataclasses.dataclass(frozen=True)
class Config:
    """Where the demo puts its speech and results."""

    workdir: str = "runs/demo"
    seed: int = 0
    figure_formats: tuple[str, ...] = ("png",)
    figure_style: str = "labelled"


def write_speech(folder: Path) -> Path:
    """Eight minutes of speech, six voices at two pitches each; returns its manifest."""
    readings = []
    for (voice, pitch), high in itertools.product(_VOICES.items(), _PITCHES):
        speaker = f"{voice}-{'high' if high > 1 else 'low'}"
        readings += [
            synthetic.SpokenText(f"{speaker}/{index}.flac", speaker, sentence, voice, pitch * high)
            for index, sentence in enumerate(_SENTENCES)
        ]
    return synthetic.write_corpus(readings, folder)


def run(config: Config) -> replicate.Outcome:
    """Have the speech read, then test the paper's claims on it. Raises UserError."""
    workdir = _flags.new_workdir(config.workdir, overwrite=True)
    audio = write_speech(workdir / "speech")
    return replicate.run(
        replicate.of_preset(
            "zoo",
            audio=str(audio),
            workdir=str(workdir),
            seed=config.seed,
            note=NOTE,
            overwrite=True,
            figure_formats=config.figure_formats,
            figure_style=config.figure_style,
        )
    )


def main() -> None:
    """Run the demo and say what came out."""
    # Importing others brought their flags along, and none may be ignored in silence.
    compare.refuse_flags("the demo", _USED)
    replicate.refuse_own_flags("the demo")
    config = Config(
        workdir=_flags.WORKDIR.value or "runs/demo",
        seed=_flags.SEED.value,
        figure_formats=tuple(flags.FLAGS.figure_formats),
        figure_style=flags.FLAGS.figure_style,
    )
    _flags.use_compilation_cache()
    outcome = run(config)
    print(findings.table(outcome.findings))
    print(
        f"\nwritten: {config.workdir}/findings.md, report.html, result.nc and figures beside them"
    )
