"""The analysis of El Kheir et al. 2024 (arXiv 2406.16099) over a set of models.

    speechsim replicate --preset=zoo --audio=speech/ --workdir=runs/zoo
    speechsim replicate --preset=paper --audio=dev-clean/ --workdir=runs/paper
    speechsim replicate --models=A,B --finetuned=A_CTC:A --audio=... --workdir=...

Neurons, layers, attention heads and fine-tuned against pretrained models; between models and within
them; with untrained models of the same architectures and another seed of one of them as baselines.
Every claim is tested by standard errors over speakers or utterances, with rules that
--help_findings prints; --groups=8 adds the verdicts of a jackknife over groups of utterances, and
--labels=phone:ALIGNMENTS a claim about what neurons encode.
Attention is compared on 60 s of audio by default, or what a preset names. Writes
findings.md and findings.json, result.nc and report.html, the paper's figures under its names
(figures/maxcorr.png, figures/hubert_finetuned_maxcorr.png, ...), config.json and log.jsonl; with
--published also published.csv and figures/published_*.png. A run that was killed continues with
--resume.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from absl.flags import FlagValues

from speechsim_jax.commands import flags, inputs
from speechsim_jax.commands.compilation_cache import use_compilation_cache
from speechsim_jax.commands.log import log_to
from speechsim_jax.commands.workdir import new_workdir, partial_results, write_json
from speechsim_jax.errors import UserError
from speechsim_jax.runtime.atomic_write import remove_folder, write_text
from speechsim_jax.settings import COMPARED, Output, Resources, Settings, setting

if TYPE_CHECKING:
    from speechsim_jax.analyses.replication import published_maps
    from speechsim_jax.analyses.replication.findings import Finding
    from speechsim_jax.audio.corpus import Corpus
    from speechsim_jax.models.config import EncoderConfig
    from speechsim_jax.models.encoder import SpeechEncoder
    from speechsim_jax.results.result import SimilarityResult

Pairs = tuple[tuple[str, str], ...]

_SETTINGS = (
    "layers", "max_minutes", "last_layer", "frame_stride", "labels", "label_min_share", "seed",
    "attention_max_seconds", "errors", "errors_rows",
    "rank_tolerance", "model_dtype", "stats_dtype", "batch_seconds", "max_seconds",
    "rows_per_update", "strict", "layout", "speaker_from", "glob", "exclude",
    "channel",
)  # fmt: skip
_RESOURCES = (
    "device_memory_gb", "checkpoint_every", "revision", "cache_dir", "local_files_only",
)  # fmt: skip
# The same in all groups, which share their programs.
_BUCKETS_OF_GROUPS = 4
# One reading: a claim is over many cells, of which the sample says enough.
_DEFAULTS = Settings(attention_max_seconds=60, errors_source="sample")


@dataclasses.dataclass(frozen=True)
class Config:
    """Which models, on what audio, and where results go; models are named by their sources.

    Attributes:
      models: hub ids, folders or zoo:NAME of pretrained encoders.
      audio: folder, manifest, list or dataset.
      workdir: folder for results; made if missing.
      finetuned: pairs of a fine-tuned model and the pretrained one it was made from.
      seeds: pairs of a model of the same recipe with another seed, and the model.
      groups: disjoint groups of utterances for verdicts by a jackknife over these, too; 8 are
        needed for one; 0 for none.
      untrained: models that get an untrained counterpart (None: all).
      attention: whether attention heads are compared.
      published: a file of published maps; "paper" for those of the package.
      published_as: published model -> model of the run.
      split: compare few models at a time.
      settings: settings of every comparison; `max_minutes` and `attention_max_seconds` are of all
        groups together. Held-out scores are always computed.
      resources: devices, checkpoints and hub.
      output: note and progress.
      keep_statistics: whether statistics stay in the workdir.
      overwrite: whether results may be replaced.
      resume: continue the unfinished run in the workdir.
      figure_formats: any of png, pdf, svg.
      figure_style: "labelled", or "paper" for heat maps as published.
    """

    models: tuple[str, ...]
    audio: str
    workdir: str
    finetuned: Pairs = ()
    seeds: Pairs = ()
    groups: int = 0
    untrained: tuple[str, ...] | None = None
    attention: bool = True
    published: str | None = None
    published_as: Mapping[str, str] = dataclasses.field(default_factory=dict)
    split: bool = False
    settings: Settings = _DEFAULTS
    resources: Resources = flags.nested(Resources(), only=_RESOURCES)
    output: Output = flags.nested(Output())
    keep_statistics: bool = False
    overwrite: bool = False
    resume: bool = False
    figure_formats: tuple[str, ...] = ("png",)
    figure_style: str = "labelled"

    def __post_init__(self) -> None:
        flags.check_figures(self.figure_formats, self.figure_style)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Flags:
    preset: Literal["zoo", "paper"] | None = flags.own(
        None, "Models of the package's zoo, or the paper's of the hub."
    )
    zoo: str | None = flags.own(None, "Folder with the models of --preset=zoo.")
    finetuned: tuple[str, ...] = flags.own(
        (), "Fine-tuned models, each with what it was made from: FT:PRETRAINED."
    )
    other_seed: tuple[str, ...] = flags.own(
        (), "Models of the same recipe with another seed, as OTHER:MODEL."
    )
    groups: int = flags.own(
        0,
        "Show the verdicts of a jackknife over so many disjoint groups of utterances, too: at "
        "least 8; 0 for none.",
        at_least=0,
    )
    untrained: tuple[str, ...] | None = flags.own(
        None, "Models to compare with untrained ones of their architecture; all, none."
    )
    attention: bool = flags.own(True, "Compare attention heads, too.")
    published: str | None = flags.own(
        None, "Published maps to compare with (.npz); paper: those in the package; none."
    )
    published_as: tuple[str, ...] = flags.own(
        (), "Published models and those of the run, as hubert-base:MY_MODEL."
    )
    split: bool | None = flags.own(
        None, "Compare few models at a time (default: with --preset=paper)."
    )
    help_findings: bool = flags.own(
        False, "Print the claims, their statistics and the rules, and stop."
    )
    models: tuple[str, ...] = setting(
        (), "Hub ids, folders or zoo:NAME of encoders, where there is no --preset.", COMPARED
    )
    audio: str = flags.audio()
    workdir: str = flags.workdir()
    settings: Settings = flags.nested(_DEFAULTS, only=_SETTINGS)
    resources: Resources = flags.nested(Resources(), only=_RESOURCES)
    output: Output = flags.nested(Output())
    keep_statistics: bool = flags.keep_statistics()
    overwrite: bool = flags.overwrite()
    resume: bool = flags.resume()
    figure_formats: tuple[str, ...] = flags.figure_formats()
    figure_style: str = flags.figure_style()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Results of a replication.

    Attributes:
      findings: outcome of every claim.
      result: the comparison on all the audio.
      agreements: agreement with published maps, if any were given.
    """

    findings: list[Finding]
    result: SimilarityResult
    agreements: Sequence[published_maps.Agreement]


