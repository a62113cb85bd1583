"""Say what checkpoints are and whether they can be loaded, without loading them.

    speechsim inspect facebook/hubert-base-ls960 runs/mine

prints family and size, parameters and their types, frames and windows, preprocessing, tensors that
are left out, the CTC head, and what is wrong if the model cannot be loaded: tensors are checked by
name and shape, as in loading. No weights are read; of a hub model only small files and the heads of
safetensors files are fetched, and where that does not tell, what would have to be. One model that
cannot be loaded does not end the list; the exit code is then 2.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from absl.flags import FlagValues

from speechsim_jax.commands import flags
from speechsim_jax.errors import UserError, counted
from speechsim_jax.settings import Resources

if TYPE_CHECKING:
    from speechsim_jax.models.inspection import Inspection

POSITIONAL = ("models",)
"""The flags that arguments without a name are for."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is inspected."""

    models: tuple[str, ...] = flags.models()
    json: bool = flags.own(False, "Print a list of JSON objects.")
    revision: str | None = flags.like(Resources, "revision")
    cache_dir: str | None = flags.like(Resources, "cache_dir")
    local_files_only: bool = flags.like(Resources, "local_files_only")


def run(config: Config) -> Iterator[Inspection]:
    """What is known of each model, one after the other."""
    from speechsim_jax.models.inspection import inspect_checkpoint

    for model in config.models:
        yield inspect_checkpoint(
            model,
            revision=config.revision,
            cache_dir=config.cache_dir,
            local_files_only=config.local_files_only,
        )


def define_flags() -> FlagValues:
    """The flags of this command."""
    return flags.define(Config)


def main(values: FlagValues) -> None:
    """Print what is known; raises UserError at the end if a model cannot be loaded."""
    config = flags.from_flags(values, Config)
    found = []
    for inspection in run(config):
        found.append(inspection)
        if not config.json:
            print(("\n" if len(found) > 1 else "") + _text(inspection))
    if config.json:
        print(json.dumps([dataclasses.asdict(one) for one in found], indent=2))
    if bad := [one.model for one in found if one.loads is False]:
        raise UserError(
            f"{len(bad)} of {counted(len(found), 'model')} cannot be loaded: {', '.join(bad)}"
        )


def _text(found: Inspection) -> str:
    """A model for the terminal: its name, a line for each thing that is known, and the verdict."""
    lines = {
        "family": _joined(found.family, found.class_name, found.revision),
        "size": "" if found.layers is None else (
            f"{found.layers} layers x {found.width} neurons, {found.heads} heads"
        ),
        "parameters": "" if found.parameters is None else f"{found.parameters:,}",
        "precision": _precision(found),
        "files": ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in found.files.items()),
        "frames": _frames(found),
        "input": _input(found),
        "left out": ", ".join(
            f"{module} ({counted(count, 'tensor')})" for module, count in found.left_out.items()
        ),
        "CTC head": _head(found),
        "notes": "; ".join(note.removeprefix(f"{found.model}: ") for note in found.notes),
    }  # fmt: skip
    verdict = {True: "yes", False: f"no: {found.reason}", None: f"not known: {found.reason}"}
    lines["loads"] = verdict[found.loads]
    return "\n".join(
        [found.model, *(f"  {name:10}  {text}" for name, text in lines.items() if text)]
    )


def _joined(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part)


def _precision(found: Inspection) -> str:
    total = sum(found.precision.values())
    if len(found.precision) == 1:
        return next(iter(found.precision))
    return ", ".join(f"{kind} {count / total:.1%}" for kind, count in found.precision.items())


def _frames(found: Inspection) -> str:
    if found.frames_per_second is None:
        return ""
    longest = "" if found.longest_seconds is None else f", input up to {found.longest_seconds:g} s"
    return (
        f"{found.frames_per_second:g} per second of {found.window_ms:g} ms, the first centred at "
        f"{found.first_centre_ms:g} ms{longest}"
    )


def _input(found: Inspection) -> str:
    if found.input is None:
        return ""
    scaled = {True: ", normalised per utterance", False: ", as they are", None: ""}
    assumed = " (assumed: there is no preprocessor_config.json)" if found.assumed else ""
    return f"{found.input} at 16 kHz{scaled[found.normalised]}{assumed}"


def _head(found: Inspection) -> str:
    if found.ctc_tokens is None:
        return ""
    known = "" if found.vocabulary is None else f"; vocab.json has {found.vocabulary}"
    return f"{found.ctc_tokens} tokens{known}"
