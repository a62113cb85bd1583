"""The page that --help prints: what a command does, then its flags in groups."""

import inspect
import shutil
import textwrap
from collections.abc import Sequence

from absl import flags

from speechsim_jax import settings

# A group that is not here is the command's own, and comes first.
_GROUPS = (
    settings.COMPARED,
    settings.HOW,
    settings.WRITTEN,
    settings.INTERRUPTED,
    settings.HUB,
    settings.SPEED,
    settings.DEVICES,
)
_VALUES = {
    "int": "N",
    "float": "X",
    "string": "TEXT",
    "multi string": "TEXT",
    "comma separated list of strings": "A,B",
}
# absl's own words at the end of the help of a flag that may be repeated; the help says so itself.
_REPEAT = ";\n    repeat this option to specify a list of values"
_NAMES = 27  # columns for the flags, before what they mean


def page(text: str, values: flags.FlagValues) -> str:
    """A command's page of --help, as wide as the terminal (60 to 100 columns).

    Args:
      text: the docstring of its module.
      values: its flags; the heading of each is its `module_name`.
    """
    width = min(100, max(60, shutil.get_terminal_size((100, 24)).columns))
    groups = values.flags_by_module_dict()
    others = [title for title in groups if title not in _GROUPS]
    parts = [inspect.cleandoc(text)]
    for title in (*others, *_GROUPS):
        if title in groups:
            parts.append("\n".join([f"{title}:", *(_entry(flag, width) for flag in groups[title])]))
    return "\n\n".join(parts)


def _entry(flag: flags.Flag, width: int) -> str:
    kind, text = flag.flag_type(), (flag.help or "").removesuffix(_REPEAT)
    if kind == "bool":
        name = f"  --[no]{flag.name}"
    elif isinstance(flag.parser, flags.EnumParser):
        name = _choice(f"--{flag.name}=", flag.parser.enum_values, width)
    else:
        name = f"  --{flag.name}={_VALUES.get(kind, 'VALUE')}"
    lines = textwrap.wrap(f"{text}{_default(flag)}", width - _NAMES)
    lines = [" " * _NAMES + line for line in lines]
    if len(name) >= _NAMES - 1:
        return "\n".join([name, *lines])
    return "\n".join([name.ljust(_NAMES) + lines[0].lstrip(), *lines[1:]])


def _choice(name: str, words: Sequence[str], width: int) -> str:
    """The flag with its words, in several lines if they are many."""
    spaced = textwrap.fill(
        name + "| ".join(words), width, initial_indent="  ", subsequent_indent=" " * 6
    )
    return spaced.replace("| ", "|")


def _default(flag: flags.Flag) -> str:
    """The default in words, unless that is nothing or the text names it."""
    value = flag.default
    if value is None or value is False or value in ("", []) or "(default" in (flag.help or ""):
        return ""
    if value is True:
        return " (default: on)"
    return f" (default: {','.join(value) if isinstance(value, list) else value})"
