"""The folder of a job: its plan, which says what the job is, and where a shard is stored."""

import contextlib
import dataclasses
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechsim_jax.audio.chosen import ChosenAudio
from speechsim_jax.audio.corpus import total_seconds
from speechsim_jax.comparison.representations import Representations
from speechsim_jax.comparison.request import Request
from speechsim_jax.errors import UserError
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.external import Encoder, ExternalEncoder
from speechsim_jax.pipeline.attention_inputs import needed_sums
from speechsim_jax.pipeline.job_folder import JobFolder, ShardFolder, job_folder, step_folders
from speechsim_jax.pipeline.one_pass import ComparisonRun
from speechsim_jax.pipeline.plan import Pass
from speechsim_jax.pipeline.run import Division, check_unchanged, plan_passes
from speechsim_jax.runtime import provenance
from speechsim_jax.runtime.identity import as_json, difference

# Of the largest of a few activations: more than two devices or precisions differ by.
_PROBE_TOLERANCE = 0.02

END_OF_STEP = "end_of_step"
"""In the plan of a step: the utterances that have been read after it."""


def opened_shard(
    run: ComparisonRun,
    request: Request,
    compared: Representations,
    audio_: ChosenAudio,
    scratch: contextlib.ExitStack,
    division: Division | None,
) -> tuple[tuple[Pass, ...], ShardFolder | None]:
    """The passes, and where this shard is stored: locked, and of unchanged audio.

    Returns:
      The passes and the folder, a temporary one for several passes; None if statistics stay in
      memory.

    Raises:
      UserError: the folder is of another job, or audio in its sums was replaced.
      LockedError: another process works on the shard.
    """
    directory = request.output.statistics_dir
    if directory is None:
        passes = plan_passes(run, request.budget_bytes)
        if len(passes) == 1:
            return passes, None
        # The next pass needs the memory, so statistics go to a file.
        folder = tempfile.TemporaryDirectory(prefix="speechsim-")
        temporary = JobFolder(Path(scratch.enter_context(folder)))
        shard = temporary.shard(run.shard, {"checksum": ""}, float("inf"))
        scratch.enter_context(shard.opened())
        return passes, shard
    folder = job_folder(directory)
    if run.step is None and step_folders(folder.path):
        raise UserError(
            f"{folder.path} holds the steps of a comparison with target_se; choose another folder"
        )
    passes, plan = _planned(run, request, compared, audio_, folder, division)
    shard = folder.shard(run.shard, plan, request.resources.checkpoint_every)
    scratch.enter_context(shard.opened())
    if shard.metadata(1) is not None:
        check_unchanged(run, shard, _touched(run, plan))
    return passes, shard


def _planned(
    run: ComparisonRun,
    request: Request,
    compared: Representations,
    audio_: ChosenAudio,
    folder: JobFolder,
    division: Division | None,
) -> tuple[tuple[Pass, ...], dict[str, Any]]:
    """The passes, as the plan in the folder divides them, and this plan, which is made if needed.

    Raises:
      UserError: the plan is of another job.
    """
    budget = request.budget_bytes
    identity = as_json(_identity(run, audio_))
    plan = folder.plan()
    if plan is not None:
        _check_same_job(plan, identity, run, folder)
        return plan_passes(run, budget, Division.from_json(plan["division"])), plan
    passes = plan_passes(run, budget, division)
    step = {} if run.step is None else {END_OF_STEP: len(run.step.before | run.step.ids)}
    plan = folder.write_plan(
        {
            "identity": identity,
            **step,
            "shards": run.shard.count,
            **compared.as_json(),
            "measures": list(run.selection.names),
            "passes": len(passes),
            "division": Division.of(passes).as_json(),
            "probes": {e.name: e.probe.tolist() for e in _objects(run)},
            "files": {source.id: source.stamp() for source in run.corpus.sources},
            "seconds": total_seconds(run.corpus.sources),
        }
    )
    _check_same_job(plan, identity, run, folder)
    # Another shard may have been first.
    division = Division.from_json(plan["division"])
    return passes if division == Division.of(passes) else plan_passes(run, budget, division), plan


