"""How well does a linear probe read phones from each layer of speech encoders?

    speechsim probe --models=zoo:contrastive_s,zoo:predictive_s \\
        --audio=speech/manifest.tsv --alignments=speech/alignments.tsv --workdir=runs/probe

prints accuracies with their intervals over speakers, and writes probe.json, figures/probe.png and
.pdf and log.jsonl into the workdir. Each model is compared with MFCCs (alone, and with 0.1 s on
either side) and with the same architecture with random weights (--untrained_weights: those of a
folder). Probes are trained and tested on different speakers, and tested on speakers that no model
was trained on (--test_speakers). Utterances of unknown speaker take the place of speakers, which
the log, the table and "units" in probe.json say. The method is that of
`speechsim_jax.analyses.probing.classifier`.
From a notebook: `run(Config(...))`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from absl.flags import FlagValues

from speechsim_jax.commands import flags, inputs
from speechsim_jax.commands.compilation_cache import use_compilation_cache
from speechsim_jax.commands.log import log_to
from speechsim_jax.commands.workdir import new_workdir, write_json
from speechsim_jax.errors import UserError
from speechsim_jax.models import zoo
from speechsim_jax.settings import Resources, Settings, documented

if TYPE_CHECKING:
    from speechsim_jax.analyses.probing import classifier, features, summary
    from speechsim_jax.audio.alignments import Alignments
    from speechsim_jax.audio.corpus import Corpus
    from speechsim_jax.models.encoder import SpeechEncoder

UNHEARD, ALL = "unheard", "all"
_PHONE_TIERS = ("phone", "phones", "phn")
# Speakers that a message lists.
_MOST_NAMED = 10


@documented
@dataclasses.dataclass(frozen=True)
class Config:
    """Which models are probed, on what audio, and where results go."""

    models: tuple[str, ...] = flags.models()
    audio: str = flags.audio()
    alignments: str = flags.like(
        Settings,
        "alignments",
        default=flags.REQUIRED,
        help="Phones: a .tsv, .ctm or .TextGrid file, a folder of TextGrid files, or auto for "
        "those published with the corpus.",
    )
    workdir: str = flags.workdir()
    alignment_tier: str | None = flags.like(Settings, "alignment_tier")
    test_speakers: tuple[str, ...] = flags.own(
        (UNHEARD,),
        "Speakers to test on: unheard (by any of the models, according to their training.json), "
        "all, or names.",
    )
    untrained_weights: tuple[str, ...] = flags.own(
        (), "Folders with each model's weights before training (default: drawn at random)."
    )
    drop_labels: tuple[str, ...] = flags.like(
        Settings,
        "drop_labels",
        help="Labels of the alignments that are not phones (default: what aligners usually call "
        "silence and noise).",
    )
    max_minutes: float | int | None = flags.like(Settings, "max_minutes")
    layout: str | None = flags.like(Settings, "layout")
    speaker_from: str | None = flags.like(Settings, "speaker_from")
    glob: tuple[str, ...] = flags.like(Settings, "glob")
    exclude: tuple[str, ...] = flags.like(Settings, "exclude")
    channel: str = flags.like(Settings, "channel")
    max_frames: int = flags.own(
        20_000, "At most so many frames: a seeded choice, balanced over speakers."
    )
    folds: int = flags.own(5, "Parts of the speakers to test.", at_least=1)
    seed: int = flags.like(Settings, "seed")
    batch_seconds: float | int = flags.like(Settings, "batch_seconds")
    revision: str | None = flags.like(Resources, "revision")
    cache_dir: str | None = flags.like(Resources, "cache_dir")
    local_files_only: bool = flags.like(Resources, "local_files_only")
    overwrite: bool = flags.overwrite()
    progress: bool = flags.progress()


class _Pair(NamedTuple):
    """A model and the same architecture before training."""

    trained: SpeechEncoder
    untrained: SpeechEncoder


def run(config: Config) -> summary.ProbeSummary:
    """Probe, write and draw.

    Returns:
      Accuracies with their intervals.

    Raises:
      UserError: whatever is wrong with models, audio, alignments or workdir.
    """
    file = new_workdir(config.workdir, config.overwrite, "probe.json") / "probe.json"
    with log_to(file.parent, config.progress):
        inputs.check_models(config.models, config.revision)
        corpus = inputs.open_audio(config.audio, inputs.audio_settings(config))
        inputs.log_start(config.models, corpus)

        import tqdm.auto

        from speechsim_jax.analyses.probing import classifier, features, figure, summary
        from speechsim_jax.runtime import provenance

        alignments = _aligned(config, corpus)
        pairs = _load(config)
        chosen, tested, dropped = _choose(config, corpus, alignments, pairs)
        units = features.units_of(chosen.corpus.sources)
        known = _features(config, chosen, pairs)
        count = min(config.folds, len(tested)) * len(known.features)
        bar = tqdm.auto.tqdm(
            total=count, desc="probes", unit=" probes", disable=not config.progress
        )
        with bar:
            readings = classifier.cross_validate(
                known, tested, folds=config.folds, seed=config.seed, on_probe=bar.update
            )
        encoders = [encoder for pair in pairs for encoder in pair]
        found = summary.summarise(
            readings,
            {encoder.name: features.layer_names(encoder) for encoder in encoders},
            {pair.trained.name: pair.untrained.name for pair in pairs},
            config.seed,
            units,
        )
        record = provenance.record(
            **found.as_dict(),
            phones=list(known.phone_names),
            frames=len(known.phones),
            audio={"origin": chosen.corpus.origin, "fingerprint": chosen.corpus.fingerprint()},
            alignments={
                "origin": alignments.origin, "tier": alignments.tier, "sha256": alignments.sha256,
            },
            dropped=list(dropped),
            models={encoder.name: dict(encoder.provenance) for encoder in encoders},
            method=" ".join((classifier.__doc__ or "").split()),
            config=dataclasses.asdict(config),
        )  # fmt: skip
        write_json(file, record)
        note = (
            f"{len(known.phone_names)} phones, {len(tested)} {units} tested, "
            f"{int(readings.frames.sum())} frames, bars: 95 % over {units}"
        )
        untrained = [pair.untrained.name for pair in pairs]
        figure.save_accuracy_by_depth(found, file.parent / "figures", untrained, note)
    return found


def _choose(
    config: Config, corpus: Corpus, alignments: Alignments, pairs: Sequence[_Pair]
) -> tuple[features.PhoneFrames, set[str], tuple[str, ...]]:
    """The frames, the speakers to test on, and the labels that are not phones."""
    from speechsim_jax.analyses.probing import features
    from speechsim_jax.audio import selection
    from speechsim_jax.audio.alignments import check_labels
    from speechsim_jax.training.data.splits import speaker_of

    if config.max_minutes is not None:
        corpus = selection.select(corpus, config.max_minutes, config.seed)
    dropped = config.drop_labels or tuple(
        label for label in alignments.labels if label in features.SILENCES
    )
    check_labels(alignments, dropped)
    chosen = features.choose_frames(
        corpus, alignments, pairs[0].trained.config, dropped, config.max_frames, config.seed
    )
    sources = chosen.corpus.sources
    anonymous = {source.id for source in sources if not source.speaker}
    tested = _tested(config, {speaker_of(source) for source in sources}, anonymous)
    return chosen, tested, dropped


def _features(
    config: Config, chosen: features.PhoneFrames, pairs: Sequence[_Pair]
) -> classifier.LabelledFrames:
    """MFCCs and all layers of all encoders."""
    import tqdm.auto

    from speechsim_jax.analyses.probing import features
    from speechsim_jax.audio.corpus import total_seconds

    chosen, rows = features.mfcc_features(chosen, pairs[0].trained.config)
    seconds = total_seconds(chosen.corpus.sources)
    form = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
    total = 2 * len(pairs) * seconds
    quiet = not config.progress
    with tqdm.auto.tqdm(total=total, desc="audio", bar_format=form, disable=quiet) as bar:
        for pair in pairs:
            for encoder in pair:
                rows |= features.layer_features(encoder, chosen, config.batch_seconds, bar.update)
    return features.labelled_frames(chosen, rows)


def _aligned(config: Config, corpus: Corpus) -> Alignments:
    """The alignments; of several tiers, where none is named, that of phones."""
    from speechsim_jax.audio.alignments import MissingTier, alignments_of

    def read(tier: str | None) -> Alignments:
        return alignments_of(corpus, config.alignments, tier, config.layout)

    try:
        return read(config.alignment_tier)
    except MissingTier as error:
        tier = next((name for name in _PHONE_TIERS if name in error.tiers), _PHONE_TIERS[0])
        return read(tier)


def _load(config: Config) -> list[_Pair]:
    """Every model with its untrained counterpart, under distinct names."""
    import speechsim_jax as ss

    folders = config.untrained_weights
    if folders and len(folders) != len(config.models):
        raise UserError(
            f"--untrained_weights={','.join(folders)}: expected one for each of "
            f"{len(config.models)} models, or none"
        )
    loading: dict[str, Any] = {
        name: getattr(config, name) for name in ("revision", "cache_dir", "local_files_only")
    }
    trained = [ss.load_encoder(source, name=_label(source), **loading) for source in config.models]
    names = [encoder.name for encoder in trained]
    trained = [
        dataclasses.replace(encoder, name=source) if names.count(encoder.name) > 1 else encoder
        for source, encoder in zip(config.models, trained)
    ]
    pairs = []
    for index, encoder in enumerate(trained):
        if not encoder.config.makes_frames_of(trained[0].config):
            raise UserError(
                f"{encoder.name}: its frames are not those of {trained[0].name}: "
                f"{encoder.config.frames_in_words}, not {trained[0].config.frames_in_words}"
            )
        name = f"random:{encoder.name}"
        untrained = (
            ss.load_encoder(folders[index], name=name)
            if folders
            else ss.random_like(encoder, config.seed, name=name)
        )
        if untrained.config != encoder.config:
            raise UserError(f"{folders[index]} has another architecture than {encoder.name}")
        pairs.append(_Pair(encoder, untrained))
    return pairs


def _label(source: str) -> str | None:
    """The name of a training's model/: that of its workdir."""
    path = Path(source)
    return path.absolute().parent.name if path.name == "model" else None


