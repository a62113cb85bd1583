"""How soon every score of two base-size encoders is known to 0.01, against reading an hour."""

import tempfile
from pathlib import Path

import speechsim_jax as ss
from experiments.benchmarks import processes
from experiments.benchmarks.machine import SMALL, report, report_machine, write_encoders

_WHAT = "answer"
_MEASURES = {"paper": "paper", "linear CKA": "lincka"}
_HOUR = 3600


def run(speech: str, target: float, small: bool = False) -> None:
    """Compare with `--target_se`, where standard errors and inflation end the reading.

    Args:
      speech: folder or manifest, best of many speakers.
      target: for the largest standard error, and the largest inflation by few frames.
      small: tiny encoders.
    """
    report_machine(_WHAT)
    with tempfile.TemporaryDirectory() as scratch:
        models = write_encoders(Path(scratch) / "models", **(SMALL if small else {}))
        for number, (name, measures) in enumerate(_MEASURES.items()):
            workdir = Path(scratch) / str(number)
            flags = [f"--measures={measures}", f"--target_se={target}"]
            timed = processes.compare(models, speech, workdir, flags)
            result = ss.SimilarityResult.load(workdir / "result.nc")
            reached = result.attributes["target"]
            labels = {"measures": name, "target": target, "reached": str(reached["reached"])}
            report(_WHAT, "until the answer", timed.total, "s", **labels)
            report(_WHAT, "of it after the last batch", timed.scores + timed.saving, "s", **labels)
            report(_WHAT, "audio read", reached["minutes"], "min", **labels)
            report(_WHAT, "steps", len(reached["steps"]), "steps", **labels)
            last = reached["steps"][-1]
            report(_WHAT, "standard error, largest", last["standard_error"], "score", **labels)
            if last["inflation"] is not None:
                report(_WHAT, "inflation, largest", last["inflation"], "score", **labels)
            rate = result.attributes["encoding_seconds"] / result.attributes["seconds"]
            report(_WHAT, "reading an hour, at the rate of this run", _HOUR * rate, "s", **labels)
