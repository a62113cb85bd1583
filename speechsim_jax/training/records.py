"""Whose speech a training heard: from what it left behind, and the audio it was given."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechsim_jax.audio.corpus import Source
from speechsim_jax.errors import UserError
from speechsim_jax.models.checkpoint_files import read_json
from speechsim_jax.training.data.splits import Split, open_split, speaker_of
from speechsim_jax.training.recipe import Audio

# Written beside a card: which audio was trained on, and which was held out.
AUDIO_FILE = "audio.json"


def model_name(source: str) -> str:
    """`runs/zoo/NAME/model` is called NAME, as is `zoo/NAME`."""
    path = Path(source)
    return path.parent.name if path.name == "model" else path.name


def record(folder: Path) -> dict[str, Any]:
    """training.json of a trained model. Raises UserError if it is not there."""
    path = folder / "training.json"
    if not path.is_file():
        raise UserError(
            f"{folder}: has no training.json; expected the model of a finished training"
        )
    return read_json(path)


def split_of(folder: Path, corpora: Sequence[str]) -> Split:
    """The utterances that a training heard, and those it held out, of the audio it was given.

    Raises UserError where the audio is not what training.json has the fingerprint of.
    """
    told = record(folder)
    given = {name: _of_toml(value) for name, value in told["recipe"]["audio"].items()}
    split = open_split(corpora, Audio(**given))
    if limits := told["recipe"].get("utterances"):  # fine-tuning leaves these out
        longest = limits["max_seconds"]
        training, held_out = _usable(split.training, longest), _usable(split.held_out, longest)
        split = Split(training, held_out, split.corpus_of)
    if split.fingerprint() != told["audio"]:
        raise UserError(
            f"{folder}: was trained on other audio than {', '.join(corpora)}; give the corpora "
            "that the training was given"
        )
    return split


def _of_toml(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _usable(sources: tuple[Source, ...], max_seconds: float) -> tuple[Source, ...]:
    said = (source for source in sources if source.transcript.strip())
    return tuple(source for source in said if (source.seconds or 0.0) <= max_seconds)


def speakers(folder: Path, corpus: str) -> set[str]:
    """The speakers whom a trained model heard, its pretraining included.

    From its audio.json, else from training.json and the audio. Raises UserError where neither says
    it.
    """
    if (folder / AUDIO_FILE).is_file():
        parts = read_json(folder / AUDIO_FILE)["training"]
        return {speaker for part in parts for speaker in part["speakers"]}
    told = record(folder)
    if "pretrained" in told:
        raise UserError(
            f"{folder}: was fine-tuned, and {AUDIO_FILE}, which says whom its pretraining heard, "
            "is missing; write it with experiments.card"
        )
    return {speaker_of(source) for source in split_of(folder, [corpus]).training}


def write_audio(path: Path, content: dict[str, Any]) -> None:
    """audio.json, a line for each corpus."""
    parts = ",\n".join(
        f' "{name}": [\n' + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n ]"
        for name, rows in content.items()
    )
    path.write_text("{\n" + parts + "\n}\n")
