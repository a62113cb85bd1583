"""The small trained encoders that come with this package: "zoo:NAME" wherever a hub id can stand.

Each is a Hugging Face folder in this one, with a model card (README.md). They are for trying things
out, not for use; experiments/zoo says how they were made.
"""

from pathlib import Path

from speechsim_jax.errors import UserError

PREFIX = "zoo:"

_HERE = Path(__file__).parent


def names() -> tuple[str, ...]:
    """The models there are, sorted."""
    return tuple(sorted(path.parent.name for path in _HERE.glob("*/config.json")))


def folder(name: str) -> Path:
    """The folder of a model. Raises UserError, with the names there are, if there is none."""
    known = names()
    if name not in known:
        there = ", ".join(PREFIX + each for each in known) or "none in this installation"
        raise UserError(f"{PREFIX}{name}: no such model comes with the package; there are: {there}")
    return _HERE / name
