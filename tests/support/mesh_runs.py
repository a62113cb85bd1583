"""`compare` in many ways on eight simulated devices, for `test_mesh`: prints JSON.

By variant, the largest difference of each measure from one device that makes one pass, and whether
ranks, winners and rankings are the same; and a run that is interrupted on one mesh and resumed on
another. The variants differ in mesh, size and shape of the batches, order of the utterances, rows
of an update and number of passes, several at a time.
"""

import json
import sys
import unittest.mock

import numpy as np

import speechsim_jax as ss
from speechsim_jax.pipeline import accumulators
from tests.support.budgets import several_passes_gb
from tests.support.paths import DATA
from tests.support.same_result import CHOICES
from tests.support.wrapped import Wrapped

FOLDER = DATA / "parity"
HEADS = "attn_frobenius,attn_pearson"
MEASURES = "maxcorr,mincorr,linreg,lincka,lincka_debiased,svcca,pwcca,rsa"
SETTINGS = {
    "measures": f"{MEASURES},{HEADS}",
    "mesh": "data:1",
    "batch_seconds": 2,
    "buckets": 1,
    "rows_per_update": 40,
    "sample_frames": 100,
    "heldout": True,
    "null": "shift",
    "null_draws": 1,
    "progress": False,
}
SEVERAL = {"measures": MEASURES}  # passes: a budget comes to it
VARIANTS = {
    "data:2": {"batch_seconds": 1, "buckets": 2},
    "data:4, shuffled": {"batch_seconds": 20, "rows_per_update": 64},
    "data:8": {"batch_seconds": 5, "errors_source": "reading"},
    "data:4,feature:2, shuffled": {"batch_seconds": 1, "rows_per_update": 25},
    "data:2,feature:4": {"batch_seconds": 2},
    "data:1, shuffled, several passes": {"batch_seconds": 1} | SEVERAL,
    "data:4, several passes": {"batch_seconds": 5} | SEVERAL,
}


class Killed(Exception):
    """Stands for whatever ends a run."""


def main(checkpoints: str) -> None:
    """Run them all."""
    rng = np.random.default_rng(0)
    lengths = rng.choice([4000, 7000, 9000], 13)
    audio = {f"u{i}": 0.1 * rng.standard_normal(n) for i, n in enumerate(lengths)}
    audio = {name: wave.astype(np.float32) for name, wave in audio.items()}
    shuffled = {name: audio[name] for name in rng.permutation(list(audio))}
    encoders = [ss.load_encoder(FOLDER / name) for name in ("wavlm-base", "hubert-large")]

    def run(audio=audio, models=encoders, **settings) -> ss.SimilarityResult:
        return ss.compare(models, audio, **SETTINGS | settings)

    one = run()

    def against_one(found: ss.SimilarityResult) -> dict[str, object]:
        apart = {m: found.matrix(m).values - one.matrix(m).values for m in found.measures}
        return {
            "errors": {measure: float(np.abs(values).max()) for measure, values in apart.items()},
            "standard_errors": _apart(found, one, "_se", relative=True),
            "heldout": _apart(found, one, "_heldout"),
            "null": _apart(found, one, "_null"),
            "choices": {
                name: found.dataset[name].equals(one.dataset[name])
                for name in CHOICES
                if name in found.dataset
            },
            "mesh": found.attributes["mesh"],
            "passes": found.attributes["passes"],
        }

    report: dict[str, object] = {}
    for name, settings in VARIANTS.items():
        mesh, *how = name.split(", ")
        given = settings | {"mesh": mesh}
        if "several passes" in how:
            given["device_memory_gb"] = several_passes_gb(run, **given)
        report[name] = against_one(run(shuffled if "shuffled" in how else audio, **given))
    pooled = {"measures": "lincka", "pool": "utterance", "null": "none"}
    a, b = (run(**pooled, mesh=mesh).matrix("lincka").values for mesh in ("data:1", "data:4"))
    report["pooled"] = float(np.abs(a - b).max())
    swap = {"measures": "lincka,maxcorr", "null": "swap", "null_draws": 2}
    one_device, four = (run(**swap, mesh=mesh) for mesh in ("data:1", "data:4"))
    report["swapped"] = _apart(four, one_device, "_null")
    few = {"measures": "lincka,maxcorr", "null": "none", "heldout": False}
    for kind, convert in {"numpy": np.asarray, "jax": lambda states: states}.items():
        objects = [Wrapped(encoders[0], convert), encoders[1]]
        for mesh in ("data:2", "data:2,feature:2"):
            found = run(models=objects, mesh=mesh, **few)
            report[f"objects, {kind}, {mesh}"] = {
                name: float(np.abs(found.matrix(name).values - one.matrix(name).values).max())
                for name in found.measures
            }
    append, batches = accumulators.Accumulators.append, []

    def dies(self, *batch):
        batches.append(batch)
        if len(batches) > 2:
            raise Killed
        append(self, *batch)

    saved = {"statistics_dir": checkpoints}
    with unittest.mock.patch.object(accumulators.Accumulators, "append", dies):
        try:
            run(mesh="data:2,feature:4", checkpoint_every=0, **saved)
        except Killed:
            report["interrupted"] = len(batches)
    report["resumed"] = against_one(run(mesh="data:4", **saved))
    print(json.dumps(report))


def _apart(
    found: ss.SimilarityResult, one: ss.SimilarityResult, end: str, relative: bool = False
) -> float:
    """Largest difference of the further scores whose names end so."""
    names = [name for name in map(str, found.dataset) if name.endswith(end)]
    assert names
    largest = 0.0
    for name in names:
        a, b = (result.matrix(name).values for result in (found, one))
        scale = np.maximum(np.abs(b), 1e-6) if relative else 1.0
        largest = max(largest, float((np.abs(a - b) / scale).max()))
    return largest


if __name__ == "__main__":
    main(sys.argv[1])
