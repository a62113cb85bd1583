"""The settings of a comparison, each declared once.

Keyword arguments of `compare`, flags of the commands and their help come from the fields of these
records. Importing this module imports neither jax nor any of the heavy libraries.
"""

import dataclasses
import fractions
import functools
import math
import numbers
import os
import re
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal, TypeVar

from speechsim_jax.errors import UserError, did_you_mean

Layer = int | float | str
"""Which hidden state: its number, from the end if negative; a fraction of the depth; a word."""

Record = TypeVar("Record")
Records = TypeVar("Records", bound=tuple[Any, ...])

# Groups of settings, in the order of the help page.
COMPARED = "What is compared"
HOW = "How"
WRITTEN = "What is written"
HUB = "Models of the hub"
SPEED = "Speed and precision"
DEVICES = "Devices"
INTERRUPTED = "Resuming after an interruption"

# Here rather than with the figures, so that flags know them without importing matplotlib.
FIGURE_FORMATS = ("png", "pdf", "svg")
FIGURE_STYLES = ("labelled", "paper")
FIGURE_REFERENCES = ("auto", "closest", "closest_of_row", "none")


ALGORITHMS = (
    "F32_F32_F32",
    "TF32_TF32_F32",
    "TF32_TF32_F32_X3",
    "BF16_BF16_F32",
    "BF16_BF16_F32_X3",
    "BF16_BF16_F32_X6",
    "BF16_BF16_F32_X9",
)
"""How products of float32 numbers may be computed, in the words of jax.lax.DotAlgorithmPreset."""


