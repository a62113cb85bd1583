"""How well does a linear probe read the phone of a frame from each layer of speech encoders?

    python -m experiments.probe --models=zoo:contrastive_s,zoo:predictive_s \\
        --audio=speech/manifest.tsv --alignments=speech/alignments.tsv --workdir=runs/probe

prints accuracies with their intervals over speakers, and writes probe.json, figures/probe.png and
.pdf and log.jsonl into the workdir. Beside each model stand MFCCs (alone, and with 0.1 s on either
side) and the same architecture with random weights (--untrained: those of a folder). Probes are
trained and tested on different speakers, and tested on speakers that no model has heard in training
(--test_speakers): `speechsim_jax.analyses.probing.classifier` says how. From a notebook:
`run(Config(...))`.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tqdm.auto
from absl import flags

import speechsim_jax as ss
from speechsim_jax.analyses.probing import classifier, features, figure, summary
from speechsim_jax.audio import open_corpus, selection
from speechsim_jax.audio.alignments import Alignments, MissingTier, check_labels, read_alignments
from speechsim_jax.commands import compare
from speechsim_jax.commands import flags as _flags
from speechsim_jax.errors import UserError
from speechsim_jax.models import zoo
from speechsim_jax.runtime import provenance
from speechsim_jax.training import records

UNHEARD, ALL = "unheard", "all"

_TEST_SPEAKERS = flags.DEFINE_list(
    "test_speakers",
    [UNHEARD],
    "Speakers to test on: unheard (by any of the models, as their training.json says), all, or "
    "names.",
)
_WEIGHTS = flags.DEFINE_list(
    "untrained_weights", [], "Folders with each model's weights before training, instead of drawn."
)
_MAX_FRAMES = flags.DEFINE_integer(
    "max_frames", 20_000, "At most so many frames: a seeded choice, balanced over speakers."
)
_FOLDS = flags.DEFINE_integer("folds", 5, "Parts of the speakers to test.", lower_bound=1)

# Of the flags that `compare` brings along; the others mean nothing here.
_USED = (
    "models", "audio", "max_minutes", "alignments", "alignment_tier", "drop_labels",
    "batch_seconds", "revision", "cache_dir", "local_files_only",
)  # fmt: skip
for _name in _USED:
    flags.declare_key_flag(_name)
flags.adopt_module_key_flags(_flags)  # for --help


@dataclasses.dataclass(frozen=True)
class Config:
    """Which models, on what audio, and where to; the names are those of the flags.

    `untrained_weights`: none, or as many as there are models. `drop_labels`: what is no phone; by
    default what aligners usually call silence and noise.
    """

    models: tuple[str, ...]
    audio: str
    alignments: str
    workdir: str
    alignment_tier: str | None = None
    test_speakers: tuple[str, ...] = (UNHEARD,)
    untrained_weights: tuple[str, ...] = ()
    drop_labels: tuple[str, ...] = ()
    max_minutes: float | int | None = None
    max_frames: int = 20_000
    folds: int = 5
    seed: int = 0
    batch_seconds: float | int = 40.0
    revision: str | None = None
    cache_dir: str | None = None
    local_files_only: bool = False
    overwrite: bool = False


class _Pair(NamedTuple):
    """A model and the same architecture before training."""

    trained: ss.SpeechEncoder
    untrained: ss.SpeechEncoder


def run(config: Config) -> summary.ProbeSummary:
    """Probe, write and draw. Raises UserError."""
    file = _flags.new_workdir(config.workdir, config.overwrite, "probe.json") / "probe.json"
    with _flags.log_to(file.parent):
        alignments = _aligned(config)
        pairs = _load(config)
        chosen, tested, dropped = _choose(config, alignments, pairs)
        known = _features(config, chosen, pairs)
        count = min(config.folds, len(tested)) * len(known.features)
        with tqdm.auto.tqdm(total=count, desc="probes", unit=" probes") as bar:
            readings = classifier.cross_validate(
                known, tested, folds=config.folds, seed=config.seed, on_probe=bar.update
            )
        encoders = [encoder for pair in pairs for encoder in pair]
        found = summary.summarise(
            readings,
            {encoder.name: features.layer_names(encoder) for encoder in encoders},
            {pair.trained.name: pair.untrained.name for pair in pairs},
            config.seed,
        )
        told = provenance.record(
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
        file.write_text(json.dumps(told, indent=2) + "\n")
        note = (
            f"{len(known.phone_names)} phones, {len(tested)} speakers tested, "
            f"{int(readings.frames.sum())} frames, bars: 95 % over speakers"
        )
        untrained = [pair.untrained.name for pair in pairs]
        figure.save_accuracy_by_depth(found, file.parent / "figures", untrained, note)
    return found


def _choose(
    config: Config, alignments: Alignments, pairs: Sequence[_Pair]
) -> tuple[features.PhoneFrames, set[str], tuple[str, ...]]:
    """The frames, the speakers to test on, and the labels that are no phone."""
    corpus = open_corpus.open_corpus(config.audio)
    if config.max_minutes is not None:
        corpus = selection.select(corpus, config.max_minutes, config.seed)
    dropped = config.drop_labels or tuple(
        label for label in alignments.labels if label in features.SILENCES
    )
    check_labels(alignments, dropped)
    chosen = features.choose_frames(
        corpus, alignments, pairs[0].trained.config, dropped, config.max_frames, config.seed
    )
    tested = _tested(config, {source.speaker for source in chosen.corpus.sources})
    return chosen, tested, dropped


def _features(
    config: Config, chosen: features.PhoneFrames, pairs: Sequence[_Pair]
) -> classifier.LabelledFrames:
    """MFCCs and all layers of all encoders."""
    chosen, rows = features.mfcc_features(chosen, pairs[0].trained.config)
    seconds = sum(source.seconds or 0.0 for source in chosen.corpus.sources)
    form = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
    total = 2 * len(pairs) * seconds
    with tqdm.auto.tqdm(total=total, desc="audio", bar_format=form) as bar:
        for pair in pairs:
            for encoder in pair:
                rows |= features.layer_features(encoder, chosen, config.batch_seconds, bar.update)
    return features.labelled_frames(chosen, rows)


def _aligned(config: Config) -> Alignments:
    """The alignments, of the tier "phone" where there are several and none is named."""
    if config.alignment_tier is not None:
        return read_alignments(config.alignments, config.alignment_tier)
    try:
        return read_alignments(config.alignments)
    except MissingTier:
        return read_alignments(config.alignments, "phone")


def _load(config: Config) -> list[_Pair]:
    given = config.untrained_weights
    if given and len(given) != len(config.models):
        raise UserError(
            f"--untrained_weights={','.join(given)}: expected one for each of "
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
    frame = trained[0].config.window_samples, trained[0].config.hop_samples
    pairs = []
    for place, encoder in enumerate(trained):
        if (encoder.config.window_samples, encoder.config.hop_samples) != frame:
            raise UserError(
                f"{encoder.name}: its frames are not those of {trained[0].name} ({frame[0]} "
                f"samples every {frame[1]})"
            )
        name = f"random:{encoder.name}"
        other = (
            ss.load_encoder(given[place], name=name)
            if given
            else ss.random_like(encoder, config.seed, name=name)
        )
        if other.config != encoder.config:
            raise UserError(f"{given[place]} has another architecture than {encoder.name}")
        pairs.append(_Pair(encoder, other))
    return pairs


def _label(source: str) -> str | None:
    """A training's model/ is called as its workdir is."""
    path = Path(source)
    return path.absolute().parent.name if path.name == "model" else None