def run(config: Config) -> Outcome:
    """Compare, test the claims, write and draw everything.

    Returns:
      The findings and what they are made of.

    Raises:
      UserError: whatever is wrong with the configuration, the models, the audio or the workdir.
    """
    workdir = new_workdir(config.workdir, config.overwrite or config.resume)
    with log_to(workdir, config.output.progress):
        if len(config.models) < 2:
            raise UserError(f"{len(config.models)} models; at least 2 are needed")
        inputs.check_models(config.models, config.resources.revision)
        corpus = inputs.open_audio(config.audio, config.settings)
        inputs.log_start(config.models, corpus)

        import speechsim_jax as ss
        from speechsim_jax.analyses.replication import (
            concept_claim,
            findings,
            grouped,
            maps,
            members,
            published_maps,
        )
        from speechsim_jax.analyses.replication.claims import ATTENTION, MEASURES
        from speechsim_jax.analyses.replication.jackknife import Groups

        published = maps.load_published(config.published)
        encoders, roles = members.load_models(
            config.models,
            config.finetuned,
            config.seeds,
            config.models if config.untrained is None else config.untrained,
            config.settings.layers,
            revision=config.resources.revision,
            cache_dir=config.resources.cache_dir,
            local_files_only=config.resources.local_files_only,
        )
        chosen, corpora, audio_facts = _corpora(
            corpus, config, next(iter(encoders.values())).config
        )
        identity = _identity(config, encoders, chosen, corpora)
        folder = partial_results(workdir / "comparisons", identity, config.resume, config.overwrite)
        sets = {
            name: [encoders[model] for model in models]
            for name, models in members.comparison_sets(roles, list(encoders), config.split).items()
        }
        attention = ("attn_frobenius", *ATTENTION) if config.attention else ()
        wholes = [
            ss.compare(
                models,
                chosen,
                measures=(*MEASURES, "mincorr", *attention),
                settings=dataclasses.replace(config.settings, max_minutes=None, heldout=True),
                resources=config.resources,
                # Verdicts need them; what the saved result keeps is up to the output.
                output=dataclasses.replace(
                    config.output,
                    statistics_dir=str(folder / name),
                    keep_statistics=config.keep_statistics,
                    keep_influence="rows",
                ),
            )
            for name, models in sets.items()
        ]
        groups = None
        if corpora:
            comparison = grouped.GroupedComparison(
                corpora=corpora,
                measures=MEASURES,
                attention=attention,
                settings=_settings_of_groups(config),
                rank_tolerance=config.settings.rank_tolerance,
                checkpoint_every=config.resources.checkpoint_every,
                device_memory_gb=config.resources.device_memory_gb,
                note=config.output.note,
                progress=config.output.progress,
            )
            results = [
                grouped.compare_groups(models, comparison, folder / f"groups-{name}")
                for name, models in sets.items()
            ]
            without = list(zip(*(others for _, others in results)))
            groups = Groups([whole for whole, _ in results], without)
        baseline = (
            None if published is None else (published.results(), maps.published_roles(published))
        )
        tested = [
            *findings.evaluate_claims(wholes, roles, baseline, groups=groups),
            concept_claim.evaluate(wholes, roles),
        ]
        record = _record(config, wholes[0], encoders, audio_facts)
        formats, style = config.figure_formats, config.figure_style
        paths = maps.draw(wholes, roles, workdir / "figures", formats, style)
        agreements = []
        if published is not None:
            aligned = maps.align_with_published(published, wholes, roles, config.published_as)
            paths += maps.draw_side_by_side(aligned, workdir / "figures", formats)
            agreements = [row for pair in aligned for row in published_maps.agreements(pair)]
            published_maps.write_csv(agreements, workdir / "published.csv")
        ss.write_report(wholes[0], workdir / "report.html")
        result = wholes[0].keeping_influence(config.output.keep_influence)
        result.save(workdir / "result.nc")
        write_text(workdir / "findings.json", findings.as_json(tested, record))
        # A figure in several formats is shown once.
        shown = {path.stem: path for path in reversed(paths)}
        names = [f"figures/{path.name}" for path in reversed(shown.values())]
        errors = wholes[0].errors_note()
        page = findings.markdown(tested, _lines(record), names, errors, len(corpora))
        write_text(workdir / "findings.md", page)
        write_json(workdir / "config.json", dataclasses.asdict(config))
        if not config.keep_statistics:
            remove_folder(folder)
    return Outcome(tested, wholes[0], agreements)


