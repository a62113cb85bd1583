"""The main job offline: four small random encoders on synthetic speech, in about a minute.

    python -m experiments.demo --workdir=runs/demo

The encoders are NOT trained: two families x two sizes with random weights, written as the folders
that Hugging Face models come in. The speech is read by six synthetic voices. From there on it is
exactly what `experiments.compare` does with your own folders.
"""

import dataclasses
import itertools
from pathlib import Path

import soundfile
from absl import flags

import speechsim_jax as ss
from experiments import _flags, compare
from speechsim_jax.errors import UserError
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.random_weights import random_tensors
from speechsim_jax.models.saving import save_folder

_USED = ("figure_formats", "figure_style")
for _name in _USED:
    flags.declare_key_flag(_name)
flags.adopt_module_key_flags(_flags)  # for --help

NOTE = "encoders with random weights (not trained), synthetic speech"

_SMALL = EncoderConfig(
    family="wav2vec2",
    hidden_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=384,
    conv_dim=(64,) * 7,
    num_conv_pos_embeddings=64,
    num_conv_pos_embedding_groups=8,
)
_LARGE = dataclasses.replace(
    _SMALL,
    hidden_size=128,
    num_hidden_layers=6,
    intermediate_size=512,
    feat_extract_norm="layer",
    conv_bias=True,
    do_stable_layer_norm=True,
)

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
    """Where the demo puts its models, speech and results."""

    workdir: str = "runs/demo"
    seed: int = 0
    figure_formats: tuple[str, ...] = ("png",)
    figure_style: str = "labelled"


def write_encoders(folder: Path, seed: int) -> list[Path]:
    """Four encoder folders with random weights."""
    paths = []
    for family, (size, config) in itertools.product(
        ("wav2vec2", "hubert"), (("small", _SMALL), ("large", _LARGE))
    ):
        config = dataclasses.replace(config, family=family)
        path = folder / f"random-{family}-{size}"
        paths.append(save_folder(path, config, random_tensors(config, seed + len(paths))))
    return paths


def write_speech(folder: Path) -> Path:
    """About five minutes of speech: six voices at two pitches, a folder each."""
    try:
        from py_nanotts import NanoTTS
    except ImportError:
        raise UserError(
            "the demo's voices are missing; install them with: pip install .[demo]"
        ) from None
    synthesiser = NanoTTS()
    for (voice, pitch), high in itertools.product(_VOICES.items(), _PITCHES):
        speaker = folder / f"{voice}-{'high' if high > 1 else 'low'}"
        speaker.mkdir(parents=True, exist_ok=True)
        for index, sentence in enumerate(_SENTENCES):
            pcm = synthesiser.speak(sentence, voice=voice, pitch=pitch * high)
            with soundfile.SoundFile(
                speaker / f"{index}.flac", "w", 16_000, channels=1, subtype="PCM_16"
            ) as file:
                file.buffer_write(pcm, "int16")
    return folder


def run(config: Config) -> ss.SimilarityResult:
    """Write encoders and speech, then compare them; returns the result."""
    workdir = _flags.new_workdir(config.workdir, overwrite=True)
    models = write_encoders(workdir / "models", config.seed)
    audio = write_speech(workdir / "speech")
    return compare.run(
        compare.Config(
            models=tuple(str(model) for model in models),
            audio=str(audio),
            workdir=str(workdir),
            note=NOTE,
            overwrite=True,
            figure_formats=config.figure_formats,
            figure_style=config.figure_style,
        )
    )


def main() -> None:
    """Run the demo and say what was made."""
    # Importing `compare` brought its flags along, and none may be ignored in silence.
    compare.refuse_flags("the demo", _USED)
    config = Config(
        workdir=_flags.WORKDIR.value or "runs/demo",
        seed=_flags.SEED.value,
        figure_formats=tuple(flags.FLAGS.figure_formats),
        figure_style=flags.FLAGS.figure_style,
    )
    _flags.use_compilation_cache()
    result = run(config)
    print(result.summary())
    print("\nNote: nothing here is trained; the figures show what untrained networks look like.")
    print(f"written: {config.workdir}/result.nc, report.html and figures beside it")


if __name__ == "__main__":
    _flags.start(main)