def setting(
    default: Any,
    help: str,
    group: str,
    *,
    at_least: float | int | None = None,
    above: float | int | None = None,
    at_most: float | int | None = None,
    below: float | int | None = None,
    flag: bool = True,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A field of a settings record.

    Args:
      default: the value where nothing is given.
      help: one sentence, for the flag's help and the record's documentation.
      group: heading on the help page.
      at_least, above, at_most, below: bounds of a number.
      flag: whether commands have a flag of this name.
      choices: allowed words where the annotation is a plain `str`.
    """
    bounds = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    metadata = {"help": help, "group": group, "flag": flag, "choices": choices, "bounds": bounds}
    return dataclasses.field(default=default, metadata=metadata)


def documented(cls: type[Record]) -> type[Record]:
    """Append an `Attributes:` section, made of the fields' help, to a record's docstring."""
    lines = []
    for field in dataclasses.fields(typing.cast(Any, cls)):
        text = f"{field.name}: {field.metadata['help']}"
        lines += textwrap.wrap(text, 92, initial_indent=" " * 6, subsequent_indent=" " * 8)
    # `check_fields` converts values and raises a UserError for wrong types; a run-time type checker
    # must not raise before.
    typing.no_type_check(cls.__init__)
    cls.__doc__ = f"{(cls.__doc__ or '').rstrip()}\n\n    Attributes:\n" + "\n".join(lines) + "\n"
    return cls


@documented
@dataclasses.dataclass(frozen=True)
class Settings:
    """How `compare` works: everything that can change a number. It is recorded in the result.

    >>> ss.Settings(max_minutes=60, frame_stride=5).rows_per_update
    4096
    >>> ss.Settings(frame_stride=0)
    Traceback (most recent call last):
    speechsim_jax.errors.UserError: frame_stride is 0; expected at least 1

    Raises:
      UserError: a value of the wrong type or out of its range, or settings that contradict each
        other.
    """

    layers: tuple[Layer, ...] | None = setting(
        None,
        "Only these hidden states of every model, e.g. 0,6,-1 or first,0.5,last: a number with a "
        "point is a fraction of its depth, so that 1 is layer 1 and 1.0 the last (default: all).",
        COMPARED,
    )
    pairs: tuple[str, ...] = setting(
        ("all",),
        "Pairs of representations: all, between models, within models, same_depth (between models, "
        "the layers nearest in depth), or pairs by name, e.g. a/3:b/5. Others have no score "
        "(attention is compared for all).",
        COMPARED,
    )
    max_minutes: float | int | None = setting(
        None, "At most so much audio: a seeded choice, balanced over speakers.", COMPARED, above=0
    )
    layout: str | None = setting(
        None,
        "Corpus whose layout says who speaks, e.g. TIMIT (default: each path says which it is).",
        COMPARED,
    )
    speaker_from: str | None = setting(
        None, "Regular expression whose group in an id is the speaker, e.g. '^([^/]+)/'.", COMPARED
    )
    glob: tuple[str, ...] = setting(
        (), "Only utterances whose id matches one of these, e.g. *_mic1.flac.", COMPARED
    )
    exclude: tuple[str, ...] = setting((), "No utterance whose id matches one of these.", COMPARED)
    channel: str = setting(
        "mean",
        "Of files with several channels: mean, left, right, a number from 1 on, or each as an "
        "utterance of its own.",
        COMPARED,
    )
    last_layer: Literal["normed", "raw"] = setting(
        "normed", "Last hidden state of pre-norm models: after the final norm, or before.", COMPARED
    )
    torch_layers: tuple[str, ...] = setting(
        (),
        "Layers of models that torch runs: outputs of the modules of these names, in the order in "
        "which they run, e.g. encoder.layers.* (default: their hidden states).",
        COMPARED,
    )
    frame_stride: int = setting(
        1, "Compare every k-th frame of an utterance.", COMPARED, at_least=1
    )
    pool: Literal["none", "utterance", "segment"] = setting(
        "none", "Average the frames of each to one row.", COMPARED
    )
    alignments: str | None = setting(
        None,
        "Segments: a .tsv, .ctm or .TextGrid file, a folder of TextGrid files, or auto for those "
        "published with the corpus; utterances without an alignment are skipped.",
        COMPARED,
    )
    alignment_tier: str | None = setting(
        None, "Tier of the alignments to use, where there are several.", COMPARED
    )
    drop_labels: tuple[str, ...] = setting(
        (), "Leave out frames in segments of the alignments with these labels, e.g. SIL.", COMPARED
    )
    tracks: tuple[str, ...] = setting(
        (),
        "Acoustic features that are compared like layers: logmel, mfcc, f0, energy, ...",
        COMPARED,
    )
    labels: tuple[str, ...] = setting(
        (),
        "Labels of frames, and what layers and neurons encode of them: NAME:ALIGNMENTS[:TIER] (as "
        "phone:FOLDER or word:auto), speaker, gender, or a column of the manifest.",
        COMPARED,
    )
    label_min_share: float | int = setting(
        0.0,
        "Classes of a smaller share of the labelled audio count as no label.",
        COMPARED,
        at_least=0,
        below=1,
    )
    given: tuple[str, ...] = setting(
        (),
        "Tracks or layers that are regressed out of all others: scores are of what is left.",
        COMPARED,
    )
    given_part: Literal["rest", "explained"] = setting(
        "rest",
        "Scores of what is left of representations where others are given, or of what these "
        "explain: given=speaker, the similarity within speakers, or between them.",
        COMPARED,
    )
    seed: int = setting(0, "Seed of every random choice.", HOW, at_least=0)
    sample_frames: int = setting(
        2000,
        "Frames of the seeded sample that rbfcka, mutual_knn and rsa read; memory and time grow "
        "with the square.",
        HOW,
        at_least=4,
        at_most=10_000,
    )
    errors: Literal["auto", "speaker", "utterance", "none"] | None = setting(
        "auto",
        "Standard errors over speakers, over utterances, or none; auto: speakers where at least 10 "
        "are known, else utterances where there are 10.",
        HOW,
    )
    errors_rows: int = setting(
        20_000, "Frames of the sample that standard errors are estimated from, at most about.", HOW,
        at_least=64,
    )  # fmt: skip
    errors_source: Literal["auto", "sample", "reading"] = setting(
        "auto",
        "What standard errors are computed from: a sample of frames; a second reading, of all; "
        "auto: the sample, and a second reading where half of those of a measure are not known to "
        "10 %.",
        HOW,
    )
    errors_stride: int = setting(
        1, "A second reading computes influences of every k-th frame of an utterance only.", HOW,
        at_least=1,
    )  # fmt: skip
    heldout: bool = setting(
        False,
        "Scores that are fitted on half of the speakers or utterances and evaluated on the others, "
        "too: of regression, best matches and canonical correlations.",
        HOW,
    )
    null: Literal["none", "shift", "swap"] = setting(
        "none",
        "The score of rows that do not belong together, too: shift pairs frames of one utterance "
        "at different times, swap those of utterances of different speakers.",
        HOW,
    )
    null_draws: int = setting(
        3,
        "Draws of the null; 19 or more for p-values. Each takes the memory and time of the "
        "statistics once more.",
        HOW,
        at_least=1,
        at_most=999,
    )
    target_se: float | int | None = setting(
        None,
        "Read audio in steps, balanced over speakers, until standard errors and what few frames "
        "add to scores are below this, or the audio ends; the log predicts how much that takes.",
        HOW,
        above=0,
    )
    target_of: Literal["largest", "median"] = setting(
        "largest", "Of each measure, which standard error target_se is for.", HOW
    )
    exemplars: int = setting(
        0,
        "Of every neuron so many frames that excite it most, at most one of an utterance; in the "
        "result and, with sound, in the report.",
        HOW,
        at_least=0,
        at_most=20,
    )
    attention_max_seconds: float | int | None = setting(
        None, "Attention level: a seeded choice of so much audio (default: all).", HOW, above=0
    )
    rank_tolerance: float | None = setting(
        None,
        "Smallest eigenvalue kept in whitening, relative to the largest (default: 1e-6 for "
        "float32 statistics, width * 2.2e-16 for float64).",
        HOW,
        above=0,
        below=1,
    )
    model_dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "Type that the encoders' kernels are rounded to.", SPEED
    )
    model_precision: str = setting(
        "highest",
        "Precision of the encoders' products, in JAX's words, or an algorithm, e.g. "
        "TF32_TF32_F32_X3; auto: as stats_precision.",
        SPEED,
        choices=("auto", "highest", "high", "default", *ALGORITHMS),
    )
    stats_dtype: Literal["float32", "float64"] = setting(
        "float32", "Type of the statistics; float32 is compensated, float64 needs a CPU.", SPEED
    )
    stats_precision: str = setting(
        "auto",
        "How products of float32 statistics are computed: highest, or an algorithm; auto: highest "
        "on CPUs, elsewhere the fastest algorithm that a check at the start finds as accurate.",
        SPEED,
        choices=("auto", "highest", *ALGORITHMS),
    )
    batch_seconds: float | int = setting(
        40.0, "Audio in one batch, in seconds.", SPEED, above=0, at_most=86_400
    )
    buckets: int | None = setting(
        None,
        "Padded lengths of utterances, each of which is a program of every architecture (default: "
        "as many as save more time than compiling takes).",
        SPEED,
        at_least=1,
    )
    max_seconds: float | int = setting(
        60.0, "Longer utterances are cut into equal pieces.", SPEED, above=0
    )
    rows_per_update: int = setting(
        4096, "Frames gathered before the statistics are updated.", SPEED, at_least=1
    )
    strict: bool = setting(False, "Stop at an unusable file instead of skipping it.", SPEED)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _as_layers(self.layers))
        object.__setattr__(self, "pairs", _as_pairs(self.pairs))
        check_fields(self)
        if self.errors is None:
            object.__setattr__(self, "errors", "none")
        if self.target_se is not None and self.errors == "none":
            raise UserError("target_se needs standard errors; leave out errors='none'")
        if self.target_se is not None and (self.null != "none" or self.errors_source == "reading"):
            what = "null" if self.null != "none" else "errors_source='reading'"
            raise UserError(
                f"target_se reads audio in steps, and {what} is of all of it; find out how much "
                "is needed first, then use max_minutes"
            )
        if self.given and (self.null != "none" or self.target_se is not None):
            what = "null" if self.null != "none" else "target_se"
            raise UserError(f"{what} has no partial form; leave it out, or given")
        if self.given_part == "explained" and not self.given:
            raise UserError("given_part='explained' needs given: what explains")
        if self.given_part == "explained" and self.errors_source == "reading":
            raise UserError(
                "what is given explains has no standard errors; leave out errors_source='reading'"
            )
        self._check_alignments()
        if self.exemplars and self.pool != "none":
            raise UserError(
                f"exemplars are single frames, and pool={self.pool!r} averages them; leave out one "
                "of the two"
            )
        if self.null == "shift" and self.pool == "utterance":
            raise UserError(
                "null='shift' needs several rows of each utterance, and pool='utterance' leaves "
                "one; use null='swap' or another pool"
            )

    def _check_alignments(self) -> None:
        """Raise UserError unless alignments are given exactly where something reads them."""
        readers = {"pool='segment'": self.pool == "segment", "drop_labels": bool(self.drop_labels)}
        reading = [name for name, reads in readers.items() if reads]
        if reading and self.alignments is None:
            raise UserError(
                f"{reading[0]} needs alignments: a .tsv, .ctm or .TextGrid file, a folder or auto"
            )
        if self.alignments is not None and not reading:
            raise UserError(f"alignments are given but not used; add {' or '.join(readers)}")
        if self.alignment_tier is not None and self.alignments is None:
            raise UserError("alignment_tier is given without alignments")


_WHOLE, _WITH_POINT = re.compile(r"[+-]?\d+"), re.compile(r"[+-]?(\d+\.\d*|\.\d+)")
_LAYER_WORDS = ("first", "last")


def _as_layers(layers: Any) -> tuple[Layer, ...] | None:
    """Hidden states as whole numbers, fractions and words; raises UserError for anything else."""
    if layers is None:
        return None
    expected = (
        "numbers of hidden states (0, 6, -1), fractions of the depth from 0.0 to 1.0, first or last"
    )
    listed = list(layers) if isinstance(layers, list | tuple | range) else []
    if not listed:
        empty = isinstance(layers, list | tuple | range)
        what = "empty" if empty else repr(layers)
        raise UserError(f"layers is {what}; expected a list of {expected}, or None for all")
    return tuple(_as_layer(layer, expected) for layer in listed)


def _as_layer(layer: Any, expected: str) -> Layer:
    value = layer
    if isinstance(layer, str):
        text = layer.strip()
        if text in _LAYER_WORDS:
            return text
        if _WHOLE.fullmatch(text):
            value = int(text)
        elif _WITH_POINT.fullmatch(text):
            value = float(text)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        fraction = float(value)
        if 0 <= fraction <= 1:
            # 1.0 equals 1 in Python and in JSON, and means another layer: the ends become words.
            return {0.0: "first", 1.0: "last"}.get(fraction, fraction)
    close = did_you_mean(layer, _LAYER_WORDS) if isinstance(layer, str) else ""
    raise UserError(f"layers has {layer!r}{close}; expected {expected}")


def layer_numbers(layers: Iterable[Layer] | None, depth: int, model: str) -> tuple[int, ...]:
    """The hidden states of a model that are meant, in order, each once.

    A fraction f means the hidden state nearest to f `depth`, of two equally near ones the lower.

    Args:
      layers: as in `Settings`; None for all.
      depth: transformer layers of the model, which has the hidden states 0 to `depth`.
      model: its name, for the message.

    Raises:
      UserError: a number that the model lacks.
    """
    if layers is None:
        return tuple(range(depth + 1))
    found = set()
    for layer in layers:
        if isinstance(layer, float):
            # As it is written: 0.07 of 50 layers is 3.5, not a little more.
            exact = fractions.Fraction(repr(layer)) * depth
            found.add(math.ceil(exact - fractions.Fraction(1, 2)))
        elif isinstance(layer, str):
            found.add({"first": 0, "last": depth}[layer])
        elif -depth - 1 <= layer <= depth:
            found.add(layer % (depth + 1))
        else:
            raise UserError(f"{model} has layers 0 to {depth}; `layers` asks for {layer}")
    return tuple(sorted(found))


PAIRS = ("all", "between", "within", "same_depth")


def _as_pairs(pairs: Any) -> tuple[str, ...]:
    """One of `PAIRS`, or pairs of names as text; raises UserError for anything else."""
    given = [pairs] if isinstance(pairs, str) else pairs
    listed = list(given) if isinstance(given, list | tuple) else []
    expected = f"{', '.join(PAIRS)}, or pairs of representations, as ('a/3', 'b/5')"
    texts = []
    for pair in listed:
        names = [pair] if isinstance(pair, str) else pair
        if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
            raise UserError(f"pairs has {pair!r}; expected {expected}")
        texts.append(":".join(names))
    words = [text for text in texts if text in PAIRS]
    alone = [text for text in texts if text not in words and ":" not in text]
    if not texts or alone or (words and len(texts) > 1):
        what = repr(alone[0]) if alone else repr(pairs)
        close = did_you_mean(alone[0], PAIRS) if alone else ""
        raise UserError(f"pairs is {what}{close}; expected {expected}")
    return tuple(texts)


@documented
@dataclasses.dataclass(frozen=True)
class Resources:
    """Where models come from, and the devices, memory and share of a comparison.

    Where the statistics do not fit into `device_memory_gb`, layer pairs are taken in turn and the
    audio is read several times.

    >>> ss.Resources(device_memory_gb=4, local_files_only=True).mesh is None
    True
    >>> ss.Resources(device_memory_gb=0)
    Traceback (most recent call last):
    speechsim_jax.errors.UserError: device_memory_gb is 0; expected more than 0

    Raises:
      UserError: a value of the wrong type or out of its range.
    """

    mesh: str | None = setting(
        None,
        "Devices, e.g. data:4,feature:2: those along `data` read different utterances, those "
        "along `feature` share one accumulator (default: all along `data`).",
        DEVICES,
    )
    device_memory_gb: float | int | None = setting(
        None,
        "Memory that each device may use; where the statistics need more, the audio is read "
        "several times (default: nearly all of an accelerator's, three quarters of a machine's).",
        DEVICES,
        above=0,
    )
    torch_device: str | None = setting(
        None,
        "Device of models that torch runs, e.g. cuda:1 (default: cuda where there is one, else "
        "cpu; of a module: where it is).",
        DEVICES,
    )
    shard: str | None = setting(
        None,
        "Read one share of the audio, K/N; auto in a SLURM or LSF array job, auto/N in a PBS array "
        "job from 1 to N, pod on a TPU pod.",
        DEVICES,
    )
    checkpoint_every: float | int = setting(
        10.0, "Minutes between checkpoints; a run that is killed loses no more.", INTERRUPTED,
        at_least=0,
    )  # fmt: skip
    revision: str | None = setting(None, "Branch, tag or commit of hub models.", HUB)
    cache_dir: str | None = setting(None, "Cache of hub models (default: HF_HOME).", HUB)
    local_files_only: bool = setting(False, "Never ask the hub, use its cache only.", HUB)

    def __post_init__(self) -> None:
        check_fields(self)


@documented
@dataclasses.dataclass(frozen=True)
class Output:
    """What a comparison leaves besides its result.

    `statistics_dir` holds checkpoints while the audio is read, and then the sums that scores are
    made of. A run of the same job (models, audio, measures, settings, versions) continues from
    what is there, on as many devices as there are now.

    >>> ss.Output(note="held-out speakers", progress=False).note
    'held-out speakers'

    Raises:
      UserError: a value of the wrong type.
    """

    statistics_dir: str | None = setting(
        None,
        "Folder for checkpoints and for the statistics that scores are made of, which `merge` "
        "reads; may be in a bucket.",
        WRITTEN,
        flag=False,
    )
    keep_statistics: bool = setting(
        True,
        "Whether statistics_dir gets the statistics of a run too short for a checkpoint, too.",
        WRITTEN,
        flag=False,
    )
    keep_influence: Literal["auto", "rows", "clusters", "none"] = setting(
        "auto",
        "What is kept of the influences behind standard errors, next to the result: those of "
        "sampled rows (which contrasts need), of clusters, or none; auto: of rows, up to 256 MiB.",
        WRITTEN,
    )
    note: str = setting("", "A remark to keep in the result and under its figures.", WRITTEN)
    progress: bool = setting(True, "Show progress bars on stderr.", WRITTEN, flag=False)

    def __post_init__(self) -> None:
        check_fields(self)


def check_figure_formats(formats: Collection[str]) -> None:
    """Raise UserError unless figures can be written in all of them, and there is one."""
    unknown = [kind for kind in formats if kind not in FIGURE_FORMATS]
    if unknown or not formats:
        requested = ", ".join(map(repr, unknown)) or "nothing"
        close = did_you_mean(unknown[0], FIGURE_FORMATS) if unknown else ""
        raise UserError(
            f"figures are written as {', '.join(FIGURE_FORMATS)}, not as {requested}{close}"
        )


def check_figure_style(style: str) -> None:
    """Raise UserError unless heat maps have this style."""
    if style not in FIGURE_STYLES:
        close = did_you_mean(style, FIGURE_STYLES)
        raise UserError(f"no style {style!r}; there are: {', '.join(FIGURE_STYLES)}{close}")


def check_fields(record: Any) -> None:
    """Check every field of a frozen record against its annotation, bounds and choices.

    Lists become tuples, paths text, and numpy's numbers Python's.

    Raises:
      UserError: the first value of another type or out of its range, with what was expected.
    """
    hints = _hints(type(record))
    for field in dataclasses.fields(record):
        hint = hints[field.name]
        value = _plain(getattr(record, field.name), alternatives(hint))
        object.__setattr__(record, field.name, value)
        check_value(field.name, value, hint, field.metadata)


def _plain(value: Any, options: tuple[Any, ...]) -> Any:
    """The value in the type that JSON and the annotation use, where that is obvious."""
    if isinstance(value, list | range) and any(typing.get_origin(o) is tuple for o in options):
        return tuple(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def check_value(name: str, value: Any, hint: Any, metadata: Mapping[str, Any]) -> None:
    """Check one value; raises UserError that names the setting and what it expects."""
    options = alternatives(hint)
    if value is None and type(None) in options:
        return
    words = allowed_words(hint, metadata)
    if words is not None:
        if value not in words:
            expected = " or ".join(map(repr, words))
            close = did_you_mean(value, words) if isinstance(value, str) else ""
            raise UserError(f"{name} is {value!r}; expected {expected}{close}")
        return
    for option in options:
        matches = _CHECKS.get(typing.get_origin(option) or option)
        if matches is not None and matches(value, option):
            break
    else:
        raise UserError(f"{name} is {value!r}; expected {_expected(options)}")
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        _check_bounds(name, value, metadata.get("bounds") or {})


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union; of another annotation, itself."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def allowed_words(hint: Any, metadata: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The words that a setting can take, None where it is not one of a few words."""
    literals = [typing.get_args(o) for o in alternatives(hint) if typing.get_origin(o) is Literal]
    return literals[0] if literals else metadata.get("choices")


def _check_bounds(name: str, value: Any, bounds: Mapping[str, Any]) -> None:
    tests: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "at_least": ("at least", lambda bound: value >= bound),
        "above": ("more than", lambda bound: value > bound),
        "at_most": ("at most", lambda bound: value <= bound),
        "below": ("less than", lambda bound: value < bound),
    }
    stated = {key: bound for key, bound in bounds.items() if bound is not None}
    if not all(tests[key][1](bound) for key, bound in stated.items()):
        ends = " and ".join(f"{tests[key][0]} {bound:g}" for key, bound in stated.items())
        raise UserError(f"{name} is {value!r}; expected {ends}")


