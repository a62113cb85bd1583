"""`compare`: encode audio with every model, accumulate statistics, and score them.

`accumulate` does the same for one share of the audio, up to the scores.
"""

import contextlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from speechsim_jax.audio.open_corpus import AudioInput
from speechsim_jax.comparison.prepared import ModelSource, prepared
from speechsim_jax.comparison.reading import Reading, read_run
from speechsim_jax.comparison.request import Request
from speechsim_jax.comparison.score import (
    WELL_KNOWN,
    digest_of,
    kept_once,
    log_unknown_errors,
    scored_once,
    scored_result,
    with_reading,
    worst_known,
)
from speechsim_jax.comparison.steps import compare_to_target
from speechsim_jax.errors import UserError
from speechsim_jax.measures.influence_sums import InfluenceSums
from speechsim_jax.pipeline.job_folder import ShardFolder, ShardStatus, job_folder, job_status
from speechsim_jax.pipeline.second_reading import least_bytes, read_again
from speechsim_jax.results.result import SimilarityResult
from speechsim_jax.runtime.atomic_write import remove_folder
from speechsim_jax.runtime.shards import WHOLE
from speechsim_jax.settings import Output, Resources, Settings
from speechsim_jax.statistics.store import FinishedStatistics

_log = logging.getLogger(__name__)


def compare(
    models: Sequence[ModelSource],
    audio: AudioInput,
    measures: str | Sequence[str] = "paper",
    *,
    levels: Sequence[str] | None = None,
    settings: Settings | None = None,
    resources: Resources | None = None,
    output: Output | None = None,
    **overrides: Any,
) -> SimilarityResult:
    """Compare all layers of all models on the same audio.

    Activations are never stored: memory does not depend on the amount of audio.

    >>> result = ss.compare(["facebook/hubert-base-ls960", "runs/mine"], "speech", progress=False)
    >>> result.models
    ('hubert-base-ls960', 'mine')

    Args:
      models: hub ids, folders, "zoo:NAME", "random:ID" (untrained, see `random_like`), loaded
        encoders; objects of your own with a method `representations` (see `Representations`);
        "torch:ID" or modules of torch, which torch runs.
      audio: a folder, a manifest, a list, a file, "hf:NAME/CONFIG/SPLIT", or waveforms (see
        `open_corpus`).
      measures: "paper", "all" or names (see `list_measures`). "paper" and "all" include the
        attention level only if `levels` names it.
      levels: keep only measures of these levels.
      settings: everything that can change a number.
      resources: where models come from, devices, memory and checkpoints.
      output: stored statistics, note and progress bars.
      overrides: single fields of `Settings`, `Resources` and `Output` by name. `tracks` may also
        be a mapping: name -> a function of samples [sample] at 16 kHz and centres of frames in
        seconds [frame] that returns [frame, number]; or utterance -> array [frame, number]; or
        None, for a feature of that name (docs/concepts.md).

    Returns:
      All scores, labelled, with their provenance.

    Raises:
      UserError: anything wrong with the arguments, in one line.
    """
    request = Request.checked(measures, levels, settings, resources, output, overrides)
    if request.shard != WHOLE:
        raise UserError(
            f"shard {request.shard} has no result of its own; use accumulate, and merge when all "
            "shards are complete"
        )
    if request.settings.target_se is not None:
        return compare_to_target(models, audio, request)
    with contextlib.ExitStack() as scratch:
        read = _read(models, audio, request, scratch)
        compared = read.compared.with_given(
            request.settings.given, request.selection, request.settings.given_part
        )
        finished = compared.finish(read.passes.statistics, request.settings.rank_tolerance)
        attributes = read.attributes | {
            "numeric": {"stats_precision": request.precision.statistics} | finished.numeric,
            "rows": finished.rows(read.passes.counts.frames),
        }
        output = request.output
        scoring = compared.left, finished, request.selection, attributes, output
        if read.stored_in is None:
            result = scored_result(*scoring)
        else:
            result = scored_once(read.stored_in, *scoring)
        if _reads_again(read, request, result):
            result = _with_reading(read, request, finished, result)
        log_unknown_errors(result, request.selection)
        return result