def _identity(run: ComparisonRun, audio_: ChosenAudio) -> dict[str, Any]:
    """Everything that affects the statistics, for JSON."""
    settings = dataclasses.asdict(run.settings) | {"errors": run.clustering.over}
    later = (
        "rank_tolerance", "strict", "errors_source", "errors_stride", "target_se", "target_of",
        "given", "given_part",
    )  # fmt: skip
    for name in later:
        del settings[name]
    versions = provenance.record()["versions"]
    return {
        "audio": audio_.corpus.fingerprint(),
        "versions": {name: versions[name] for name in ("speechsim_jax", "jax", "jaxlib")},
        **audio_.alignments,
        "models": {encoder.name: _model_identity(encoder) for encoder in run.encoders},
        "statistics": list(run.selection.accumulated),
        "attention": list(needed_sums(run.selection.on("attention"))),
        **settings,
        "tracks": {track.name: track.record for track in run.tracks if not track.classes},
        "labels": {track.name: track.record for track in run.tracks if track.classes},
    }


def _model_identity(encoder: Encoder) -> list[Any]:
    """Weights, the type they are rounded to, and everything that config.json states.

    Of an object, what it says of itself and what was measured.
    """
    known = encoder.provenance
    identity = [known.get("sha256"), known.get("kernels"), _digest(encoder.config)]
    if isinstance(encoder, ExternalEncoder):
        identity += [known["module"], known["class"], known["version"]]
    return identity


def _digest(config: EncoderConfig) -> str:
    """Short, and different for a different configuration."""
    return hashlib.sha256(repr(config).encode()).hexdigest()[:16]


def _check_same_job(
    plan: dict[str, Any], identity: dict[str, Any], run: ComparisonRun, folder: JobFolder
) -> None:
    """Raise UserError, naming what differs, unless the plan in the folder is of this job."""
    then, now = (
        plan["identity"] | {"shards": plan["shards"]},
        identity | {"shards": run.shard.count},
    )
    if then == now:
        for encoder in _objects(run):
            _check_same_object(encoder, plan["probes"][encoder.name], folder)
        return
    # Another setting may have chosen other audio.
    without_audio = [{n: v for n, v in one.items() if n != "audio"} for one in (then, now)]
    differing = difference(*without_audio)
    if differing is None:
        files = {source.id: source.stamp()[:1] for source in run.corpus.sources}
        before = {id_: stamp[:1] for id_, stamp in plan["files"].items()}
        changed = [id_ for id_ in before.keys() & files.keys() if before[id_] != files[id_]]
        kinds = {
            "has changed": sorted(changed),
            "is missing": sorted(before.keys() - files.keys()),
            "is new": sorted(files.keys() - before.keys()),
        }
        parts = [
            f"{ids[0]} {what}" + (f" and {len(ids) - 1} more" if len(ids) > 1 else "")
            for what, ids in kinds.items()
            if ids
        ]
        differing = f"audio: {', '.join(parts)}"
    raise UserError(
        f"{folder.path} is of another job: {differing}; undo the change, or start from the "
        "beginning in another folder"
    )


def _objects(run: ComparisonRun) -> list[ExternalEncoder]:
    """The models that are objects."""
    return [encoder for encoder in run.encoders if isinstance(encoder, ExternalEncoder)]


def _check_same_object(
    encoder: ExternalEncoder, probe: Sequence[Sequence[float]], folder: JobFolder
) -> None:
    """Raise UserError if an object encodes the probe otherwise than when the job began.

    Its weights may be anywhere. Other devices round otherwise, so what is compared is not exact.
    """
    before = np.array(probe)
    apart = np.abs(encoder.probe - before).max(axis=1)
    if (apart > _PROBE_TOLERANCE * np.abs(before).max(axis=1)).any():
        raise UserError(
            f"{folder.path} is of another job: {encoder.name} gives other activations than when "
            "it began; undo the change, or start from the beginning in another folder"
        )


def _touched(run: ComparisonRun, plan: dict[str, Any]) -> frozenset[str]:
    """Ids of the files that were written to since the plan was made."""
    before = plan["files"]
    return frozenset(
        source.id for source in run.corpus.sources if before.get(source.id) != source.stamp()
    )