# --- audio, and resuming ---


def _corpora(
    corpus: Corpus, config: Config, architecture: EncoderConfig
) -> tuple[Corpus, tuple[Corpus, ...], dict[str, Any]]:
    """The audio that is compared, groups of its utterances if there are any, and facts."""
    from speechsim_jax.audio import batching, selection
    from speechsim_jax.audio.corpus import total_seconds
    from speechsim_jax.audio.open_corpus import with_durations

    options = config.settings
    if options.max_minutes is not None:
        corpus = selection.select(corpus, options.max_minutes, options.seed)
    corpus = with_durations(corpus)
    facts = {
        "audio": corpus.origin,
        "fingerprint": corpus.fingerprint(),
        "minutes": round(total_seconds(corpus.sources) / 60, 2),
        "utterances": len(corpus.sources),
        "speakers": len({source.speaker for source in corpus.sources if source.speaker}),
    }
    if not config.groups:
        return corpus, (), facts
    groups = selection.disjoint_groups(corpus, config.groups, options.seed)
    known = [source.seconds for source in corpus.sources if source.seconds]
    facts |= {
        "groups": len(groups.corpora),
        "seconds_of_groups": [round(total_seconds(group.sources), 1) for group in groups.corpora],
        "speakers_in_one_group": groups.speakers_disjoint,
    }
    buckets = batching.plan_buckets(
        known or [options.max_seconds],
        hop_samples=architecture.hop_samples,
        window_samples=architecture.window_samples,
        count=options.buckets or _BUCKETS_OF_GROUPS,
        batch_seconds=options.batch_seconds,
        max_seconds=options.max_seconds,
    )
    return corpus, batching.share_buckets(groups.corpora, buckets), facts


