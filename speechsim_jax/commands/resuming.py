"""A folder of partial results, and whether a run may go on with what is in it."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from speechsim_jax.errors import UserError

_PLAN = "plan.json"
_log = logging.getLogger(__name__)


def place(folder: Path, identity: dict[str, Any], resume: bool, overwrite: bool) -> Path:
    """The folder, with the results of a run that had a say in the same numbers, or empty.

    `identity`: what has a say in them, for JSON. Raises UserError if results are there of a run
    with another identity, or that may not be touched.
    """
    plan, wanted = folder / _PLAN, json.loads(json.dumps(identity))
    if plan.exists() and resume:
        before = json.loads(plan.read_text())
        differing = [name for name, value in wanted.items() if before.get(name) != value]
        if differing:
            raise UserError(
                f"{folder.parent} is of a run with other {', '.join(differing)}; choose another "
                "--workdir, or pass --overwrite instead of --resume"
            )
        return folder
    if plan.exists() and not overwrite:
        raise UserError(
            f"{folder.parent} holds results of a run; pass --resume to go on, or --overwrite"
        )
    if resume:
        _log.warning("nothing to resume in %s: starting from the beginning", folder.parent)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    plan.write_text(json.dumps(wanted, indent=2) + "\n")
    return folder
