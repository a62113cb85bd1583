"""A comparison that reads audio in steps until standard errors are below a target."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

from speechsim_jax.audio import selection
from speechsim_jax.audio.chosen import ChosenAudio
from speechsim_jax.audio.corpus import Source, total_seconds
from speechsim_jax.audio.open_corpus import AudioInput
from speechsim_jax.comparison import target
from speechsim_jax.comparison.job import END_OF_STEP
from speechsim_jax.comparison.merge import together
from speechsim_jax.comparison.prepared import ModelSource, attributes_of, prepared
from speechsim_jax.comparison.reading import read_run
from speechsim_jax.comparison.request import Request
from speechsim_jax.comparison.score import scored_result
from speechsim_jax.errors import UserError
from speechsim_jax.pipeline.job_folder import JobFolder, job_folder, step_folder
from speechsim_jax.pipeline.one_pass import ComparisonRun, Step
from speechsim_jax.pipeline.run import Division, check_enough
from speechsim_jax.results.result import SimilarityResult
from speechsim_jax.runtime.atomic_write import AnyPath
from speechsim_jax.statistics import store


def compare_to_target(
    models: Sequence[ModelSource], audio: AudioInput, request: Request
) -> SimilarityResult:
    """Read audio in steps until standard errors are below the target.

    Each step is a job in a folder of its own: one that is complete is not read again, and one that
    has begun reads the same utterances, whatever is predicted now.
    """
    run, audio_ = prepared(models, audio, request)
    settings, over = request.settings, run.clustering.over
    if over == "none" or settings.target_se is None:
        raise UserError(f"target_se needs standard errors: {run.clustering.reason}")
    # Those whose attention is compared are few and the first of the order, or nearly so.
    attention = run.attention_ids if run.selection.attention.measures else frozenset()
    in_turn = selection.in_turn(run.corpus, settings.seed)
    order = sorted(in_turn, key=lambda source: source.id not in attention)
    reached: list[target.StepReached] = []
    parts: tuple[target.PartScores, ...] = ()
    division: Division | None = None
    end, minutes = 0, target.FIRST_MINUTES
    with contextlib.ExitStack() as scratch:
        path = _folder_of_steps(request, scratch)
        while True:
            folders = [step_folder(path, number + 1) for number in range(len(reached) + 1)]
            start, planned = end, folders[-1].plan()
            end = target.end_of_step(order, start, minutes, run.clustering)
            if planned is not None:
                end = min(planned[END_OF_STEP], len(order))
            result, new = _read_step(run, audio_, request, folders, order[:end], start, division)
            division = Division.from_json((folders[0].plan() or {})["division"])
            reached.append(target.StepReached.of(result, (*parts, new) if parts else (), settings))
            target.log_step(reached, settings, over, order[end:])
            if reached[-1].reached(settings.target_se) or end == len(order):
                facts = target.record(reached, settings, result)
                return result.with_attributes(target=facts)
            parts = (target.PartScores.of(result),)
            minutes = reached[-1].growth * total_seconds(order[:end]) / 60


def _folder_of_steps(request: Request, scratch: contextlib.ExitStack) -> AnyPath:
    """Where the steps are: a temporary folder, if there is none for statistics.

    Raises:
      UserError: the folder is of a comparison that reads its audio at once.
    """
    directory = request.output.statistics_dir
    if directory is None:
        folder = tempfile.TemporaryDirectory(prefix="speechsim-")
        return Path(scratch.enter_context(folder))
    folder = job_folder(directory)
    if folder.plan() is not None:
        raise UserError(
            f"{folder.path} is of another job, without target_se; choose another folder"
        )
    return folder.path


def _read_step(
    run: ComparisonRun,
    audio_: ChosenAudio,
    request: Request,
    folders: Sequence[JobFolder],
    utterances: Sequence[Source],
    start: int,
    division: Division | None,
) -> tuple[SimilarityResult, target.PartScores | None]:
    """Read one step and score everything that was read.

    Args:
      run: the comparison.
      audio_: all of its audio.
      request: what it is asked for.
      folders: of the steps so far, of this one last.
      utterances: of this step and those before.
      start: how many of them steps before have read.
      division: of the first step; None for this.

    Returns:
      The result of the steps so far, and the scores of this step alone, None if it is the first.
    """
    settings, output = request.settings, request.output
    before, ids = (frozenset(s.id for s in p) for p in (utterances[:start], utterances[start:]))
    corpus = dataclasses.replace(
        audio_.corpus, sources=tuple(sorted(utterances, key=lambda source: source.id))
    )
    stored = dataclasses.replace(output, statistics_dir=str(folders[-1].path), keep_statistics=True)
    with contextlib.ExitStack() as scratch:
        read = read_run(
            dataclasses.replace(run, step=Step(ids, before)),
            audio_ if start == 0 else dataclasses.replace(audio_, skipped=()),
            dataclasses.replace(request, output=stored),
            scratch,
            division,
        )
        tolerance, new = settings.rank_tolerance, None
        if start > 0:
            new = target.scores_of_part(read.passes.statistics, run.selection, tolerance)
        merged, counts = together(folders, scratch)
        check_enough(corpus, counts, merged)
        finished = store.finish(merged, tolerance)
        so_far = dataclasses.replace(audio_, corpus=corpus)
        attributes = attributes_of(
            run, so_far, counts, output.note, len(read.passes.statistics)
        ) | {
            "numeric": {"stats_precision": request.precision.statistics} | finished.numeric,
            "rows": finished.rows(counts.frames),
        }
        return scored_result(read.compared, finished, run.selection, attributes, output), new
