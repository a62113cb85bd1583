"""Flags of the commands, generated from the fields of settings records.

A record is a frozen dataclass whose fields are declared by `speechsim_jax.settings.setting`.
`define` makes a flag of each field and `from_flags` reads the record back, so that a setting's
name, type, default, bounds and help are written once. Every command has its own `FlagValues`.
"""

import copy
import dataclasses
import re
import types
import typing
from collections.abc import Collection, Iterator
from typing import Any, TypeVar

from absl import flags

from speechsim_jax.errors import UserError, did_you_mean
from speechsim_jax.settings import (
    COMPARED,
    FIGURE_FORMATS,
    FIGURE_REFERENCES,
    FIGURE_STYLES,
    HOW,
    INTERRUPTED,
    SPEED,
    WRITTEN,
    Output,
    allowed_words,
    alternatives,
    check_fields,
    check_figure_formats,
    check_figure_style,
    check_value,
    setting,
)

Record = TypeVar("Record")

REQUIRED = dataclasses.MISSING
OWN = "Flags of this command"


# --- declarations ---


def own(default: Any, help: str, **bounds: Any) -> Any:
    """A field that only one command has."""
    return setting(default, help, OWN, **bounds)


def repeated(help: str) -> Any:
    """A field whose flag is given once for each of its texts, which may have commas in them."""
    field = own((), help)
    return dataclasses.field(default=(), metadata={**field.metadata, "repeated": True})


def like(record: type, name: str, **changes: Any) -> Any:
    """A field declared as another record declares it.

    Args:
      record: the record that has the field.
      name: its name there and here.
      changes: `default`, and entries of its metadata (`help`, `group`).
    """
    field = next(field for field in dataclasses.fields(record) if field.name == name)
    default = changes.pop("default", field.default)
    return dataclasses.field(default=default, metadata={**field.metadata, **changes})


def nested(default: Any, only: Collection[str] | None = None) -> Any:
    """A field that holds a whole record.

    Args:
      default: the record.
      only: names of its fields that are flags of the command (default: all).
    """
    metadata = {"record": type(default), "only": only, "help": f"See `{type(default).__name__}`."}
    return dataclasses.field(default=default, metadata=metadata)


def models() -> Any:
    """The encoders of a command, required."""
    text = (
        "Hub ids, folders or zoo:NAME of encoders; random:ID for untrained, ID#LANGUAGE of MMS; to "
        "compare, torch:ID for any of transformers, which torch runs."
    )
    return setting(REQUIRED, text, COMPARED)


def progress() -> Any:
    """Whether there is anything but errors on stderr; --quiet is its flag."""
    text = "Show log lines and progress bars on stderr; False: errors only."
    return setting(True, text, WRITTEN, flag=False)


def audio() -> Any:
    """The audio of a command, required."""
    text = "Folder, manifest (.tsv), list (.txt), sound file, or hf:NAME/CONFIG/SPLIT."
    return setting(REQUIRED, text, COMPARED)


def workdir(default: Any = REQUIRED) -> Any:
    """The folder for results."""
    return setting(default, "Folder for results; made if missing.", WRITTEN)


def overwrite() -> Any:
    """Whether results may be replaced."""
    return setting(False, "Replace the results in --workdir.", WRITTEN)


def resume() -> Any:
    """Whether to continue an interrupted run."""
    return setting(False, "Continue the unfinished run in --workdir.", INTERRUPTED)


def levels() -> Any:
    """Levels that measures are restricted to."""
    text = "Only measures of these levels: neuron, mixed, layer, attention (only if named)."
    return setting((), text, HOW)


def measures(default: Any = None) -> Any:
    """Names of measures."""
    return setting(default, "paper, all, or names; see speechsim compare --help_measures.", HOW)


def keep_statistics() -> Any:
    """Whether statistics stay in the workdir."""
    text = "Keep the statistics that scores are made of in --workdir/statistics, for merge."
    return setting(False, text, WRITTEN)


def figure_formats() -> Any:
    """File formats of figures."""
    return setting(("png",), f"Write figures as any of {', '.join(FIGURE_FORMATS)}.", WRITTEN)


