"""What can be set about `compare`, and what is wrong with what was set."""

import dataclasses
import os
from typing import Any, Literal

import jax

from speechsim_jax.errors import UserError

# Measures on the sample hold n x n matrices: 0.8 GB each at the upper end.
_SAMPLE_FRAMES = (4, 10_000)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How `compare` works; everything that can change a number is here and in the result.

    `layers`: hidden states to compare, in every model (-1 is the last), all if None.
    `max_minutes`: a seeded choice of utterances, balanced over speakers. `seed`: of every choice.
    `batch_seconds`, `buckets`, `max_seconds`: audio in one batch, how many padded lengths are
    compiled, and the length beyond which an utterance is cut into equal pieces.
    `rows_per_update`: frames gathered before the statistics are updated.
    `rank_tolerance`: smallest eigenvalue kept in whitening, relative to the largest (default:
    1e-6 for float32 statistics, width * 2.2e-16 for float64).
    `strict`: a file that cannot be used is an error instead of being skipped and listed.
    `sample_frames`: rows of the seeded sample that the measures on n x n matrices read (4 to
    10 000; their memory and time grow with the square).
    `model_precision`: of the encoders' products, in JAX's words ("highest", "high", "default").
    `model_dtype`: "bfloat16" rounds the encoders' kernels (`SpeechEncoder.astype`).
    `attention_max_seconds`: the attention level sees only a seeded choice of utterances, of at most
    so much audio.

    Which frames are compared by all but the attention level (`frames.FrameChoice` has the details):
    `frame_stride`: every k-th frame of an utterance. `pool`: "none", or one row for each
    "utterance" or "segment", the mean of its frames. `alignments`: a .tsv, .ctm or .TextGrid file
    or a folder of TextGrid files; utterances that it lacks are skipped. `alignment_tier`: which of
    its tiers. `drop_labels`: frames of segments with these labels are left out ("SIL", ...).

    >>> ss.Settings(max_minutes=60, frame_stride=5).rows_per_update
    4096
    """

    layers: tuple[int, ...] | None = None
    max_minutes: float | int | None = None
    seed: int = 0
    last_layer: Literal["normed", "raw"] = "normed"
    batch_seconds: float | int = 40.0
    buckets: int = 4
    max_seconds: float | int = 60.0
    rows_per_update: int = 4096
    stats_dtype: Literal["float32", "float64"] = "float32"
    rank_tolerance: float | None = None
    model_precision: str = "highest"
    model_dtype: Literal["float32", "bfloat16"] = "float32"
    attention_max_seconds: float | int | None = None
    strict: bool = False
    sample_frames: int = 2000
    frame_stride: int = 1
    pool: Literal["none", "utterance", "segment"] = "none"
    alignments: str | None = None
    alignment_tier: str | None = None
    drop_labels: tuple[str, ...] = ()


_CHOICES = {
    "stats_dtype": ("float32", "float64"),
    "last_layer": ("normed", "raw"),
    "model_dtype": ("float32", "bfloat16"),
    "model_precision": ("highest", "high", "default"),
    "pool": ("none", "utterance", "segment"),
}


def settings_from(given: dict[str, Any]) -> Settings:
    """The settings of these names and values; raises UserError for what is unknown or impossible.

    Nothing is read: what a file of alignments lacks is found out later.
    """
    known = {field.name for field in dataclasses.fields(Settings)}
    for name in given:
        if name not in known:
            raise UserError(f"unknown setting {name!r}; known: {', '.join(sorted(known))}")
    if given.get("layers") is not None:
        given = given | {"layers": tuple(given["layers"])}
    if isinstance(given.get("drop_labels"), str):
        raise UserError(f"drop_labels is {given['drop_labels']!r}; expected a list of labels")
    given = given | {"drop_labels": tuple(given.get("drop_labels", ()))}
    if given.get("alignments") is not None:
        given = given | {"alignments": os.fspath(given["alignments"])}
    for name, allowed in _CHOICES.items():
        if given.get(name, allowed[0]) not in allowed:
            expected = " or ".join(map(repr, allowed))
            raise UserError(f"{name} is {given[name]!r}; expected {expected}")
    options = Settings(**given)
    if options.stats_dtype == "float64" and jax.default_backend() != "cpu":
        raise UserError("stats_dtype='float64' needs a CPU; accelerators use compensated float32")
    for name in ("rows_per_update", "frame_stride"):
        if getattr(options, name) < 1:
            raise UserError(f"{name} is {getattr(options, name)}; expected at least 1")
    if options.attention_max_seconds is not None and not options.attention_max_seconds > 0:
        given_seconds = options.attention_max_seconds
        raise UserError(f"attention_max_seconds is {given_seconds}; expected a positive number")
    check_sample_frames(options.sample_frames)
    _check_alignments(options)
    return options


def check_sample_frames(rows: int) -> None:
    """Raise UserError for a sample too small or too large."""
    least, most = _SAMPLE_FRAMES
    if not least <= rows <= most:
        raise UserError(f"sample_frames is {rows}; expected {least} to {most}")


def _check_alignments(options: Settings) -> None:
    """Alignments are needed for what reads them, and for nothing else."""
    needed = {"pool='segment'": options.pool == "segment", "drop_labels": bool(options.drop_labels)}
    wanted = [name for name, used in needed.items() if used]
    if wanted and options.alignments is None:
        raise UserError(f"{wanted[0]} needs alignments: a .tsv, .ctm or .TextGrid file or a folder")
    if options.alignments is not None and not wanted:
        raise UserError(f"alignments are given but not used; add {' or '.join(needed)}")
    if options.alignment_tier is not None and options.alignments is None:
        raise UserError("alignment_tier is given without alignments")
