"""The page that --help prints: what a script does, then its flags in groups, first things first."""

import inspect
import shutil
import textwrap
from types import ModuleType

from absl import flags

# Flags of every script; what is not here is a script's own, and comes first.
_GROUPS = {
    "What is compared": (
        "models", "audio", "max_minutes", "layers", "last_layer", "frame_stride", "pool",
        "alignments", "alignment_tier", "drop_labels",
    ),
    "How": (
        "measures", "levels", "help_measures", "sample_frames", "attention_max_seconds",
        "rank_tolerance", "seed",
    ),
    "What is written": (
        "workdir", "overwrite", "note", "figure_formats", "figure_style", "keep_statistics",
        "quiet",
    ),
    "Going on after an interruption": ("resume", "checkpoint_every", "stop_after"),
    "Models of the hub": ("revision", "cache_dir", "local_files_only"),
    "Speed and precision": (
        "model_dtype", "stats_dtype", "batch_seconds", "max_seconds", "rows_per_update", "strict",
        "compilation_cache",
    ),
    "Devices and machines": (
        "mesh", "device_memory_gb", "coordinator", "processes", "process", "process_timeout",
    ),
}  # fmt: skip
_VALUES = {"int": "N", "float": "X", "string": "TEXT", "comma separated list of strings": "A,B"}
_NAMES = 27  # columns for the flags, before what they mean


def page(module: ModuleType) -> str:
    """The module's docstring and its key flags, as wide as the terminal (at most 100 columns)."""
    width = min(100, max(60, shutil.get_terminal_size((100, 24)).columns))
    found = {flag.name: flag for flag in flags.FLAGS.get_key_flags_for_module(module)}
    shared = {name for group in _GROUPS.values() for name in group}
    own = tuple(name for name in found if name not in shared)
    parts = [inspect.cleandoc(module.__doc__ or "")]
    for title, names in ({"This script's own": own} | _GROUPS).items():
        entries = [_entry(found[name], width) for name in names if name in found]
        if entries:
            parts.append("\n".join([f"{title}:", *entries]))
    parts.append("--helpfull lists the flags of the libraries, too.")
    return "\n\n".join(parts)


def _entry(flag: flags.Flag, width: int) -> str:
    kind, text = flag.flag_type(), flag.help or ""
    if kind == "bool":
        name = f"  --[no]{flag.name}"
    elif isinstance(flag, flags.EnumFlag):
        choices = "|".join(flag.parser.enum_values)
        name, text = f"  --{flag.name}={choices}", text.removeprefix(f"<{choices}>: ")
    else:
        name = f"  --{flag.name}={_VALUES.get(kind, 'VALUE')}"
    lines = textwrap.wrap(f"{text}{_default(flag)}", width - _NAMES)
    lines = [" " * _NAMES + line for line in lines]
    if len(name) >= _NAMES - 1:
        return "\n".join([name, *lines])
    return "\n".join([name.ljust(_NAMES) + lines[0].lstrip(), *lines[1:]])


def _default(flag: flags.Flag) -> str:
    """What holds if the flag is left out, unless that is nothing or its text says it."""
    value = flag.default
    if value is None or value is False or value in ("", []) or "(default" in (flag.help or ""):
        return ""
    if value is True:
        return " (default: on)"
    return f" (default: {','.join(value) if isinstance(value, list) else value})"
