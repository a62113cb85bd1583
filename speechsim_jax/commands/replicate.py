"""The whole analysis of El Kheir et al. 2024 (arXiv 2406.16099) over a set of models.

    python -m experiments.replicate --preset=zoo --audio=speech/ --workdir=runs/zoo
    python -m experiments.replicate --preset=paper --audio=dev-clean/ --workdir=runs/paper
    python -m experiments.replicate --models=A,B --finetuned=A_CTC:A --audio=... --workdir=...

Neurons, layers, attention heads and fine-tuned against pretrained models; between models and within
them; beside them untrained models of the same architectures and another seed of one of them. Every
claim is tested on disjoint groups of utterances, by rules that --help_findings prints. Writes
findings.md and findings.json, result.nc and report.html, the paper's figures under its names
(figures/maxcorr.png, figures/hubert_finetuned_maxcorr.png, ...), config.json and log.jsonl; with
--published also published.csv and figures/published_*.png. A run that was killed goes on with
--resume.
"""

import dataclasses
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

import speechsim_jax as ss
from speechsim_jax import figures
from speechsim_jax.analyses.replication import findings, grouped, members, presets, published_maps
from speechsim_jax.analyses.replication import maps as _maps
from speechsim_jax.analyses.replication.claims import ATTENTION, MEASURES
from speechsim_jax.analyses.replication.findings import Finding
from speechsim_jax.audio import batching, open_corpus, selection
from speechsim_jax.audio.corpus import Corpus
from speechsim_jax.audio.open_corpus import with_durations
from speechsim_jax.commands import compare, resuming
from speechsim_jax.commands import flags as _flags
from speechsim_jax.errors import UserError
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.runtime import provenance

_PRESET = flags.DEFINE_enum(
    "preset", None, ["zoo", "paper"], "Models of the package's zoo, or the paper's of the hub."
)
_ZOO = flags.DEFINE_string("zoo", None, "Folder with the models of --preset=zoo.")
_FINETUNED = flags.DEFINE_list(
    "finetuned", [], "Fine-tuned models, each with what it was made from: FT:PRETRAINED."
)
_OTHER_SEED = flags.DEFINE_list(
    "other_seed", [], "Models of the same recipe with another seed, as OTHER:MODEL."
)
_GROUPS = flags.DEFINE_integer(
    "groups", 8, "Disjoint groups of utterances, at least 8 for a verdict.", lower_bound=2
)
_UNTRAINED = flags.DEFINE_list(
    "untrained", None, "Models to compare with untrained ones of their architecture; all, none."
)
_ATTENTION = flags.DEFINE_bool("attention", True, "Compare attention heads, too.")
_PUBLISHED = flags.DEFINE_string(
    "published", None, "Maps to lay beside the run (.npz); paper: those in the package; none."
)
_PUBLISHED_AS = flags.DEFINE_list(
    "published_as", [], "Published models and those of the run, as hubert-base:MY_MODEL."
)
_SPLIT = flags.DEFINE_bool(
    "split", None, "Compare few models at a time (default: with --preset=paper)."
)
_HELP_FINDINGS = flags.DEFINE_bool(
    "help_findings", False, "Print the claims, their statistics and the rules, and stop."
)

# Of the flags that `compare` brings along; the others mean nothing here.
_SETTINGS = (
    "last_layer", "batch_seconds", "max_seconds", "rows_per_update", "stats_dtype", "frame_stride",
    "model_dtype", "strict",
)  # fmt: skip
_USED = (
    *_SETTINGS, "models", "audio", "layers", "max_minutes", "attention_max_seconds", "resume",
    "checkpoint_every", "device_memory_gb", "revision", "cache_dir", "local_files_only",
    "rank_tolerance", "keep_statistics", "note", "figure_formats", "figure_style",
)  # fmt: skip
for _name in _USED:
    flags.declare_key_flag(_name)
flags.adopt_module_key_flags(_flags)

