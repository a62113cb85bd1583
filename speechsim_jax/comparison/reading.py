"""Reading the audio of a run, or of one step of it, into statistics."""

import contextlib
import dataclasses
import logging
from typing import Any

from speechsim_jax.audio.chosen import ChosenAudio
from speechsim_jax.comparison.job import opened_shard
from speechsim_jax.comparison.prepared import attributes_of, compared_in
from speechsim_jax.comparison.representations import Representations
from speechsim_jax.comparison.request import Request
from speechsim_jax.errors import UserError, counted
from speechsim_jax.pipeline.job_folder import ShardFolder
from speechsim_jax.pipeline.one_pass import ComparisonRun, ReadCounts
from speechsim_jax.pipeline.plan import Pass
from speechsim_jax.pipeline.run import Division, PassesRun, run_passes
from speechsim_jax.pipeline.second_reading import least_bytes
from speechsim_jax.runtime.atomic_write import AnyPath

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """Statistics of the audio that was read.

    Attributes:
      compared: the representations.
      passes: statistics and counts.
      attributes: how they were made.
      stored_in: folder of the statistics, None if they are in memory only.
      run: what all readings share.
      planned: the passes.
      shard: where this shard is stored; None if statistics stay in memory.
    """

    compared: Representations
    passes: PassesRun
    attributes: dict[str, Any]
    stored_in: AnyPath | None
    run: ComparisonRun
    planned: tuple[Pass, ...]
    shard: ShardFolder | None


def read_run(
    run: ComparisonRun,
    audio_: ChosenAudio,
    request: Request,
    scratch: contextlib.ExitStack,
    division: Division | None = None,
) -> Reading:
    """Read the audio of a run, or of one step of it.

    Args:
      run: the comparison.
      audio_: its audio.
      request: where statistics go.
      scratch: temporary files live in it.
      division: how layer pairs are divided over passes, of an earlier step; None for the best way.
    """
    if run.shard.count > len(run.corpus.sources):
        _log.warning(
            "%d shards are more than %s: %d of them have nothing to read", run.shard.count,
            counted(len(run.corpus.sources), "utterance"),
            run.shard.count - len(run.corpus.sources),
        )  # fmt: skip
    compared = compared_in(run)
    passes, shard = opened_shard(run, request, compared, audio_, scratch, division)
    if run.clustering.over != "none" and request.settings.errors_source == "reading":
        least = least_bytes(run, passes)
        if least > request.budget_bytes:
            raise UserError(
                f"{request.budget_bytes} bytes of memory on each device are too few for "
                f"errors_source='reading', which needs all models at once: give at least {least} "
                f"({least / 1e9:.3g} GB), or use errors_source='sample'"
            )
    stored = request.output.statistics_dir is not None
    keep = stored and request.output.keep_statistics
    complete = None if shard is None else shard.complete()
    done = run_passes(run, passes, shard, keep)
    counts = ReadCounts(skipped=audio_.skipped if run.shard.index == 1 else ()) + done.counts
    attributes = attributes_of(run, audio_, counts, request.output.note, len(passes))
    if shard is not None and complete is not None and complete["passes"] != done.names:
        shard.retract()  # some of its passes were damaged, and have been read again
        complete = None
    if shard is not None and keep and complete is None:
        record = {"counts": dataclasses.asdict(counts), "attributes": attributes}
        shard.finish({"passes": done.names, **record})
    in_folder = shard is not None and stored and bool(done.names)
    stored_in = shard.path if shard and in_folder else None
    return Reading(compared, done, attributes, stored_in, run, passes, shard)