def _reads_again(read: Reading, request: Request, result: SimilarityResult) -> bool:
    """Whether standard errors are computed from a second reading; logs why."""
    source, over = request.settings.errors_source, read.run.clustering.over
    if over == "none" or source == "sample" or not request.selection.with_influence:
        return False
    if request.settings.given_part == "explained":
        return False
    if source == "reading":
        return True
    worst = worst_known(result, request.selection)
    if worst <= WELL_KNOWN:
        return False
    least = least_bytes(read.run, read.planned)
    known = f"{100 * worst:.0f} % (median)" if np.isfinite(worst) else "nothing, half of them"
    if least > request.budget_bytes:
        _log.warning(
            "sampled standard errors are known to %s, but %.3g GB of memory are too few for a "
            "second reading, which takes %.3g GB", known, request.budget_bytes / 1e9, least / 1e9,
        )  # fmt: skip
        return False
    _log.info(
        "sampled standard errors are known to %s: the audio is read a second time "
        "(errors_source='sample' does without, errors_stride is quicker)", known,
    )  # fmt: skip
    return True


def _with_reading(
    read: Reading, request: Request, finished: FinishedStatistics, result: SimilarityResult
) -> SimilarityResult:
    """The result with standard errors from a second reading, which an earlier run may have made."""
    assert finished.moments is not None
    stride, output = request.settings.errors_stride, request.output
    sums = InfluenceSums(finished.moments, request.selection.measures)
    key = ["reading", sums.names, stride, finished.numeric, list(request.settings.given)]

    def with_new(shard: ShardFolder | None) -> SimilarityResult:
        new = read_again(read.run, read.passes.counts, sums, finished.residuals, shard)
        return with_reading(result, new, output, stride)

    if read.shard is None or output.statistics_dir is None:
        return with_new(None)
    shard = read.shard.reading(digest_of(key))
    with shard.opened():
        if read.stored_in is None:
            return with_new(shard)
        names = list(request.selection.names)
        key = [*key, names, output.keep_influence, output.note]
        found = kept_once(read.stored_in, request.selection, key, lambda: with_new(shard))
    remove_folder(shard.path)
    return found


def accumulate(
    models: Sequence[ModelSource],
    audio: AudioInput,
    measures: str | Sequence[str] = "paper",
    *,
    levels: Sequence[str] | None = None,
    settings: Settings | None = None,
    resources: Resources | None = None,
    output: Output | None = None,
    **overrides: Any,
) -> list[ShardStatus]:
    """Read one share of the audio and store its statistics; `merge` makes the result of all.

    >>> models = ["facebook/hubert-base-ls960", "runs/mine"]
    >>> for shard in ("1/2", "2/2"):  # on two machines that share a folder
    ...     done = ss.accumulate(
    ...         models, "speech", shard=shard, statistics_dir="parts", progress=False
    ...     )
    >>> [status.state for status in done]
    ['done', 'done']
    >>> result = ss.merge(["parts"], progress=False)

    Args:
      models: as in `compare`.
      audio: as in `compare`; the same for all shards, which choose the same from it.
      measures: as in `compare`.
      levels: as in `compare`.
      settings: as in `compare`.
      resources: as in `compare`; `shard` says which share is read.
      output: as in `compare`; `statistics_dir` is needed.
      overrides: as in `compare`.

    Returns:
      How far all shards are.

    Raises:
      UserError: anything wrong with the arguments; another process works on this shard.
    """
    request = Request.checked(measures, levels, settings, resources, output, overrides)
    if request.output.statistics_dir is None or not request.output.keep_statistics:
        raise UserError("accumulate needs statistics_dir, the folder that all shards fill")
    if request.settings.errors_source == "reading":
        raise UserError(
            "errors_source='reading' reads all audio again once the sums of all shards are there, "
            "and merge reads none; use errors_source='sample', or compare"
        )
    if request.settings.target_se is not None:
        raise UserError("accumulate makes no scores, which target_se needs; use compare")
    with contextlib.ExitStack() as scratch:
        _read(models, audio, request, scratch)
    return job_status(job_folder(request.output.statistics_dir).path)


def _read(
    models: Sequence[ModelSource],
    audio: AudioInput,
    request: Request,
    scratch: contextlib.ExitStack,
) -> Reading:
    """Read the audio, or what earlier runs have stored; temporary files live in `scratch`."""
    run, audio_ = prepared(models, audio, request)
    return read_run(run, audio_, request, scratch)
