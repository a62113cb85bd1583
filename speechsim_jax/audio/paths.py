"""Paths as users and manifests give them: too long, forbidden, of nobody's home."""

import os
from pathlib import Path

from speechsim_jax.errors import UserError


def is_file(path: Path) -> bool:
    """Whether there is such a file; not, if it cannot be looked up."""
    try:
        return path.is_file()
    except OSError:  # a name that is too long, a folder that may not be searched
        return False


def looked_up(path: str | os.PathLike[str], what: str) -> Path:
    """A path with its "~" expanded.

    Args:
        path: As the user gave it.
        what: What it is of, for the message: "audio".

    Raises:
        UserError: it cannot be looked up.
    """
    try:
        expanded = Path(path).expanduser()
        expanded.is_dir()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{what}: {str(path)[:200]} cannot be looked up ({reason})") from error
    return expanded
