"""The small trained encoders that come with this package: "zoo:NAME" wherever a hub id can stand.

Each is a Hugging Face folder in this directory, with a model card (README.md). They are for trying
things out, not for use; the recipes in experiments/zoo made them.
"""

from pathlib import Path

from speechsim_jax.errors import UserError, did_you_mean

PREFIX = "zoo:"

_HERE = Path(__file__).parent


def names() -> tuple[str, ...]:
    """The names of all models, sorted."""
    return tuple(sorted(path.parent.name for path in _HERE.glob("*/config.json")))


def folder(name: str) -> Path:
    """The folder of a model.

    Args:
        name: its name, without "zoo:".

    Raises:
        UserError: there is no such model; the message lists those that there are.
    """
    known = names()
    if name not in known:
        available = ", ".join(PREFIX + model for model in known) or "none in this installation"
        raise UserError(
            f"{PREFIX}{name}: no such model comes with the package; available: {available}"
            f"{did_you_mean(PREFIX + name, (PREFIX + model for model in known))}"
        )
    return _HERE / name