_ALL_ATTENTION = ("attn_frobenius", *ATTENTION)

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Config:
    """Which models, on what audio, and where to; models are named by their sources.

    `finetuned`: fine-tuned model, pretrained model; `seeds`: a model of the same recipe with
    another seed, the model; `untrained`: models that get an untrained counterpart (None: all).
    `published`: a file of maps, "paper" for those of the package.
    `settings`: fields of `ss.Settings`.
    """

    models: tuple[str, ...]
    audio: str
    workdir: str
    finetuned: members.ModelPairs = ()
    seeds: members.ModelPairs = ()
    groups: int = 8
    seed: int = 0
    untrained: tuple[str, ...] | None = None
    attention: bool = True
    max_minutes: float | int | None = None
    attention_max_seconds: float | int | None = 60
    layers: tuple[int, ...] | None = None
    published: str | None = None
    published_as: Mapping[str, str] = dataclasses.field(default_factory=dict)
    split: bool = False
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rank_tolerance: float | None = None
    revision: str | None = None
    cache_dir: str | None = None
    local_files_only: bool = False
    checkpoint_every: float | int = 10.0
    device_memory_gb: float | None = None
    keep_statistics: bool = False
    note: str = ""
    overwrite: bool = False
    resume: bool = False
    figure_formats: tuple[str, ...] = ("png",)
    figure_style: str = "labelled"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came out; `agreements` with published maps, if any were given."""

    findings: list[Finding]
    result: ss.SimilarityResult
    agreements: Sequence[published_maps.Agreement]


def run(config: Config) -> Outcome:
    """Compare, test the claims, write and draw everything. Raises UserError."""
    figures.check(config.figure_formats, config.figure_style)
    workdir = _flags.new_workdir(config.workdir, config.overwrite or config.resume)
    with _flags.log_to(workdir):
        if len(config.models) < 2:
            raise UserError(f"{len(config.models)} models; at least 2 are needed")
        maps = _maps.load_published(config.published)
        encoders, roles = members.load_models(
            config.models, config.finetuned, config.seeds,
            config.models if config.untrained is None else config.untrained, config.layers,
            revision=config.revision, cache_dir=config.cache_dir,
            local_files_only=config.local_files_only,
        )  # fmt: skip
        corpora, about = _corpora(config, next(iter(encoders.values())).config)
        folder = resuming.place(
            workdir / "groups",
            _identity(config, encoders, corpora),
            config.resume,
            config.overwrite,
        )
        given = grouped.GroupedComparison(
            corpora=corpora,
            measures=MEASURES,
            attention=_ALL_ATTENTION if config.attention else (),
            rankings=("mincorr",),
            settings={**config.settings, "layers": config.layers, "seed": config.seed}
            | _attention_seconds(config),
            rank_tolerance=config.rank_tolerance,
            checkpoint_minutes=config.checkpoint_every,
            device_memory_gb=config.device_memory_gb,
            keep_statistics=config.keep_statistics,
            note=config.note,
        )
        sets = members.comparison_sets(roles, list(encoders), config.split)
        made = {
            name: grouped.compare_groups(
                [encoders[model] for model in models], given, folder / name
            )
            for name, models in sets.items()
        }
        wholes = [whole for whole, _ in made.values()]
        without = list(zip(*(others for _, others in made.values())))
        there = None if maps is None else (maps.results(), _maps.published_roles(maps))
        found = findings.evaluate_claims(wholes, without, roles, there)
        told = _how(config, wholes[0], encoders, about)
        formats, style = config.figure_formats, config.figure_style
        paths = _maps.draw(wholes, roles, workdir / "figures", formats, style)
        agreements = []
        if maps is not None:
            laid = _maps.align_with_published(maps, wholes, roles, config.published_as)
            paths += _maps.draw_side_by_side(laid, workdir / "figures", formats)
            agreements = [row for one in laid for row in published_maps.agreements(one)]
            published_maps.write_csv(agreements, workdir / "published.csv")
        wholes[0].save(workdir / "result.nc")
        ss.write_report(wholes[0], workdir / "report.html")
        (workdir / "findings.json").write_text(findings.as_json(found, told))
        # A figure in several formats is shown once.
        shown = {path.stem: path for path in reversed(paths)}
        names = [f"figures/{path.name}" for path in reversed(shown.values())]
        (workdir / "findings.md").write_text(findings.markdown(found, _lines(told), names))
        (workdir / "config.json").write_text(
            json.dumps(dataclasses.asdict(config), indent=2) + "\n"
        )
    return Outcome(found, wholes[0], agreements)


# --- audio, and going on ---


def _corpora(
    config: Config, architecture: EncoderConfig
) -> tuple[tuple[Corpus, ...], dict[str, Any]]:
    """The groups, and what to say of them."""
    corpus = open_corpus.open_corpus(config.audio)
    if config.max_minutes is not None:
        corpus = selection.select(corpus, config.max_minutes, config.seed)
    corpus = with_durations(corpus)
    made = selection.disjoint_groups(corpus, config.groups, config.seed)
    known = [source.seconds for source in corpus.sources if source.seconds]
    about = {
        "audio": corpus.origin,
        "fingerprint": corpus.fingerprint(),
        "minutes": round(sum(known) / 60, 2),
        "utterances": len(corpus.sources),
        "speakers": len({source.speaker for source in corpus.sources if source.speaker}),
        "groups": len(made.corpora),
        "seconds_of_groups": [
            round(sum(source.seconds or 0.0 for source in one.sources), 1) for one in made.corpora
        ],
        "speakers_in_one_group": made.speakers_disjoint,
    }
    options = ss.Settings(**config.settings)
    buckets = batching.plan_buckets(
        known or [options.max_seconds],
        hop_samples=architecture.hop_samples,
        window_samples=architecture.window_samples,
        count=options.buckets,
        batch_seconds=options.batch_seconds,
        max_seconds=options.max_seconds,
    )
    return batching.share_buckets(made.corpora, buckets), about


def _attention_seconds(config: Config) -> dict[str, Any]:
    """Of each group, its share."""
    if not config.attention or config.attention_max_seconds is None:
        return {}
    return {"attention_max_seconds": config.attention_max_seconds / config.groups}


def _identity(
    config: Config, encoders: Mapping[str, ss.SpeechEncoder], corpora: Sequence[Corpus]
) -> dict[str, Any]:
    """What has a say in the numbers."""
    return {
        "version": ss.__version__,
        "models": {
            name: [encoder.provenance.get("sha256"), encoder.provenance.get("seed")]
            for name, encoder in encoders.items()
        },
        "groups": [corpus.fingerprint() for corpus in corpora],
        "settings": {**config.settings, "layers": config.layers, "seed": config.seed},
        "attention": _attention_seconds(config) or config.attention,
        "rank_tolerance": config.rank_tolerance,
        "split": config.split,
    }


# --- what is written ---


def _how(
    config: Config,
    result: ss.SimilarityResult,
    encoders: Mapping[str, ss.SpeechEncoder],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """How the findings were made."""
    return provenance.record(
        **about,
        frames=result.attributes["frames"],
        skipped=result.attributes["skipped"],
        models={name: dict(encoder.provenance) for name, encoder in encoders.items()},
        numeric=result.attributes["numeric"],
        config=dataclasses.asdict(config),
    )


def _lines(told: Mapping[str, Any]) -> list[str]:
    """The same in words, for the head of the page."""
    whole = "no speaker in two of them" if told["speakers_in_one_group"] else "speakers in several"
    seconds = told["seconds_of_groups"]
    lines = [
        f"audio: {told['audio']}, {told['minutes']} min, {told['utterances']} utterances, "
        f"{told['speakers']} known speakers, {told['frames']} frames",
        f"{told['groups']} groups of {min(seconds)} to {max(seconds)} s, {whole}",
        f"models: {', '.join(told['models'])}",
        f"speechsim_jax {told['versions']['speechsim_jax']}, jax {told['versions']['jax']}, "
        f"{told['device']['platform']}, {told['created']}",
    ]
    if told["groups"] < 8:
        lines.append(
            f"**{told['groups']} groups are too few**: 8 are needed for a verdict to count"
        )
    return lines + ([told["config"]["note"]] if told["config"]["note"] else [])


# --- presets and flags ---


def of_preset(
    name: str,
    zoo: str | None = None,
    *,
    finetuned: members.ModelPairs = (),
    seeds: members.ModelPairs = (),
    settings: Mapping[str, Any] | None = None,
    published: str | None = None,
    published_as: Mapping[str, str] | None = None,
    split: bool | None = None,
    **given: Any,
) -> Config:
    """The Config of a preset, "zoo" or "paper"; what is given adds to it, or wins.

    `zoo`: a folder with other models of the zoo's names. Raises UserError.
    """
    chosen = presets.load_preset(name, zoo)
    defaults = {
        "max_minutes": chosen.minutes,
        "attention_max_seconds": chosen.attention_seconds,
        "untrained": chosen.untrained,
    }
    return Config(
        models=chosen.models,
        finetuned=chosen.finetuned + finetuned,
        seeds=chosen.seeds + seeds,
        settings={**chosen.settings, **(settings or {})},
        published=published or "paper",
        published_as=published_as or dict(chosen.published_as),
        split=chosen.split if split is None else split,
        **(defaults | given),
    )


def config_from_flags() -> Config:
    """The flags as a Config; raises UserError for what is missing or means nothing here."""
    compare.refuse_flags("the replication", _USED)
    value: dict[str, Any] = {
        name: flags.FLAGS[name].value for name in (*_USED, "workdir", "seed", "overwrite")
    }
    present = {name for name in _USED if flags.FLAGS[name].present}
    for name in ("audio", "workdir"):
        if not value[name]:
            raise UserError(f"--{name} is required; see --help")
    settings = {name: value[name] for name in _SETTINGS if name in present}
    common = {
        "audio": str(value["audio"]),
        "workdir": str(value["workdir"]),
        "groups": _GROUPS.value,
        "figure_formats": tuple(value["figure_formats"]),
        "figure_style": value["figure_style"],
        "attention": _ATTENTION.value,
        "layers": _layers(value["layers"]),
        "settings": settings,
        "published_as": dict(_pairs("published_as", _PUBLISHED_AS.value)),
        **{
            name: value[name]
            for name in (
                "seed", "overwrite", "resume", "checkpoint_every", "device_memory_gb", "revision",
                "cache_dir", "local_files_only", "rank_tolerance", "keep_statistics", "note",
            )
        },
    }  # fmt: skip
    finetuned = tuple(_pairs("finetuned", _FINETUNED.value))
    seeds = tuple(_pairs("other_seed", _OTHER_SEED.value))
    if _UNTRAINED.value is not None:
        named = ",".join(_UNTRAINED.value)
        words = {"all": None, "none": ()}
        common["untrained"] = words.get(named, tuple(_UNTRAINED.value))
    for name in ("max_minutes", "attention_max_seconds"):
        if name in present:
            common[name] = value[name]
    if _PRESET.value is None:
        if not value["models"]:
            raise UserError("--models or --preset is required; see --help")
        return Config(
            models=tuple(value["models"]), finetuned=finetuned, seeds=seeds,
            published=_PUBLISHED.value, split=bool(_SPLIT.value), **common,
        )  # fmt: skip
    if value["models"]:
        raise UserError(f"--preset={_PRESET.value} has its models; leave out --models")
    return of_preset(
        _PRESET.value, _ZOO.value, finetuned=finetuned, seeds=seeds, split=_SPLIT.value,
        published=_PUBLISHED.value, **common,
    )  # fmt: skip


def refuse_own_flags(what: str) -> None:
    """Raise UserError for a flag of the replication that a script which imports this ignores."""
    for flag in flags.FLAGS.flags_by_module_dict()[__name__]:
        if flag.present:
            raise UserError(f"--{flag.name} is not for {what}; use experiments.replicate")


def _layers(words: Sequence[str]) -> tuple[int, ...] | None:
    if not all(word.removeprefix("-").isdigit() for word in words):
        raise UserError(f"--layers={','.join(words)}: expected numbers, e.g. 0,6,-1")
    return tuple(map(int, words)) or None


def _pairs(flag: str, given: Sequence[str]) -> list[tuple[str, str]]:
    """A:B, where "random:ID" may be the first and "zoo:NAME" either."""
    found = []
    for text in given:
        match = re.fullmatch(r"(.+?):((?:zoo:)?[^:]+)", text)
        if match is None:
            raise UserError(f"--{flag}={text}: expected two names with a colon between them")
        found.append((match[1], match[2]))
    return found


def main() -> None:
    """Run from the flags and print what came out."""
    if _HELP_FINDINGS.value:
        print(findings.explain())
        return
    config = config_from_flags()
    _flags.use_compilation_cache()
    outcome = run(config)
    if outcome.agreements:
        whole = [row for row in outcome.agreements if row.x == "all" or "finetuned" in row.name]
        print(published_maps.table(whole), end="\n\n")
    print(findings.table(outcome.findings))
    print(f"\nwritten: {Path(config.workdir, 'findings.md')} and what it shows")
