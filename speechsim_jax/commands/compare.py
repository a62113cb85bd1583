"""Compare all layers of several speech encoders on the same audio.

    python -m experiments.compare --models=facebook/hubert-base-ls960,runs/mine \\
        --audio=speech/ --workdir=runs/hubert_and_mine

writes config.json, result.nc, report.html, figures/*.png and log.jsonl into the workdir and prints
a table of means. From a notebook: `run(Config(models=(...), audio=..., workdir=...))`.
"""

import dataclasses
import json
import logging
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from absl import flags

import speechsim_jax as ss
from speechsim_jax import figures
from speechsim_jax.commands import flags as _flags
from speechsim_jax.commands import scoring
from speechsim_jax.errors import UserError
from speechsim_jax.runtime import processes

_MODELS = flags.DEFINE_list(
    "models", [], "Hub ids, folders or zoo:NAME of encoders; random:ID for untrained."
)
_AUDIO = flags.DEFINE_string(
    "audio", None, "Folder, manifest (.tsv), list (.txt), sound file, or hf:NAME/CONFIG/SPLIT."
)
_LAYERS = flags.DEFINE_list("layers", [], "Only these hidden states, e.g. 0,6,-1 (default: all).")
_LAST_LAYER = flags.DEFINE_enum(
    "last_layer", "normed", ["normed", "raw"], "Last hidden state of pre-norm models: reading."
)
_MAX_MINUTES = flags.DEFINE_float(
    "max_minutes", None, "At most so much audio: a seeded choice, balanced over speakers."
)
_BATCH_SECONDS = flags.DEFINE_float(
    "batch_seconds", 40.0, "Audio in one batch.", upper_bound=86_400.0
)
_MAX_SECONDS = flags.DEFINE_float("max_seconds", 60.0, "Longer utterances are cut in pieces.")
_ROWS_PER_UPDATE = flags.DEFINE_integer(
    "rows_per_update", 4096, "Frames gathered before the statistics are updated.", lower_bound=1
)
_STATS_DTYPE = flags.DEFINE_enum(
    "stats_dtype", "float32", ["float32", "float64"], "Statistics (float32 is compensated)."
)
_SAMPLE_FRAMES = flags.DEFINE_integer(
    "sample_frames", 2000, "Frames of the seeded sample that rbfcka, mutual_knn and rsa read."
)
_FRAME_STRIDE = flags.DEFINE_integer(
    "frame_stride", 1, "Compare every k-th frame of an utterance.", lower_bound=1
)
_POOL = flags.DEFINE_enum(
    "pool", "none", ["none", "utterance", "segment"], "Average the frames of each to one row."
)
_ALIGNMENTS = flags.DEFINE_string(
    "alignments", None, "Segments: .tsv, .ctm or .TextGrid file, or a folder of TextGrid files."
)
_ALIGNMENT_TIER = flags.DEFINE_string(
    "alignment_tier", None, "Tier of --alignments to use, where there are several."
)
_DROP_LABELS = flags.DEFINE_list(
    "drop_labels", [], "Leave out frames in segments of --alignments with these labels, e.g. SIL."
)
_MODEL_DTYPE = flags.DEFINE_enum(
    "model_dtype", "float32", ["float32", "bfloat16"], "Numbers that the encoders multiply."
)
_ATTENTION_MAX_SECONDS = flags.DEFINE_float(
    "attention_max_seconds", None, "Attention level: a seeded choice of so much audio."
)
_RESUME = flags.DEFINE_bool("resume", False, "Go on with the unfinished run in --workdir.")
_CHECKPOINT_EVERY = flags.DEFINE_float(
    "checkpoint_every",
    10.0,
    "Minutes between checkpoints in --workdir; a run that is killed loses no more.",
    lower_bound=0.0,
)
_MESH = flags.DEFINE_string(
    "mesh", None, "Devices, e.g. data:4,feature:2 (default: all hear different utterances)."
)
_DEVICE_MEMORY_GB = flags.DEFINE_float(
    "device_memory_gb",
    None,
    "Memory that each device may use; where the statistics need more, the audio is read several "
    "times (default: nearly all of an accelerator's, three quarters of a machine's).",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "Where process 0 of several is met, HOST:PORT; auto on a TPU pod, under SLURM or Open MPI.",
)
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes share the job.")
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0 on.")
_PROCESS_TIMEOUT = flags.DEFINE_float(
    "process_timeout",
    60.0,
    "Seconds of silence after which a process counts as lost.",
    lower_bound=1,
)
_STRICT = flags.DEFINE_bool("strict", False, "Stop at an unusable file instead of skipping it.")
_REVISION = flags.DEFINE_string("revision", None, "Branch, tag or commit of hub models.")
_CACHE_DIR = flags.DEFINE_string("cache_dir", None, "Cache of hub models (default: HF_HOME).")
_OFFLINE = flags.DEFINE_bool("local_files_only", False, "Never ask the hub, use its cache only.")
_HELP_MEASURES = flags.DEFINE_bool("help_measures", False, "List the measures and stop.")
flags.adopt_module_key_flags(_flags)  # so that --help lists them too
flags.adopt_module_key_flags(scoring)