def _settings_of_groups(config: Config) -> dict[str, Any]:
    """The settings of the comparison of one group.

    The audio has been chosen already, a group gets its share of the attention level, and whitening
    is done when groups are merged. No verdict of groups is about labels.
    """
    seconds = config.settings.attention_max_seconds
    share = seconds / config.groups if config.attention and seconds is not None else None
    settings = dataclasses.replace(
        config.settings,
        max_minutes=None,
        buckets=config.settings.buckets or _BUCKETS_OF_GROUPS,
        attention_max_seconds=share,
        rank_tolerance=None,
        labels=(),
    )
    return dataclasses.asdict(settings)


def _identity(
    config: Config,
    encoders: Mapping[str, SpeechEncoder],
    corpus: Corpus,
    corpora: Sequence[Corpus],
) -> dict[str, Any]:
    """Everything that can change a number."""
    import speechsim_jax as ss

    return {
        "version": ss.__version__,
        "models": {
            name: [encoder.provenance.get("sha256"), encoder.provenance.get("seed")]
            for name, encoder in encoders.items()
        },
        "audio": corpus.fingerprint(),
        "groups": [group.fingerprint() for group in corpora],
        "settings": dataclasses.asdict(config.settings),
        "attention": config.attention,
        "split": config.split,
    }


# --- what is written ---


def _record(
    config: Config,
    result: SimilarityResult,
    encoders: Mapping[str, SpeechEncoder],
    audio_facts: Mapping[str, Any],
) -> dict[str, Any]:
    """How the findings were made."""
    from speechsim_jax.runtime import provenance

    return provenance.record(
        **audio_facts,
        frames=result.attributes["frames"],
        skipped=result.attributes["skipped"],
        models={name: dict(encoder.provenance) for name, encoder in encoders.items()},
        numeric=result.attributes["numeric"],
        config=dataclasses.asdict(config),
    )


def _lines(record: Mapping[str, Any]) -> list[str]:
    """The same in words, for the head of the page."""
    from speechsim_jax.analyses.markdown import literal

    note = record["config"]["output"]["note"]
    lines = [
        f"audio: {literal(record['audio'])}, {record['minutes']} min, "
        f"{record['utterances']} utterances, {record['speakers']} known speakers, "
        f"{record['frames']} frames",
        f"models: {', '.join(map(literal, record['models']))}",
        f"speechsim_jax {record['versions']['speechsim_jax']}, jax {record['versions']['jax']}, "
        f"{record['device']['platform']}, {record['created']}",
    ]
    if "groups" in record:
        apart = record["speakers_in_one_group"]
        speakers = "no speaker in two of them" if apart else "speakers may be in several"
        seconds = record["seconds_of_groups"]
        lines.insert(
            1, f"{record['groups']} groups of {min(seconds)} to {max(seconds)} s, {speakers}"
        )
    if record.get("groups", 8) < 8:
        lines.append(
            f"**{record['groups']} groups are too few**: 8 are needed for a verdict to count"
        )
    return lines + ([literal(note)] if note else [])


# --- presets and flags ---


