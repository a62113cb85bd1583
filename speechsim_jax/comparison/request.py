"""The arguments of a comparison, checked before any audio is opened or model loaded."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from speechsim_jax.comparison.job_record import new_folder
from speechsim_jax.errors import UserError
from speechsim_jax.measures.registry import MeasureSelection, resolve
from speechsim_jax.pipeline import costs, gather
from speechsim_jax.pipeline.accumulators import check_registered
from speechsim_jax.runtime import processes
from speechsim_jax.runtime.mesh import mesh_from
from speechsim_jax.settings import Output, Resources, Settings, with_overrides


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """The checked arguments of a comparison.

    Attributes:
      selection: the measures.
      settings: everything that can change a number.
      resources: where models come from and what may be used.
      output: what is written or shown besides the result.
      mesh: the devices.
      budget_bytes: memory on each of them.
    """

    selection: MeasureSelection
    settings: Settings
    resources: Resources
    output: Output
    mesh: Mesh
    budget_bytes: int

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
          UserError: an unknown or impossible setting, measure, mesh or memory; a folder for
            statistics that is taken; checkpoints of another number of processes.
        """
        processes.check_joined()
        settings, resources, output = with_overrides(
            (settings or Settings(), resources or Resources(), output or Output()), overrides
        )
        selection = resolve(measures, levels)
        check_registered(selection)
        gather.check_supported(selection)
        if settings.attention_max_seconds is not None and not selection.attention.measures:
            raise UserError("attention_max_seconds is given, but no measure of the attention level")
        if settings.stats_dtype == "float64" and jax.default_backend() != "cpu":
            raise UserError(
                "stats_dtype='float64' needs a CPU; accelerators use compensated float32"
            )
        mesh = mesh_from(resources.mesh)
        if output.keep_statistics is not None:
            new_folder(output.keep_statistics)
        request = cls(
            selection, settings, resources, output, mesh,
            costs.budget_bytes(resources.device_memory_gb, mesh),
        )  # fmt: skip
        _ = request.checkpoints
        return request

    @property
    def checkpoints(self) -> Path | None:
        """The folder of this process's checkpoints, None for none.

        Raises:
          UserError: there are checkpoints of another number of processes.
        """
        if self.resources.checkpoint_dir is None:
            return None
        folder, count = Path(self.resources.checkpoint_dir).expanduser(), processes.count()
        names = [path.name for path in folder.glob("*")] if folder.is_dir() else []
        others = {int(name.rpartition("-")[2]) for name in names if name.startswith("process-")}
        before = others or ({1} if names else {count})
        if before != {count}:
            raise UserError(
                f"the checkpoints in {folder} are of a job of {max(before)} processes, and there "
                f"are {count} now; start as many as there were, or use another folder"
            )
        return folder if count == 1 else folder / f"process-{processes.index()}-of-{count}"