def _tested(config: Config, speakers: set[str], anonymous: Collection[str] = ()) -> set[str]:
    """The speakers, or utterances of unknown speaker, to test on.

    Raises:
      UserError: none is left, one has no aligned speech, or it is not known
        on which of them a model was trained.
    """
    if config.test_speakers == (ALL,):
        return speakers
    if config.test_speakers != (UNHEARD,):
        if missing := sorted(set(config.test_speakers) - speakers):
            raise UserError(
                f"--test_speakers: {missing[0]!r} has no aligned speech; there are "
                f"{', '.join(sorted(speakers)[:_MOST_NAMED])}"
                f"{' and more' if len(speakers) > _MOST_NAMED else ''}"
            )
        return set(config.test_speakers)

    from speechsim_jax.training import records

    trained_on: set[str] = set()
    for source in config.models:
        try:
            trained_on |= records.training_speakers(_folder(source), config.audio)
        except UserError as error:
            raise UserError(
                f"{error}; or name speakers it was not trained on: --test_speakers"
            ) from error
    # Ids say what a model was trained on only if its training used the same ones.
    if anonymous and trained_on.isdisjoint(anonymous):
        raise UserError(
            "it is not known on whose speech the models were trained, as the speaker of "
            f"{min(anonymous)} is unknown; name speakers (--speaker_from, a manifest), or pass "
            "--test_speakers=all"
        )
    if not speakers - trained_on:
        raise UserError(
            f"the models were trained on all {len(speakers)} aligned speakers; hold some out, or "
            "pass --test_speakers=all"
        )
    return speakers - trained_on


def _folder(source: str) -> Path:
    if source.startswith(zoo.PREFIX):
        return zoo.folder(source.removeprefix(zoo.PREFIX))
    return Path(source).expanduser()


def define_flags() -> FlagValues:
    """The flags of this command."""
    return flags.define(Config, flags.Terminal)


def config_from_flags(values: FlagValues) -> Config:
    """The flags as a Config; raises UserError for what is missing or malformed."""
    config = flags.from_flags(values, Config, progress=not values["quiet"].value)
    speakers = config.test_speakers
    if not speakers or (len(speakers) > 1 and {UNHEARD, ALL} & set(speakers)):
        raise UserError(
            f"--test_speakers={','.join(speakers)}: expected {UNHEARD}, {ALL}, or names of speakers"
        )
    return config


def main(values: FlagValues) -> None:
    """Run from the flags and print the accuracies."""
    config = config_from_flags(values)
    use_compilation_cache(values["compilation_cache"].value)
    print(run(config).table())
    print(f"\nwritten: {Path(config.workdir, 'probe.json')} and figures next to it")
