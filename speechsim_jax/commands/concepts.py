"""What layers and neurons encode of phones, words, speakers and acoustics.

    speechsim concepts --models=zoo:contrastive_s,zoo:predictive_s --audio=speech/manifest.tsv \\
        --labels=phone:speech/alignments.tsv,speaker --workdir=runs/concepts

For every layer how well all of its neurons encode each label and feature (content), how much of
that is in one neuron (localisation), and whether neurons that match best encode the same
(agreement).
Writes concepts.md and concepts.json, neurons.csv with the neuron of each class, figures/concepts_*,
and everything that `speechsim compare` writes: result.nc, report.html, figures and log.jsonl. By
default the labels are phones and words as published with the corpus and the speakers, as far as
there are any. --probe=FILE compares phones with the accuracies of `speechsim probe`, the stronger
and slower check. A run that was killed continues with --resume.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from absl.flags import FlagValues

from speechsim_jax.commands import compare, flags, inputs
from speechsim_jax.commands.compilation_cache import use_compilation_cache
from speechsim_jax.commands.workdir import write_json
from speechsim_jax.errors import UserError
from speechsim_jax.runtime.atomic_write import as_path, write_text
from speechsim_jax.settings import Output, Resources, Settings, documented

if TYPE_CHECKING:
    from speechsim_jax.audio.corpus import Corpus
    from speechsim_jax.results.concepts import Concepts

MEASURES = "maxcorr,linreg,linreg_r2,lincka"
_SETTINGS = (
    "layers", "max_minutes", "layout", "speaker_from", "glob", "exclude", "channel", "last_layer",
    "frame_stride", "tracks", "labels", "label_min_share", "given", "seed", "errors",
    "errors_rows", "heldout", "exemplars", "rank_tolerance", "model_dtype", "stats_dtype",
    "batch_seconds", "max_seconds", "rows_per_update", "strict",
)  # fmt: skip
_DEFAULTS = Settings(tracks=("logmel",), heldout=True, errors_source="sample")
_FOUND = ("phone:auto", "word:auto", "speaker")

_log = logging.getLogger(__name__)


@documented
@dataclasses.dataclass(frozen=True)
class Config:
    """Which models are read on what audio and labels, and where results go."""

    models: tuple[str, ...] = flags.models()
    audio: str = flags.audio()
    workdir: str = flags.workdir()
    probe: str | None = flags.own(
        None, "probe.json of `speechsim probe` on the same models, to compare phones with."
    )
    settings: Settings = flags.nested(_DEFAULTS, only=_SETTINGS)
    resources: Resources = flags.nested(Resources())
    output: Output = flags.nested(Output())
    keep_statistics: bool = flags.keep_statistics()
    overwrite: bool = flags.overwrite()
    resume: bool = flags.resume()
    figure_formats: tuple[str, ...] = flags.figure_formats()


def run(config: Config) -> Concepts | None:
    """Compare, read content, localisation and agreement off the result, write and draw.

    Returns:
      What was read off; None if it is up to other shards.

    Raises:
      UserError: whatever is wrong with the configuration, the models, the audio or the labels.
    """
    probe = None if config.probe is None else _probe(config.probe)
    inputs.check_models(config.models, config.resources.revision)
    settings = config.settings
    if not settings.labels:
        labels = _labels(inputs.open_audio(config.audio, settings), settings)
        settings = dataclasses.replace(settings, labels=labels)
    if probe is not None and not any(label.startswith("phone:") for label in settings.labels):
        raise UserError("--probe is of phones, and no label is: --labels=phone:ALIGNMENTS")
    result = compare.run(
        compare.Config(
            models=config.models,
            audio=config.audio,
            workdir=config.workdir,
            measures=MEASURES,
            settings=settings,
            resources=config.resources,
            output=config.output,
            keep_statistics=config.keep_statistics,
            overwrite=config.overwrite,
            resume=config.resume,
            figure_formats=config.figure_formats,
        )
    )
    if result is None:
        return None

    from speechsim_jax import figures
    from speechsim_jax.analyses import concepts as page
    from speechsim_jax.figures.concepts import draw
    from speechsim_jax.results.concepts import CONTENT, neuron_table, read_concepts

    concepts = read_concepts(result)
    workdir = as_path(config.workdir)
    probed = {}
    if probe is not None:
        try:
            probed["phone"] = page.probe_correlations(concepts, probe, "phone")
        except UserError as error:  # names and layers of models are known only now
            _log.warning("--probe=%s: %s; it is left out", config.probe, error)
    drawn = draw(concepts, result.notes(), result.interval_key(CONTENT))
    named = {f"concepts_{name}": one for name, one in drawn.items()}
    paths = figures.write_figures(named, workdir / "figures", config.figure_formats)
    shown = {path.stem: f"figures/{path.name}" for path in reversed(paths)}
    text = page.markdown(concepts, result.notes(), list(reversed(shown.values())), probed)
    write_text(workdir / "neurons.csv", neuron_table(result, concepts.models))
    write_json(workdir / "concepts.json", page.as_record(concepts, probed))
    write_text(workdir / "concepts.md", text)
    return concepts


def _labels(corpus: Corpus, settings: Settings) -> tuple[str, ...]:
    """The labels that are published with a corpus.

    Raises:
      UserError: there are none.
    """
    from speechsim_jax.audio.label_sources import label_tracks

    found = []
    for label in _FOUND:
        try:
            label_tracks([label], corpus, settings.label_min_share, settings.layout)
        except UserError as error:
            _log.info("without %s: %s", label, error)
        else:
            found.append(label)
    if not found:
        raise UserError(
            f"{corpus.origin} has neither alignments where its layout has them nor speakers; name "
            "labels, as in --labels=phone:ALIGNMENTS"
        )
    return tuple(found)


def _probe(path: str) -> dict[str, list[float]]:
    """The accuracy of each layer by encoder, as a probe has recorded them."""
    try:
        record = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        return {
            name: [float(layer["value"]) for layer in encoder["layers"]]
            for name, encoder in record["encoders"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--probe={path}: no probe.json of `speechsim probe` ({error})") from error


def define_flags() -> FlagValues:
    """The flags of this command."""
    return flags.define(Config, flags.Terminal)


def config_from_flags(values: FlagValues) -> Config:
    """The flags as a Config; raises UserError for what is missing or malformed."""
    return flags.from_flags(values, Config, output=flags.output(values))


def main(values: FlagValues) -> None:
    """Run from the flags and print where the page is."""
    config = config_from_flags(values)
    use_compilation_cache(values["compilation_cache"].value)
    concepts = run(config)
    workdir = as_path(config.workdir)
    if concepts is None:
        print(f"results follow when all shards are complete: speechsim status {workdir}")
        return

    from speechsim_jax.analyses.concepts import summary

    print(summary(concepts))
    print(f"\nwritten: {workdir / 'concepts.md'}, neurons.csv, report.html and figures")