def figure_style() -> Any:
    """Style of heat maps."""
    text = "Heat maps: all labels, or as published."
    return setting("labelled", text, WRITTEN, choices=FIGURE_STYLES)


def figure_reference() -> Any:
    """What the cells of heat maps are compared with."""
    text = (
        "Outlined on heat maps: cells that are not found to differ from the closest layer of their "
        "model, or of their row; auto: closest, where the influences of rows are kept."
    )
    return setting("auto", text, WRITTEN, choices=FIGURE_REFERENCES)


def exemplars_audio() -> Any:
    """Whether exemplars can be heard in the report."""
    text = "Half a second of sound with each exemplar in the report, up to 8 MB; none: no sound."
    return setting("auto", text, WRITTEN, choices=("auto", "none"))


def exemplars_neurons() -> Any:
    """Neurons whose exemplars are shown."""
    text = (
        "Neurons whose exemplars the report shows besides the best-matched: MODEL/LAYER:NEURON, "
        "e.g. mine/3:17."
    )
    return setting((), text, WRITTEN)


def check_exemplars(neurons: Collection[str], audio: str) -> None:
    """Raise UserError for what is no name of a neuron, or no choice of sound."""
    for name in neurons:
        if not re.fullmatch(r".+/\d+:\d+", name):
            raise UserError(
                f"exemplars_neurons={name}: expected MODEL/LAYER:NEURON, such as mine/3:17"
            )
    if audio not in ("auto", "none"):
        raise UserError(f"exemplars_audio={audio}: expected auto or none")


def check_figures(formats: Collection[str], style: str, reference: str = "auto") -> None:
    """Raise UserError unless figures can be written so."""
    try:
        check_figure_formats(formats)
    except UserError as error:
        raise UserError(f"figure_formats={','.join(formats)}: {error}") from error
    try:
        check_figure_style(style)
    except UserError as error:
        raise UserError(f"figure_style={style}: {error}") from error
    if reference not in FIGURE_REFERENCES:
        close = did_you_mean(reference, FIGURE_REFERENCES)
        raise UserError(
            f"figure_reference={reference}: expected one of {', '.join(FIGURE_REFERENCES)}{close}"
        )