def _is_int(value: Any, _: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_float(value: Any, _: Any) -> bool:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)


def _is_tuple(value: Any, hint: Any) -> bool:
    options = alternatives(typing.get_args(hint)[0])
    return isinstance(value, tuple) and all(
        any(_CHECKS[option](item, option) for option in options) for item in value
    )


_CHECKS: dict[Any, Callable[[Any, Any], bool]] = {
    bool: lambda value, _: isinstance(value, bool),
    int: _is_int,
    float: _is_float,
    str: lambda value, _: isinstance(value, str),
    tuple: _is_tuple,
}
_NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


def _expected(options: tuple[Any, ...]) -> str:
    """The allowed types of a value, in words."""
    if float in options:
        options = tuple(option for option in options if option is not int)
    described = []
    for option in options:
        if typing.get_origin(option) is tuple:
            described.append("a list of texts")
        elif option is not type(None):
            described.append(_NAMES[option])
    return " or ".join([*described, *(["None"] if type(None) in options else [])])


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def with_overrides(records: Records, overrides: Mapping[str, Any]) -> Records:
    """The records with single settings replaced, each in the record that has it.

    Raises:
      UserError: a name that no record has, or a value that is not allowed.
    """
    known = {
        field.name: index
        for index, record in enumerate(records)
        for field in dataclasses.fields(record)
    }
    changes: list[dict[str, Any]] = [{} for _ in records]
    for name, value in overrides.items():
        if name not in known:
            raise UserError(
                f"unknown setting {name!r}{did_you_mean(name, known)}; known: "
                f"{', '.join(sorted(known))}"
            )
        path = isinstance(value, os.PathLike)
        changes[known[name]][name] = os.fspath(value) if path else value
    replaced = tuple(
        dataclasses.replace(record, **change) if change else record
        for record, change in zip(records, changes)
    )
    return typing.cast(Records, replaced)
