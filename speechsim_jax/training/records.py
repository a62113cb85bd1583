"""Which audio a trained model used, from the files that its training left."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechsim_jax.errors import UserError
from speechsim_jax.models.checkpoint_files import read_json
from speechsim_jax.runtime.atomic_write import write_text
from speechsim_jax.training.data.splits import Split, open_split, speaker_of, transcribed
from speechsim_jax.training.recipe import Audio

# Written next to a model card: the audio that was trained on, and that which was held out.
AUDIO_FILE = "audio.json"


def model_name(source: str) -> str:
    """Name of a model by its source: NAME for `runs/zoo/NAME/model` and for `zoo/NAME`."""
    path = Path(source)
    return path.parent.name if path.name == "model" else path.name


def read_training_record(folder: Path) -> dict[str, Any]:
    """training.json of a trained model. Raises UserError if it is missing."""
    path = folder / "training.json"
    if not path.is_file():
        raise UserError(
            f"{folder}: has no training.json; expected the model of a finished training"
        )
    return read_json(path)


def training_split(folder: Path, corpora: Sequence[str]) -> Split:
    """The utterances that a training used, and those that it held out.

    Args:
        folder: Folder of the trained model.
        corpora: The audio of the training.

    Raises:
        UserError: The audio does not have the fingerprint in training.json.
    """
    record = read_training_record(folder)
    audio = {name: _from_json(value) for name, value in record["recipe"]["audio"].items()}
    split = open_split(corpora, Audio(**audio))
    if limits := record["recipe"].get("utterances"):  # only fine-tuning has these limits
        longest = limits["max_seconds"]
        training = transcribed(split.training, longest)
        split = Split(training, transcribed(split.held_out, longest), split.corpus_of)
    if split.fingerprint() != record["audio"]:
        raise UserError(
            f"{folder}: was trained on other audio than {', '.join(corpora)}; give the corpora "
            "that the training was given"
        )
    return split


def _from_json(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def training_speakers(folder: Path, corpus: str) -> set[str]:
    """The speakers that a model was trained on, in pretraining and fine-tuning.

    Args:
        folder: Folder of the trained model.
        corpus: The audio of the training, which is opened if the folder has no audio.json.

    Raises:
        UserError: The files of the folder do not tell.
    """
    if (folder / AUDIO_FILE).is_file():
        parts = read_json(folder / AUDIO_FILE)["training"]
        return {speaker for part in parts for speaker in part["speakers"]}
    if "pretrained" in read_training_record(folder):
        raise UserError(
            f"{folder}: was fine-tuned, and {AUDIO_FILE}, which names the speakers of its "
            "pretraining, is missing; write it with speechsim card"
        )
    return {speaker_of(source) for source in training_split(folder, [corpus]).training}


def write_audio(path: Path, content: dict[str, Any]) -> None:
    """Write audio.json with one line for each corpus."""
    parts = ",\n".join(
        f' "{name}": [\n' + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n ]"
        for name, rows in content.items()
    )
    write_text(path, "{\n" + parts + "\n}\n")