@dataclasses.dataclass(frozen=True)
class Terminal:
    """Flags of every command that computes: its output on the terminal and compiled programs."""

    quiet: bool = setting(False, "Print nothing but errors; log.jsonl has the rest.", WRITTEN)
    compilation_cache: str | None = setting(
        None,
        "Folder that keeps compiled programs between runs; none for no such folder (default: "
        "speechsim_jax/xla in XDG_CACHE_HOME or ~/.cache).",
        SPEED,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_fields(self)


# --- flags ---


def define(*records: type) -> flags.FlagValues:
    """The flags of a command: one for each field of its records, and no others.

    Args:
      records: dataclasses with fields of `setting` and `nested`. A field's group is the heading of
        its flag on the help page.
    """
    values = flags.FlagValues()
    for record in records:
        for field, hint in flag_fields(record):
            _define(values, field, hint)
    return values


def flag_fields(
    record: type, only: Collection[str] | None = None
) -> Iterator[tuple[dataclasses.Field, Any]]:
    """The fields that have a flag, those of nested records too, each with its annotation.

    Args:
      record: a dataclass with fields of `setting` and `nested`.
      only: names of its fields that have a flag (default: all that are declared so).
    """
    hints = typing.get_type_hints(record)
    for field in dataclasses.fields(record):
        if "record" in field.metadata:
            for inner, its_hint in flag_fields(field.metadata["record"], field.metadata["only"]):
                yield _with_default(inner, getattr(field.default, inner.name)), its_hint
        elif field.metadata.get("flag") and (only is None or field.name in only):
            yield field, hints[field.name]


def _with_default(field: dataclasses.Field, default: Any) -> dataclasses.Field:
    """The field with another default, and without a help text's words about the former."""
    if default == field.default:
        return field
    changed = copy.copy(field)
    changed.default = default
    text = re.sub(r" \(default: [^)]*\)", "", field.metadata["help"])
    changed.metadata = types.MappingProxyType({**field.metadata, "help": text})
    return changed


def _define(values: flags.FlagValues, field: dataclasses.Field, hint: Any) -> None:
    metadata = field.metadata
    default = None if field.default is REQUIRED else field.default
    arguments = (field.name, default, metadata["help"])
    where: dict[str, Any] = {"flag_values": values, "module_name": metadata["group"]}
    kinds = [option for option in alternatives(hint) if option is not type(None)]
    words = allowed_words(hint, metadata)
    if words is not None:
        flag = flags.Flag(_Words(words), flags.ArgumentSerializer(), *arguments)
        flags.DEFINE_flag(flag, **where)
    elif metadata.get("repeated"):
        flags.DEFINE_multi_string(*arguments, **where)
    elif typing.get_origin(kinds[0]) is tuple:
        listed = None if default is None else list(map(str, default))
        flags.DEFINE_list(field.name, listed, metadata["help"], **where)
    elif bool in kinds:
        flags.DEFINE_bool(*arguments, **where)
    elif float in kinds:
        flags.DEFINE_float(*arguments, **where)
    elif int in kinds:
        flags.DEFINE_integer(*arguments, **where)
    else:
        flags.DEFINE_string(*arguments, **where)


class _Words(flags.EnumParser):
    """One of a few words; a misspelt one is answered with the closest."""

    def parse(self, argument: str) -> str:
        try:
            return super().parse(argument)
        except ValueError as error:
            close = did_you_mean(argument, self.enum_values)
            raise ValueError(f"{error}{close}") from None


# --- values ---


def from_flags(
    values: flags.FlagValues, record: type[Record], base: Record | None = None, **given: Any
) -> Record:
    """A record of what the flags say.

    Args:
      values: parsed flags.
      record: its type; fields without a flag have their defaults.
      base: a record whose values hold for the flags that are not on the command line.
      given: values of fields that are not to be read from flags.

    Raises:
      UserError: a flag that is missing or has an impossible value.
    """
    arguments = dict(given)
    for field in dataclasses.fields(typing.cast(Any, record)):
        if "record" in field.metadata and field.name not in given:
            inner = field.default if base is None else getattr(base, field.name)
            arguments[field.name] = from_flags(values, field.metadata["record"], inner)
    read = all_values if base is None else present_values
    arguments = read(values, record) | arguments
    try:
        if base is not None:
            return dataclasses.replace(typing.cast(Any, base), **arguments)
        return record(**arguments)
    except UserError as error:
        raise _with_dashes(error, values) from error


def all_values(values: flags.FlagValues, record: type) -> dict[str, Any]:
    """The values of all flags of a record's fields (of nested records: none). Raises UserError."""
    hints = typing.get_type_hints(record)
    return {
        field.name: _value(values[field.name], field, hints[field.name])
        for field in dataclasses.fields(record)
        if field.metadata.get("flag") and field.name in values
    }


def present_values(values: flags.FlagValues, record: type) -> dict[str, Any]:
    """Those of `all_values` that are on the command line. Raises UserError."""
    read = all_values(values, record)
    return {name: value for name, value in read.items() if values[name].present}


def _value(flag: flags.Flag, field: dataclasses.Field, hint: Any) -> Any:
    """A flag's value in the type of its field. Raises UserError."""
    value = flag.value
    if field.default is REQUIRED and not value and value != 0:
        raise UserError(f"--{flag.name} is required; see --help")
    if isinstance(value, list):
        text = ",".join(value)
        if not all(value):
            raise UserError(f"--{flag.name}={text}: an item of the list is empty")
        value = tuple(value)
    check_value(f"--{flag.name}", value, hint, field.metadata)
    return value


def _with_dashes(error: UserError, values: flags.FlagValues) -> UserError:
    """A record's error that begins with the name of a field, with that of the flag instead."""
    first = re.match(r"\w+", str(error))
    return UserError(f"--{error}") if first and first[0] in values else error


def output(values: flags.FlagValues) -> Output:
    """The `Output` of a command: its --note, and no progress bars with --quiet."""
    return from_flags(values, Output, progress=not values["quiet"].value)
