"""A model card for a trained model, and the folder that is shipped.

    speechsim card --trained=runs/zoo/contrastive_s --corpus=speech/manifest.tsv \\
        --probe=runs/zoo/probe/probe.json --workdir=speechsim_jax/models/zoo/contrastive_s

copies TRAINED/model and writes README.md, a card in Hugging Face's form, and audio.json: which
audio it was trained on, with its licences, and whose speech was held out. Everything is read from
training.json, metrics.jsonl and held_out.json of the training, from the manifest of the audio (its
fingerprint must be the one in training.json) and from probe.json. A fine-tuned model also needs
--began_with, the folder with the card of the model that was fine-tuned. Audio under a
ShareAlike licence is refused. From a notebook: `run(Config(...))`.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.flags import FlagValues

from speechsim_jax.commands import flags, training
from speechsim_jax.commands.workdir import write_json
from speechsim_jax.errors import UserError
from speechsim_jax.runtime.atomic_write import write_text

if TYPE_CHECKING:
    from speechsim_jax.audio.corpus import Source

_SHARE_ALIKE = ("-SA", "sharealike", "share alike")
_LICENCE_FOLDER = "licences"


@dataclasses.dataclass(frozen=True)
class Config:
    """What was trained, on what, and where the card goes.

    Attributes:
      trained: workdir of a finished training.
      corpus: the audio that it was given.
      workdir: folder for the model and its card.
      began_with: folder with the card of the model that was fine-tuned.
      probe: a probe.json of `speechsim probe`.
      licences: licence of each corpus (by its folder's name) whose manifest has no column
        `licence`.
      overwrite: whether a card may be replaced.
    """

    trained: str
    corpus: tuple[str, ...]
    workdir: str
    began_with: str | None = None
    probe: str | None = None
    licences: Mapping[str, str] = dataclasses.field(default_factory=dict)
    overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class _Flags:
    trained: str = flags.own(flags.REQUIRED, "Workdir of a finished training.")
    corpus: tuple[str, ...] = training.corpus()
    workdir: str = flags.workdir()
    began_with: str | None = flags.own(
        None, "Folder with the card of the model that was fine-tuned."
    )
    probe: str | None = flags.own(None, "A probe.json of speechsim probe.")
    licence: tuple[str, ...] = flags.repeated(
        "CORPUS=LICENCE of a corpus whose manifest has no column `licence`; may be repeated."
    )
    overwrite: bool = flags.overwrite()
    quiet: bool = flags.like(flags.Terminal, "quiet")


def run(config: Config) -> Path:
    """Write the folder.

    Returns:
      The card.

    Raises:
      UserError: an unfinished training, other audio, audio that may not be shipped, a bad workdir.
    """
    from speechsim_jax.analyses import model_card
    from speechsim_jax.models.checkpoint_files import open_checkpoint, read_json
    from speechsim_jax.training import records

    trained = Path(config.trained).expanduser()
    folder = trained / "model"
    record = records.read_training_record(folder)
    workdir = Path(config.workdir).expanduser()
    card = workdir / "README.md"
    if card.exists() and not config.overwrite:
        raise UserError(f"{card} exists; choose another --workdir or pass --overwrite")
    audio, texts = _audio(config, folder, record)
    probe = read_json(Path(config.probe)) if config.probe else None
    lines = _lines(trained / "metrics.jsonl")
    checkpoint = open_checkpoint(folder)
    held_out = trained / "held_out.json"
    facts = model_card.Facts(
        name=workdir.name,
        record=record,
        config=checkpoint.config,
        parameters=sum(tensor.size for tensor in checkpoint.tensors().values()),
        file_bytes=sum((folder / name).stat().st_size for name in checkpoint.files),
        first=lines[0] if lines else {},
        curve=lines,
        by_speaker=read_json(held_out).get("speakers", {}) if held_out.is_file() else {},
        audio=audio,
        licences=texts,
        probe=probe,
        began_with=None if config.began_with is None else Path(config.began_with).name,
    )
    text = model_card.text(facts)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir()):
            if path.is_file() and workdir.resolve() != folder.resolve():
                shutil.copyfile(path, workdir / path.name)  # without its permissions
        write_json(workdir / "training.json", _portable(record))
        records.write_audio(workdir / records.AUDIO_FILE, audio)
        write_text(card, text)
    except OSError as error:
        raise UserError(f"{workdir}: cannot be written ({error})") from error
    return card


# --- facts ---


def _lines(path: Path) -> list[dict[str, Any]]:
    """The metrics on held-out speakers, from before the first step on."""
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["of"] == "held_out"]


def _portable(record: dict[str, Any]) -> dict[str, Any]:
    """training.json with a teacher's name in place of its path."""
    from speechsim_jax.training import records

    of = record.get("units", {}).get("of")
    if not isinstance(of, dict) or "source" not in of:
        return record
    units = record["units"] | {"of": of | {"source": records.model_name(of["source"])}}
    return record | {"units": units}


def _audio(
    config: Config, folder: Path, record: Mapping[str, Any]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """The audio that was trained on and held out, by corpus; and the texts of its licences.

    Raises UserError for audio under a ShareAlike licence, or without a licence.
    """
    from speechsim_jax.models.checkpoint_files import open_checkpoint, read_json
    from speechsim_jax.training import records

    split = records.training_split(folder, config.corpus)
    rows: dict[str, dict[str, str]] = {}
    texts: dict[str, str] = {}
    for corpus in config.corpus:
        rows |= _manifest(Path(corpus).expanduser(), config.licences)
        texts |= _licence_texts(Path(corpus).expanduser().parent / _LICENCE_FOLDER)
    audio = {
        "training": _by_corpus(split.training, rows, split.corpus_of),
        "held_out": _by_corpus(split.held_out, rows, split.corpus_of),
    }
    if ("pretrained" in record) != (config.began_with is not None):
        raise UserError(
            f"{folder}: was {'' if 'pretrained' in record else 'not '}fine-tuned; --began_with "
            "names the folder with the card of the model that was, and is for such models alone"
        )
    if config.began_with is not None:
        before = Path(config.began_with).expanduser()
        if open_checkpoint(before).digest() != record["pretrained"]:
            raise UserError(f"{before}: is not the model that {folder} was fine-tuned from")
        earlier = read_json(before / records.AUDIO_FILE)
        trained_on = {name for part in earlier["training"] for name in part["speakers"]}
        audio["training"] = _united(earlier["training"], audio["training"])
        audio["held_out"] = [
            part | {"heard_in_pretraining": sorted(trained_on & set(part["speakers"]))}
            for part in audio["held_out"]
        ]
    for part in audio["training"]:
        if any(word.lower() in part["licence"].lower() for word in _SHARE_ALIKE):
            raise UserError(
                f"{folder}: was trained on {part['corpus']} ({part['licence']}); weights of "
                "ShareAlike audio are not shipped: exclude it and train again"
            )
    used = {part["corpus"].split()[0] for part in audio["training"]}
    return audio, {name: text for name, text in texts.items() if name in used}


def _manifest(path: Path, licences: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The rows of a manifest by utterance, each with a corpus and a licence."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a manifest ({error})") from error
    label = path.parent.name
    by_id = {}
    for row in rows:
        licence = row.get("licence") or licences.get(label)
        if not licence:
            raise UserError(
                f"{path}: {row['path']} has no licence; name the licence of the whole corpus with "
                f"--licence={label}=..."
            )
        of = {"corpus": label, "source_repo": "", "source_commit": ""}
        of |= {name: row[name] for name in of if row.get(name)}
        by_id[row.get("id") or Path(row["path"]).as_posix()] = of | {"licence": licence}
    return by_id


def _licence_texts(folder: Path) -> dict[str, str]:
    """The texts in a corpus's folder of licences, by the first word of the corpus's name."""
    texts = {}
    for path in sorted(folder.glob("*")):
        name = path.stem.removesuffix("-LICENSE")
        if path.stem.endswith("-LICENSE") or (path.suffix == ".txt" and "-" not in name):
            texts[name] = path.read_text(encoding="utf-8").strip()
    return texts


def _by_corpus(
    sources: Iterable[Source], rows: Mapping[str, Mapping[str, str]], corpus_of: Mapping[str, str]
) -> list[dict[str, Any]]:
    """A row for each corpus, licence and origin."""
    from speechsim_jax.audio.corpus import total_seconds
    from speechsim_jax.training.data.splits import speaker_of

    parts: dict[tuple[str, ...], list[Source]] = {}
    for source in sources:
        row = rows[source.id]
        key = row["corpus"], row["licence"], row["source_repo"], row["source_commit"]
        parts.setdefault(key, []).append(source)
    return [
        {
            "corpus": corpus,
            "licence": licence,
            "source": f"{repo}@{commit}" if commit else repo,
            "utterances": len(members),
            "minutes": round(total_seconds(members) / 60, 2),
            "speakers": sorted({speaker_of(source) for source in members}),
        }
        for (corpus, licence, repo, commit), members in sorted(parts.items())
    ]


def _united(
    before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The audio of pretraining and that of fine-tuning, each row marked with which."""
    return [part | {"heard_in": "pretraining"} for part in before] + [
        part | {"heard_in": "fine-tuning"} for part in after
    ]


# --- flags ---


def define_flags() -> FlagValues:
    """The flags of this command."""
    return flags.define(_Flags)


def config_from_flags(values: FlagValues) -> Config:
    """The flags as a Config; raises UserError for what is missing or malformed."""
    given = flags.from_flags(values, _Flags)
    licences = {}
    for text in given.licence:
        name, _, licence = text.partition("=")
        if not name or not licence:
            raise UserError(f"--licence={text}: expected CORPUS=LICENCE")
        licences[name] = licence
    return Config(
        trained=given.trained,
        corpus=given.corpus,
        workdir=given.workdir,
        began_with=given.began_with,
        probe=given.probe,
        licences=licences,
        overwrite=given.overwrite,
    )


def main(values: FlagValues) -> None:
    """Run from the flags and print where the card is."""
    print(f"written: {run(config_from_flags(values))}")
