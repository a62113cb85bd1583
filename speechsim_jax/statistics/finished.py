"""TODO."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from speechsim_jax.errors import UserError
from speechsim_jax.statistics.attention_finished import FinishedAttention
from speechsim_jax.statistics.attention_finished import finish_attention as finished_heads
from speechsim_jax.statistics.moments_finished import FinishedMoments
from speechsim_jax.statistics.sample import Sample, of_streams
from speechsim_jax.statistics.store import StoredStatistics


@dataclasses.dataclass(frozen=True)
class Finished:
    """What scores are made of; None for a statistic that no chosen measure reads."""

    moments: FinishedMoments | None
    sample: Sample | None = None
    attention: FinishedAttention | None = None

    @property
    def numeric(self) -> dict[str, Any]:
        """The numeric settings that were used, for the result's record."""
        found = self.moments or (self.attention.moments if self.attention else None)
        assert found is not None
        return {"stats_dtype": found.dtype, "rank_tolerance": found.rank_tolerance}

    def rows(self, frames: int) -> int:
        """Rows of the statistics; without moments, the frames that were seen."""
        return self.moments.rows if self.moments is not None else frames


def finished(parts: Sequence[StoredStatistics], rank_tolerance: float | None) -> Finished:
    """The finished statistics of all passes; raises UserError if attention has heard nothing."""
    moments = [part.moments for part in parts if part.moments is not None]
    samples = [(part.sample, part.places) for part in parts if part.sample is not None]
    attention = [part.heads for part in parts if part.heads is not None]
    if attention and not attention[0].lengths:
        raise UserError(
            "attention: none of the utterances chosen for it could be used; raise "
            "attention_max_seconds or choose another seed"
        )
    return Finished(
        FinishedMoments(moments, rank_tolerance) if moments else None,
        of_streams(samples) if samples else None,
        finished_heads(attention[0], rank_tolerance) if attention else None,
    )