def _tested(config: Config, there: set[str]) -> set[str]:
    """The speakers to test on; raises UserError if none is left, or one is not there."""
    if config.test_speakers == (ALL,):
        return there
    if config.test_speakers != (UNHEARD,):
        if missing := sorted(set(config.test_speakers) - there):
            raise UserError(
                f"--test_speakers: {missing[0]!r} has no aligned speech; there are "
                f"{', '.join(sorted(there))}"
            )
        return set(config.test_speakers)
    heard: set[str] = set()
    for source in config.models:
        try:
            heard |= records.training_speakers(_folder(source), config.audio)
        except UserError as error:
            raise UserError(f"{error}; or name speakers it never heard: --test_speakers") from error
    if not there - heard:
        raise UserError(
            f"the models heard all {len(there)} aligned speakers in training; hold some out, or "
            "say --test_speakers=all"
        )
    return there - heard


def _folder(source: str) -> Path:
    if source.startswith(zoo.PREFIX):
        return zoo.folder(source.removeprefix(zoo.PREFIX))
    return Path(source).expanduser()


def config_from_flags() -> Config:
    """The flags as a Config; raises UserError for what is missing or means nothing here."""
    compare.refuse_flags("probing", _USED)
    value: dict[str, Any] = {
        name: flags.FLAGS[name].value for name in (*_USED, "workdir", "seed", "overwrite")
    }
    for name in ("models", "audio", "alignments", "workdir"):
        if not value[name]:
            raise UserError(f"--{name} is required; see --help")
    if not all(value["models"]):
        raise UserError(f"--models={','.join(value['models'])}: expected hub ids or folders")
    for name in ("models", "drop_labels"):
        value[name] = tuple(value[name])
    return Config(
        **value,
        test_speakers=_names(_TEST_SPEAKERS.value),
        untrained_weights=tuple(_WEIGHTS.value),
        max_frames=_MAX_FRAMES.value,
        folds=_FOLDS.value,
    )


def _names(words: Sequence[str]) -> tuple[str, ...]:
    if (len(words) > 1 and {UNHEARD, ALL} & set(words)) or not all(words) or not words:
        raise UserError(
            f"--test_speakers={','.join(words)}: expected {UNHEARD}, {ALL}, or names of speakers"
        )
    return tuple(words)


def main() -> None:
    """Run from the flags and print what came out."""
    config = config_from_flags()
    _flags.use_compilation_cache()
    print(run(config).table())
    print(f"\nwritten: {Path(config.workdir, 'probe.json')} and figures beside it")
