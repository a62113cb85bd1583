"""The arguments of a comparison, checked before any audio is opened or model loaded."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from speechsim_jax.comparison.representations import check_partial
from speechsim_jax.errors import UserError
from speechsim_jax.measures.registry import MeasureSelection, resolve
from speechsim_jax.pipeline import costs
from speechsim_jax.pipeline.accumulators import check_registered
from speechsim_jax.runtime.mesh import mesh_from
from speechsim_jax.runtime.shards import WHOLE, Shard, shard_from
from speechsim_jax.settings import Output, Resources, Settings, with_overrides
from speechsim_jax.statistics.product_precision import Precision


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """The checked arguments of a comparison.

    Attributes:
      selection: the measures.
      settings: everything that can change a number.
      functions: by name, tracks that are computed by the caller's functions, or that are arrays.
      resources: where models come from and what may be used.
      output: what is written or shown besides the result.
      shard: the share of the audio that is read.
      mesh: the devices.
      budget_bytes: memory on each of them.
      precision: of products, as it is on these devices.
    """

    selection: MeasureSelection
    settings: Settings
    functions: Mapping[str, Any]
    resources: Resources
    output: Output
    shard: Shard
    mesh: Mesh
    budget_bytes: int
    precision: Precision

    @classmethod
    def checked(
        cls,
        measures: str | Sequence[str],
        levels: Sequence[str] | None,
        settings: Settings | None,
        resources: Resources | None,
        output: Output | None,
        overrides: Mapping[str, Any],
    ) -> "Request":
        """Check everything that can be checked without audio and models.

        Raises:
          UserError: an unknown or impossible setting, measure, shard, mesh or memory.
        """
        functions: dict[str, Any] = {}
        if isinstance(tracks := overrides.get("tracks"), Mapping):
            functions = {name: value for name, value in tracks.items() if value is not None}
            overrides = {**overrides, "tracks": tuple(tracks)}
        settings, resources, output = with_overrides(
            (settings or Settings(), resources or Resources(), output or Output()), overrides
        )
        # The processes of a pod have to meet before a device is used.
        shard = shard_from(resources.shard)
        if resources.shard is None and jax.process_count() > 1:
            raise UserError(
                f"there are {jax.process_count()} processes, and each would do the whole job; "
                "give each its share with shard='pod'"
            )
        selection = resolve(measures, levels)
        check_registered(selection)
        check_partial(settings.given, selection)
        if not selection.without_attention.measures and (settings.tracks or settings.labels):
            raise UserError(
                "tracks and labels are compared by measures of hidden states; add one, as linreg"
            )
        if settings.target_se is not None and not selection.with_influence:
            raise UserError(
                f"target_se: no standard errors are known of {', '.join(selection.names)}; add a "
                "measure that has some, such as lincka"
            )
        if settings.target_se is not None and shard != WHOLE:
            raise UserError(
                f"target_se and shard {shard}: how much to read depends on what all have read; "
                "leave out one of them"
            )
        if settings.exemplars and not selection.without_attention.measures:
            raise UserError(
                "exemplars are of neurons, and all measures are of attention heads; add one that "
                "is not, such as maxcorr"
            )
        if settings.attention_max_seconds is not None and not selection.attention.measures:
            raise UserError("attention_max_seconds is given, but no measure of the attention level")
        if settings.stats_dtype == "float64" and jax.default_backend() != "cpu":
            raise UserError(
                "stats_dtype='float64' needs a CPU; accelerators use compensated float32"
            )
        mesh = mesh_from(resources.mesh)
        return cls(
            selection, settings, functions, resources, output, shard, mesh,
            costs.budget_bytes(resources.device_memory_gb, mesh), Precision.of(settings),
        )  # fmt: skip
