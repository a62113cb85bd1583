"""The record that a job writes next to its stored statistics, for `merge`.

job.json        representations, settings, measures, id and digest of each utterance
pass-1/, ...    the statistics of each of its passes (`statistics.store`)
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speechsim_jax.errors import UserError
from speechsim_jax.measures.registry import MeasureSelection
from speechsim_jax.results.result import RepresentationName
from speechsim_jax.runtime.atomic_write import write_text

_RECORD = "job.json"
_FORMAT = 2


def new_folder(path: str | Path) -> Path:
    """The folder, for new statistics; raises UserError if it holds those of a complete job."""
    folder = Path(path).expanduser()
    if (folder / _RECORD).exists():
        raise UserError(f"{folder} holds the statistics of a job already; choose another folder")
    return folder


def write_record(
    folder: Path,
    names: Sequence[RepresentationName],
    selection: MeasureSelection,
    passes: int,
    digests: Sequence[Sequence[str]],
    attributes: dict[str, Any],
) -> None:
    """Write the record that makes the statistics complete.

    Args:
      folder: of the statistics.
      names: of the representations.
      selection: the measures.
      passes: number of passes.
      digests: id and digest of the samples of each utterance.
      attributes: of the result.

    Raises:
      UserError: it cannot be written.
    """
    record = {
        "format": _FORMAT,
        "representations": [[name.model, name.layer] for name in names],
        "measures": list(selection.names),
        "passes": passes,
        "utterances": [list(entry) for entry in digests],
        "attributes": attributes,
    }
    try:
        write_text(folder / _RECORD, json.dumps(record))
    except OSError as error:
        raise UserError(f"statistics cannot be written to {folder}: {error.strerror}") from error


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a job; raises UserError if there is none that this version can read."""
    try:
        record = json.loads((folder / _RECORD).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} holds no {_RECORD}: expected a folder of compare(keep_statistics=...), "
            "complete"
        ) from error
    if record.get("format") != _FORMAT:
        raise UserError(
            f"{folder}: stored statistics of format {record.get('format')}, not {_FORMAT}; run the "
            "comparison again with this version"
        )
    return record