# Each is a field of `ss.Settings` of the same name.
_SETTINGS = (
    _MAX_MINUTES,
    _flags.SEED,
    _LAST_LAYER,
    _BATCH_SECONDS,
    _MAX_SECONDS,
    _ROWS_PER_UPDATE,
    _STATS_DTYPE,
    scoring.RANK_TOLERANCE,
    _MODEL_DTYPE,
    _ATTENTION_MAX_SECONDS,
    _STRICT,
    _SAMPLE_FRAMES,
    _FRAME_STRIDE,
    _POOL,
    _ALIGNMENTS,
    _ALIGNMENT_TIER,
)

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compare and where to put it; `settings` are the fields of `ss.Settings`."""

    models: tuple[str, ...]
    audio: str
    workdir: str
    measures: str = "paper"
    levels: tuple[str, ...] = ()
    settings: ss.Settings = dataclasses.field(default_factory=ss.Settings)
    revision: str | None = None
    cache_dir: str | None = None
    local_files_only: bool = False
    note: str = ""
    overwrite: bool = False
    resume: bool = False
    checkpoint_every: float = 10.0
    mesh: str | None = None
    device_memory_gb: float | None = None
    keep_statistics: bool = False
    figure_formats: tuple[str, ...] = ("png",)
    figure_style: str = "labelled"


def run(config: Config) -> ss.SimilarityResult:
    """Compare, save and draw; returns the result that was saved. Raises UserError."""
    figures.check(config.figure_formats, config.figure_style)
    # What is left of a run that was killed at its very end may be written over.
    unfinished = config.resume and Path(config.workdir, "checkpoints").exists()
    workdir = _flags.new_workdir(config.workdir, config.overwrite or unfinished)
    checkpoints = _checkpoints(workdir, config)
    statistics = workdir / "statistics"
    if not unfinished:
        shutil.rmtree(statistics, ignore_errors=True)
    given = dataclasses.asdict(config)
    with _flags.log_to(workdir):
        _log.debug("config: %s", json.dumps(given))
        if config.resume and not checkpoints.exists():
            _log.warning("no checkpoint in %s: starting from the beginning", workdir)
        result = ss.compare(
            config.models,
            config.audio,
            measures=config.measures,
            levels=config.levels or None,
            note=config.note,
            revision=config.revision,
            cache_dir=config.cache_dir,
            local_files_only=config.local_files_only,
            checkpoint_dir=checkpoints,
            checkpoint_every=config.checkpoint_every,
            mesh=config.mesh,
            device_memory_gb=config.device_memory_gb,
            keep_statistics=statistics if config.keep_statistics else None,
            progress=not _flags.quiet(),
            **{f.name: getattr(config.settings, f.name) for f in dataclasses.fields(ss.Settings)},
        )
        if processes.is_first():
            _flags.save_result(result, workdir, given, config.figure_formats, config.figure_style)
            shutil.rmtree(checkpoints, ignore_errors=True)
    return result


def _checkpoints(workdir: Path, config: Config) -> Path:
    """Where checkpoints are; raises UserError if there are some that may not be touched."""
    folder = workdir / "checkpoints"
    if folder.exists() and not config.resume:
        if not config.overwrite:
            raise UserError(
                f"{folder} is of an unfinished run; pass --resume to go on, or --overwrite"
            )
        shutil.rmtree(folder)
    return folder


def config_from_flags() -> Config:
    """The flags as a Config; raises UserError for what is missing or malformed."""
    for flag in (_MODELS, _AUDIO, _flags.WORKDIR):
        if not flag.value:
            raise UserError(f"--{flag.name} is required; see --help")
    if not all(_MODELS.value):
        raise UserError(f"--models={','.join(_MODELS.value)}: expected hub ids or folders")
    settings: dict[str, Any] = {flag.name: flag.value for flag in _SETTINGS}
    settings["drop_labels"] = tuple(_DROP_LABELS.value)
    return Config(
        models=tuple(_MODELS.value),
        audio=str(_AUDIO.value),
        workdir=str(_flags.WORKDIR.value),
        measures=scoring.MEASURES.value or "paper",
        levels=tuple(scoring.LEVELS.value),
        settings=ss.Settings(layers=_layers(_LAYERS.value), **settings),
        revision=_REVISION.value,
        cache_dir=_CACHE_DIR.value,
        local_files_only=_OFFLINE.value,
        note=scoring.NOTE.value,
        overwrite=_flags.OVERWRITE.value,
        resume=_RESUME.value,
        checkpoint_every=_CHECKPOINT_EVERY.value,
        mesh=_MESH.value,
        device_memory_gb=_DEVICE_MEMORY_GB.value,
        keep_statistics=scoring.KEEP_STATISTICS.value,
        figure_formats=tuple(scoring.FIGURE_FORMATS.value),
        figure_style=scoring.FIGURE_STYLE.value,
    )


def refuse_flags(what: str, used: Collection[str] = ()) -> None:
    """Raise UserError for a flag of comparisons that a script which imports this would ignore."""
    by_module = flags.FLAGS.flags_by_module_dict()
    for flag in by_module[__name__] + by_module[scoring.__name__]:
        if flag.present and flag.name not in used:
            raise UserError(f"--{flag.name} is not for {what}; use experiments.compare")


def _layers(words: list[str]) -> tuple[int, ...] | None:
    try:
        return tuple(int(word) for word in words) or None
    except ValueError:
        raise UserError(f"--layers={','.join(words)}: expected numbers, e.g. 0,6,-1") from None


def main() -> None:
    """Run from the flags and print what came out."""
    if _HELP_MEASURES.value:
        for measure in ss.list_measures():
            print(f"{measure.name:20} {measure.level:9} {measure.summary}  [{measure.reference}]")
        return
    config = config_from_flags()
    place = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
    with processes.joined(*place, silence_seconds=_PROCESS_TIMEOUT.value):
        _flags.use_compilation_cache()
        result = run(config)
        if not processes.is_first():
            return
    print(result.summary())
    print(f"\nwritten: {Path(config.workdir, 'result.nc')}, report.html and figures beside it")
