"""Compare all layers of several speech encoders on the same audio.

    python -m experiments.compare --models=facebook/hubert-base-ls960,runs/mine \\
        --audio=speech/ --workdir=runs/hubert_and_mine

writes config.json, result.nc, figures/*.png and log.jsonl into the workdir. From a notebook:
`run(Config(models=(...), audio=..., workdir=...))`.
"""

import dataclasses
import json
from pathlib import Path

from absl import flags

import speechsim_jax as ss
from experiments import _flags
from speechsim_jax import figures
from speechsim_jax.errors import UserError

_MODELS = flags.DEFINE_list("models", [], "Hub ids or folders of encoders.")
_AUDIO = flags.DEFINE_string("audio", None, "Folder, manifest (.tsv), list (.txt) or sound file.")
_MEASURES = flags.DEFINE_string("measures", "paper", "paper, all, or names; see --help_measures.")
_LEVELS = flags.DEFINE_list("levels", [], "Only measures of these levels: neuron, mixed, layer.")
_LAYERS = flags.DEFINE_list("layers", [], "Only these hidden states, e.g. 0,6,-1 (default: all).")
_LAST_LAYER = flags.DEFINE_enum(
    "last_layer", "normed", ["normed", "raw"], "Last hidden state of pre-norm models: reading."
)
_MAX_MINUTES = flags.DEFINE_float(
    "max_minutes", None, "At most so much audio: a seeded choice, balanced over speakers."
)
_BATCH_SECONDS = flags.DEFINE_float("batch_seconds", 40.0, "Audio in one batch.")
_MAX_SECONDS = flags.DEFINE_float("max_seconds", 60.0, "Longer utterances are cut in pieces.")
_STATS_DTYPE = flags.DEFINE_enum(
    "stats_dtype", "float32", ["float32", "float64"], "Statistics (float32 is compensated)."
)
_RANK_TOLERANCE = flags.DEFINE_float(
    "rank_tolerance", None, "Smallest relative eigenvalue kept (default: by --stats_dtype)."
)
_STRICT = flags.DEFINE_bool("strict", False, "Stop at an unusable file instead of skipping it.")
_REVISION = flags.DEFINE_string("revision", None, "Branch, tag or commit of hub models.")
_CACHE_DIR = flags.DEFINE_string("cache_dir", None, "Cache of hub models (default: HF_HOME).")
_OFFLINE = flags.DEFINE_bool("local_files_only", False, "Never ask the hub, use its cache only.")
_NOTE = flags.DEFINE_string("note", "", "A remark to keep in the result and under its figures.")
_HELP_MEASURES = flags.DEFINE_bool("help_measures", False, "List the measures and stop.")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compare and where to put it; `settings` are the fields of `ss.Settings`."""

    models: tuple[str, ...]
    audio: str
    workdir: str
    measures: str = "paper"
    levels: tuple[str, ...] = ()
    settings: ss.Settings = ss.Settings()
    revision: str | None = None
    cache_dir: str | None = None
    local_files_only: bool = False
    note: str = ""
    overwrite: bool = False


def run(config: Config) -> ss.SimilarityResult:
    """Compare, save and draw; returns the result that was saved. Raises UserError."""
    workdir = _flags.new_workdir(config.workdir, config.overwrite)
    (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    close_log = _flags.log_to(workdir)
    try:
        result = ss.compare(
            config.models,
            config.audio,
            measures=config.measures,
            levels=config.levels or None,
            note=config.note,
            revision=config.revision,
            cache_dir=config.cache_dir,
            local_files_only=config.local_files_only,
            **{f.name: getattr(config.settings, f.name) for f in dataclasses.fields(ss.Settings)},
        )
        result.save(workdir / "result.nc")
        figures.save_figures(result, workdir / "figures")
    finally:
        close_log()
    return result


def config_from_flags() -> Config:
    """The flags as a Config; raises UserError for what is missing or malformed."""
    for name, value in (("models", _MODELS.value), ("audio", _AUDIO.value)):
        if not value:
            raise UserError(f"--{name} is required; see --help")
    if not _flags.WORKDIR.value:
        raise UserError("--workdir is required; see --help")
    settings = ss.Settings(
        layers=_layers(_LAYERS.value),
        max_minutes=_MAX_MINUTES.value,
        seed=_flags.SEED.value,
        last_layer=_LAST_LAYER.value,
        batch_seconds=_BATCH_SECONDS.value,
        max_seconds=_MAX_SECONDS.value,
        stats_dtype=_STATS_DTYPE.value,
        rank_tolerance=_RANK_TOLERANCE.value,
        strict=_STRICT.value,
    )
    return Config(
        models=tuple(_MODELS.value),
        audio=_AUDIO.value,
        workdir=_flags.WORKDIR.value,
        measures=_MEASURES.value,
        levels=tuple(_LEVELS.value),
        settings=settings,
        revision=_REVISION.value,
        cache_dir=_CACHE_DIR.value,
        local_files_only=_OFFLINE.value,
        note=_NOTE.value,
        overwrite=_flags.OVERWRITE.value,
    )


def _layers(words: list[str]) -> tuple[int, ...] | None:
    try:
        return tuple(int(word) for word in words) or None
    except ValueError:
        raise UserError(f"--layers={','.join(words)}: expected numbers, e.g. 0,6,-1") from None


def main() -> None:
    """Run from the flags and print what came out."""
    if _HELP_MEASURES.value:
        for measure in ss.list_measures():
            print(f"{measure.name:12} {measure.level:8} {measure.summary}  [{measure.reference}]")
        return
    config = config_from_flags()
    _flags.use_compilation_cache()
    result = run(config)
    print(result.summary())
    print(f"\nwritten: {Path(config.workdir, 'result.nc')} and {Path(config.workdir, 'figures')}")


if __name__ == "__main__":
    _flags.start(main)