def of_preset(
    name: str,
    zoo: str | None = None,
    *,
    finetuned: Pairs = (),
    seeds: Pairs = (),
    settings: Mapping[str, Any] | None = None,
    published: str | None = None,
    published_as: Mapping[str, str] | None = None,
    split: bool | None = None,
    **fields: Any,
) -> Config:
    """The Config of a preset.

    Args:
      name: "zoo" or "paper".
      zoo: a folder with other models of the zoo's names.
      finetuned: more pairs than those of the preset, as in `Config`.
      seeds: more pairs than those of the preset, as in `Config`.
      settings: fields of `Settings` that replace those of the preset.
      published: as in `Config` (default: "paper").
      published_as: as in `Config` (default: the preset's).
      split: as in `Config` (default: the preset's).
      fields: other fields of `Config`.

    Raises:
      UserError: a zoo that lacks a model, or settings that are not allowed.
    """
    from speechsim_jax.analyses.replication import presets

    preset = presets.load_preset(name, zoo)
    fields.setdefault("untrained", preset.untrained)
    defaults = {
        "max_minutes": preset.minutes,
        "attention_max_seconds": preset.attention_seconds,
        **preset.settings,
    }
    return Config(
        models=preset.models,
        finetuned=preset.finetuned + finetuned,
        seeds=preset.seeds + seeds,
        settings=dataclasses.replace(_DEFAULTS, **(defaults | dict(settings or {}))),
        published=published or "paper",
        published_as=published_as or dict(preset.published_as),
        split=preset.split if split is None else split,
        **fields,
    )


def define_flags() -> FlagValues:
    """The flags of this command."""
    return flags.define(_Flags, flags.Terminal)


def config_from_flags(values: FlagValues) -> Config:
    """The flags as a Config; raises UserError for what is missing or malformed."""
    given = flags.from_flags(values, _Flags, output=flags.output(values))
    overrides = flags.present_values(values, Settings)
    common: dict[str, Any] = {
        name: getattr(given, name)
        for name in (
            "audio", "workdir", "groups", "attention", "published", "resources", "output",
            "keep_statistics", "overwrite", "resume", "figure_formats", "figure_style",
        )
    }  # fmt: skip
    common["finetuned"] = tuple(_pairs("finetuned", given.finetuned))
    common["seeds"] = tuple(_pairs("other_seed", given.other_seed))
    common["published_as"] = dict(_pairs("published_as", given.published_as))
    if given.untrained is not None:
        words: dict[tuple[str, ...], Any] = {("all",): None, ("none",): ()}
        common["untrained"] = words.get(given.untrained, given.untrained)
    if given.preset is None:
        if not given.models:
            raise UserError("--models or --preset is required; see --help")
        return Config(
            models=given.models,
            split=bool(given.split),
            settings=dataclasses.replace(_DEFAULTS, **overrides),
            **common,
        )
    if given.models:
        raise UserError(f"--preset={given.preset} has its models; leave out --models")
    return of_preset(given.preset, given.zoo, split=given.split, settings=overrides, **common)


def _pairs(flag: str, words: Sequence[str]) -> list[tuple[str, str]]:
    """A:B, where "random:ID" may be the first and "zoo:NAME" either."""
    pairs = []
    for text in words:
        match = re.fullmatch(r"(.+?):((?:zoo:)?[^:]+)", text)
        if match is None:
            raise UserError(f"--{flag}={text}: expected two names with a colon between them")
        pairs.append((match[1], match[2]))
    return pairs


def main(values: FlagValues) -> None:
    """Run from the flags and print what became of the claims."""
    if values["help_findings"].value:
        from speechsim_jax.analyses.replication import findings

        print(findings.explain())
        return
    use_compilation_cache(values["compilation_cache"].value)
    config = config_from_flags(values)
    outcome = run(config)

    from speechsim_jax.analyses.replication import findings, published_maps

    if outcome.agreements:
        rows = [row for row in outcome.agreements if row.x == "all" or "finetuned" in row.name]
        print(published_maps.table(rows), end="\n\n")
    print(findings.table(outcome.findings))
    print(f"\n{outcome.result.errors_note()}")
    print(f"\nwritten: {Path(config.workdir, 'findings.md')} and what it shows")
